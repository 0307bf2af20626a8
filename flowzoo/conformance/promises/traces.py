"""Checks of trace estimators: tr f(A) of linear maps that are known."""

from __future__ import annotations

import torch
from torch import Tensor

from flowzoo.conformance.check import Failed, Skipped, check, off_by, require
from flowzoo.conformance.probes import invariance
from flowzoo.conformance.probes.known import Known
from flowzoo.conformance.probes.maps_made import (
    definite,
    matrices,
    positive,
    random_dimension,
    rows_at_once,
)
from flowzoo.conformance.probes.sequential import mean_is_zero
from flowzoo.conformance.promises.traces_spectral import (  # noqa: F401 (checks, found by name)
    spectral,
    spectral_gradient,
)
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import Incompatible
from flowzoo.traces import TraceEstimator

BIAS = 0.01  # the smallest bias to find, in units of A's Frobenius norm
ROUNDING = 1e-12
NAMES = ("the estimate of tr A", "the estimate of tr log A")


@check("trace")
def unbiased(specimen: Specimen) -> str:
    """On average over probes the estimate of tr A is tr A."""
    estimator, draws = specimen.make(), specimen.generator()
    symmetric = "symmetric" in estimator.needs
    cases = [matrices(specimen, 3, d, symmetric) for d in (2, random_dimension(specimen))]
    if estimator.probes(specimen.points(1), draws) is None:
        raise Skipped("it uses no probes; `exact` checks it")

    def errors() -> Tensor:
        found = []
        for each in cases:
            probes = estimator.probes(
                each.new_zeros(rows_at_once(estimator, each), each.shape[-1]), draws
            )
            for a in each:
                estimate = estimator(Known(a[None], symmetric), probes)
                found.append(estimate.mean() - a.trace())
        return torch.stack(found)

    return mean_is_zero(errors, BIAS, "the estimate of tr A (A of norm 1)")


@check("trace")
def unbiased_gradient(specimen: Specimen) -> str:
    """On average over probes the gradient of the estimate in A is I, that of tr A."""
    estimator, draws = specimen.make(), specimen.generator()
    symmetric, d = "symmetric" in estimator.needs, random_dimension(specimen)
    a = matrices(specimen, 1, d, symmetric)[0].requires_grad_()

    def errors() -> Tensor:
        probes = estimator.probes(a.new_zeros(rows_at_once(estimator, a), d), draws)
        whole = 0.5 * (a + a.T) if symmetric else a
        estimate = estimator(Known(whole[None], symmetric), probes)
        require(estimate.requires_grad, "the estimate has no gradient in A")
        (gradient,) = torch.autograd.grad(estimate.mean(), a)
        return (gradient - torch.eye(d, dtype=a.dtype)).flatten()

    return mean_is_zero(errors, BIAS, "the gradient in A")


@check("trace")
def exact(specimen: Specimen) -> str:
    """Without probes the trace is that of the whole matrix, to rounding."""
    estimator = specimen.make()
    symmetric, said = "symmetric" in estimator.needs, ""
    for d in (1, 2, 5, 16):
        if estimator.probes(specimen.points(3, d), specimen.generator()) is not None:
            raise Skipped("it uses probes; `unbiased` checks it")
        a = matrices(specimen, 3, d, symmetric)
        expected = a.diagonal(dim1=-2, dim2=-1).sum(-1)
        for closed in (False, True):
            found = estimator(Known(a, symmetric, closed), None)
            said = off_by(found, expected, ROUNDING, f"tr A in {d} dimensions")
    return said


@check("trace")
def probes(specimen: Specimen) -> str:
    """Probes (k, n, d) follow the places, come from the generator, and have covariance I."""
    estimator, d = specimen.make(), random_dimension(specimen)
    x = specimen.points(rows_at_once(estimator, specimen.points(1, d)), d)
    first = estimator.probes(x, specimen.generator(1))
    if first is None:
        return "it uses none"
    for dtype in (torch.float32, torch.float64):
        p = estimator.probes(x[:5].to(dtype), specimen.generator())
        assert p is not None
        sound = p.dim() == 3 and p.shape[1:] == (5, d) and len(p) > 0
        require(sound, f"probes are {tuple(p.shape)} for places (5, {d}), expected (k, 5, {d})")
        require(p.dtype == dtype, f"probes are {p.dtype} for {dtype} places")
    _follow_the_generator(estimator, x, first, specimen)
    draws = specimen.generator()

    def errors() -> Tensor:
        p = estimator.probes(x, draws)
        assert p is not None
        p = p.flatten(0, 1)
        return (p.T @ p / len(p) - torch.eye(d, dtype=p.dtype)).flatten()

    return mean_is_zero(errors, BIAS, "the covariance of the probes")


def _follow_the_generator(
    estimator: TraceEstimator, x: Tensor, first: Tensor, specimen: Specimen
) -> None:
    with invariance.global_seed(1):
        again = estimator.probes(x, specimen.generator(1))
    with invariance.global_seed(2):
        third, other = (estimator.probes(x, specimen.generator(seed)) for seed in (1, 2))
    same = all(p is not None and torch.equal(first, p) for p in (again, third))
    require(same, "two generators with the same seed give different probes")
    varies = other is not None and not torch.equal(first, other)
    require(varies, "generators with different seeds give the same probes")
    own = first.shape[1] == 1 or bool((first != first[:, :1]).any())
    require(own, "all places have the same probes, so their errors do not average out")


@check("trace")
def repeatable(specimen: Specimen) -> str:
    """The same probes give the same estimate: all randomness is in the probes."""
    estimator, a, p = _case(specimen)
    with invariance.global_seed(1):
        first = _estimates(estimator, a, p)
    with invariance.global_seed(2):
        second = _estimates(estimator, a, p)
    return invariance.agree(second, first, 0.0, NAMES, "again")


@check("trace")
def sizes(specimen: Specimen) -> str:
    """No maps, one map and maps of R^1 give as many estimates."""
    estimator = specimen.make()
    for n, d in ((0, 3), (1, 3), (3, 1), (1, 1)):
        a = positive(specimen, n, d)
        p = estimator.probes(a.new_zeros(n, d), specimen.generator())
        for estimate in _estimates(estimator, a, p):
            shape = tuple(estimate.shape)
            require(shape == (n,), f"the estimate is {shape} for {n} maps of R^{d}, expected {n}")
    return "shapes are (n,)"


@check("trace")
def batch_independence(specimen: Specimen) -> str:
    """The estimate of a map is the same alone as among others, given its probes."""
    estimator, a, p = _case(specimen)
    return invariance.batch_independence(*_rowwise(estimator, a, p), ROUNDING, NAMES)


@check("trace")
def permutation(specimen: Specimen) -> str:
    """Permuted maps and probes give permuted estimates."""
    estimator, a, p = _case(specimen)
    return invariance.permutation(*_rowwise(estimator, a, p), ROUNDING, NAMES)


@check("trace")
def precision(specimen: Specimen) -> str:
    """float32 gives float32, and what float64 gives to single precision."""
    estimator, a, p = _case(specimen)
    fn, inputs = _rowwise(estimator, a, p)
    return invariance.precision(fn, fn, [y.float() for y in inputs], 1e-4, NAMES)


@check("trace")
def device(specimen: Specimen) -> str:
    """Probes and estimates are on the device of the places."""
    estimator, a, p = _case(specimen)
    expected, said = _estimates(estimator, a, p), []
    for where in invariance.devices():

        def fn(a: Tensor) -> tuple[Tensor, ...]:
            drawn = estimator.probes(a.new_zeros(a.shape[:2]), None)
            require(drawn is None or drawn.device == a.device, "probes stay on another device")
            return _estimates(estimator, a, drawn)

        said.append(invariance.on_device(fn, [a.to(where)], expected, NAMES))
    return ", ".join(said)


@check("trace")
def default_dtype(specimen: Specimen) -> str:
    """Probes and estimates do not depend on the default dtype."""
    estimator, a, _ = _case(specimen)

    def fn(a: Tensor) -> tuple[Tensor, ...]:
        p = estimator.probes(a.new_zeros(a.shape[:2]), specimen.generator())
        return _estimates(estimator, a, p)

    clauses = [invariance.ignores_default_dtype(fn, [y], NAMES) for y in (a, a.float())]
    return "; ".join(clauses)


@check("trace")
def needs(specimen: Specimen) -> str:
    """What it declares to need is known to fields, and is what it refuses to do without."""
    estimator = specimen.make()
    unknown = ", ".join(sorted(set(estimator.needs) - {"symmetric", "phi_t"}))
    require(not unknown, f"needs {unknown}, which no velocity can provide")
    a = matrices(specimen, 3, 4, False)
    p = estimator.probes(a.new_zeros(3, 4), specimen.generator())
    try:
        found = estimator(Known(a), p)
    except Incompatible as refusal:
        if "symmetric" in estimator.needs:
            return f"refuses, saying: {refusal}"
        raise Failed(f"refuses a map that is not symmetric undeclared: {refusal}") from refusal
    require("symmetric" not in estimator.needs, "takes maps that lack what it declares to need")
    require(bool(found.isfinite().all()), "the estimate is not finite")
    return "needs nothing"


@check("trace")
def redraw(specimen: Specimen) -> str:
    """It says how long probes are kept: for a `solve` or for a `stage`."""
    said = specimen.make().redraw
    require(said in ("solve", "stage"), f"redraw is {said!r}, expected 'solve' or 'stage'")
    return f"for a {said}"


def _case(specimen: Specimen) -> tuple[TraceEstimator, Tensor, Tensor | None]:
    """Return the estimator, six positive definite maps of R^4 or more and their probes."""
    estimator, d = specimen.make(), random_dimension(specimen)
    a = positive(specimen, 6, d)
    return estimator, a, estimator.probes(a.new_zeros(6, d), specimen.generator())


def _estimates(estimator: TraceEstimator, a: Tensor, p: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return what it gives for tr A and, where it does not refuse, for tr log A."""
    estimate = estimator(definite(a), p)
    try:
        return estimate, estimator(definite(a), p, torch.log)
    except Incompatible:
        return estimate, estimate


def _rowwise(
    estimator: TraceEstimator, a: Tensor, p: Tensor | None
) -> tuple[invariance.Function, list[Tensor]]:
    """Return the estimates as a function of rows of maps and, where there are any, of probes."""

    def fn(a: Tensor, *p: Tensor) -> tuple[Tensor, ...]:
        return _estimates(estimator, a, p[0].transpose(0, 1) if p else None)

    return fn, [a] if p is None else [a, p.transpose(0, 1)]
