"""Checks of trace estimators: spectral functions, and the gradient of a log-determinant."""

from __future__ import annotations

import torch
from torch import Tensor

from flowzoo.conformance.check import check, off_by, require
from flowzoo.conformance.probes.known import Known
from flowzoo.conformance.probes.maps_made import (
    definite,
    positive,
    random_dimension,
    rows_at_once,
)
from flowzoo.conformance.probes.sequential import mean_is_zero
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import Incompatible
from flowzoo.traces import Spectral, TraceEstimator

BIAS = 0.05  # the smallest bias to find, relative to the norm of log A, or of A^-1
ROUNDING = 1e-12
FUNCTIONS: dict[str, Spectral] = {"log": torch.log, "exp": torch.exp}


@check("trace")
def spectral(specimen: Specimen) -> str:
    """tr log A and tr exp A of positive definite maps are right or unbiased, or refused."""
    return "; ".join(_function(specimen, name, fn) for name, fn in FUNCTIONS.items())


@check("trace")
def spectral_gradient(specimen: Specimen) -> str:
    """On average over probes the gradient of tr log A in A is A^-1, where there is one."""
    estimator, draws = specimen.make(), specimen.generator()
    a = positive(specimen, 1, _dimension(specimen, estimator))[0].requires_grad_()
    inverse = torch.linalg.inv(a.detach())

    def gradient() -> Tensor | None:
        probes = estimator.probes(a.new_zeros(rows_at_once(estimator, a) // 4, len(a)), draws)
        estimate = estimator(definite((0.5 * (a + a.T))[None]), probes, torch.log)
        return torch.autograd.grad(estimate.mean(), a)[0] if estimate.requires_grad else None

    try:
        first = gradient()
    except Incompatible as refusal:
        return f"refuses tr log A, saying: {refusal}"
    if first is None:
        return "tr log A has no gradient, and none can be asked for"
    if estimator.probes(a.new_zeros(1, len(a)), draws) is None:
        return off_by(first, inverse, ROUNDING, "the gradient of tr log A")

    def errors() -> Tensor:
        found = gradient()
        assert found is not None
        return ((found - inverse) / inverse.norm()).flatten()

    return mean_is_zero(errors, BIAS, "the gradient of tr log A (A^-1 of norm 1)")


def _function(specimen: Specimen, name: str, fn: Spectral) -> str:
    """Return what was measured of tr fn(A), or the refusal."""
    estimator, draws, what = specimen.make(), specimen.generator(), f"tr {name} A"
    a = positive(specimen, 3, _dimension(specimen, estimator))
    values = fn(torch.linalg.eigvalsh(a))
    expected = values.sum(-1)
    try:
        probes = estimator.probes(a.new_zeros(a.shape[:2]), draws)
        found = estimator(definite(a), probes, fn)
    except Incompatible as refusal:
        return f"refuses {what}, saying: {refusal}"
    if probes is None:
        if fn is torch.log:
            bad = estimator(Known(-a, True), None, fn)
            require(not bool(bad.isfinite().any()), f"{what} of a negative definite A is a number")
        return off_by(found, expected, ROUNDING, what)

    def errors() -> Tensor:
        probes = estimator.probes(a.new_zeros(rows_at_once(estimator, a) // 4, a.shape[1]), draws)
        each = [estimator(definite(m[None]), probes, fn).mean() for m in a]
        return (torch.stack(each) - expected) / values.norm(dim=-1)

    return mean_is_zero(errors, BIAS, f"the estimate of {what} ({name} A of norm 1)")


def _dimension(specimen: Specimen, estimator: TraceEstimator) -> int:
    """Return a dimension in which probes are random, and quadratures with `steps` exact."""
    return min(random_dimension(specimen), getattr(estimator, "steps", 64))
