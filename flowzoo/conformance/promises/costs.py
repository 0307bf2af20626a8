"""Checks of regularizers: costs along a trajectory, of its two ends, and of whole flows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from flowzoo.conformance.check import Failed, Skipped, check, off_by, require
from flowzoo.conformance.probes import invariance
from flowzoo.conformance.probes.known import Known, optimal_point
from flowzoo.conformance.probes.sequential import mean_is_zero
from flowzoo.conformance.probes.slopes import slopes
from flowzoo.conformance.specimen import Specimen
from flowzoo.continuous import Continuous
from flowzoo.field import Gradient, Point
from flowzoo.integrators import RK4
from flowzoo.networks import PotentialMLP
from flowzoo.registry.signature import class_options
from flowzoo.regularizers import EndpointCost, FlowCost, Regularizer, RunningCost

ROUNDING = 1e-12
NAMES = ("the cost",)
AT_ONCE = 2048  # estimates that one draw of the sequential test averages
BIAS = 0.02  # the smallest bias to find, relative to the cost
POINT = frozenset({"phi_t", "symmetric"})  # what a point may hold beyond v and products


@check("regularizer")
def shapes(specimen: Specimen) -> str:
    """The cost is (n,), of the dtype of the places, also of none, of one and in R^1."""
    for n, d in ((6, 3), (0, 3), (1, 3), (4, 1)):
        for dtype in (torch.float64, torch.float32):
            with torch.no_grad():
                cost = _function(specimen, d, dtype)(*_inputs(specimen, n, d, dtype))[0]
            shape = tuple(cost.shape)
            require(shape == (n,), f"the cost is {shape} for {n} places in R^{d}, expected ({n},)")
            require(cost.dtype == dtype, f"the cost is {cost.dtype} for {dtype} places")
    return "shapes are (n,)"


@check("regularizer")
def nonnegative(specimen: Specimen) -> str:
    """The cost is a number, and not negative."""
    cost = _function(specimen)(*_inputs(specimen, 256))[0]
    require(bool(cost.isfinite().all()), "the cost is not finite")
    least = float(cost.detach().min())
    require(least >= 0, f"the cost is as low as {least:.2g}")
    return f"at least {least:.1e} at 256 places"


@check("regularizer")
def zero(specimen: Specimen) -> str:
    """What stands still costs nothing; nor, if phi_t is needed, does an optimal Gaussian flow."""
    made, x = specimen.make(), specimen.points(9, 3)
    if isinstance(made, EndpointCost):
        return off_by(made.between(x, x), torch.zeros(9).double(), ROUNDING, "the cost of z = x")
    if isinstance(made, FlowCost):
        field = _field()
        torch.nn.utils.vector_to_parameters(torch.zeros(_size(field)).double(), field.parameters())
        cost = _cost(made, field)(x, x, _probes(specimen, 2, x))[0]
        return off_by(cost, torch.zeros(9).double(), ROUNDING, "the cost of v = 0")
    nothing, middle = x.new_zeros(9), x.new_tensor(0.5)
    flat = Known(x.new_zeros(9, 3, 3), symmetric=True)
    still, said = Point(middle, x, torch.zeros_like(x), flat, nothing), ""
    for p in (None, _probes(specimen, 2, x)):
        said = off_by(_running(made).rate(still, p), nothing, ROUNDING, "the cost of v = 0")
        if "phi_t" in made.needs:
            cost = _running(made).rate(optimal_point(x), p)
            said = off_by(cost, nothing, ROUNDING, "the cost of an optimal flow")
    return said


@check("regularizer", of=RunningCost)
def probes(specimen: Specimen) -> str:
    """With probes the cost is, on average over them, the cost without."""
    made, draws = _running(specimen.make()), specimen.generator()
    x, a = specimen.points(1, 4), specimen.points(4, 4, seed=1)[None]
    a = 0.5 * (a + a.mT) if "symmetric" in made.needs else a

    def at(n: int) -> Point:
        places = x.expand(n, -1)
        v = places @ a[0].T
        return Point(x.new_tensor(0.5), places, v, _known(a, made), 1 + v.square().sum(-1))

    exact, many = made.rate(at(1), None), at(AT_ONCE)

    def errors() -> Tensor:
        found = []
        for k, gaussian in ((1, False), (3, True)):
            p = torch.randn(k, AT_ONCE, 4, generator=draws, dtype=x.dtype)
            found.append(made.rate(many, p if gaussian else p.sign()).mean() / exact[0] - 1)
        return torch.stack(found)

    return mean_is_zero(errors, BIAS, "the cost with probes, relative to it,")


@check("regularizer")
def needs(specimen: Specimen) -> str:
    """What it declares to need of a point is known to fields, and is enough."""
    made = specimen.make()
    unknown = ", ".join(sorted(set(made.needs) - POINT))
    require(not unknown, f"needs {unknown}, which no velocity provides")
    if isinstance(made, EndpointCost):
        require(not made.needs, "needs something of a point, but sees the two ends only")
        return "sees the two ends only"
    if isinstance(made, FlowCost):
        require(not made.needs, "needs something of a point, but asks the flow")
        return "asks the flow"
    x, a = specimen.points(5, 3), specimen.points(5, 9, seed=1).view(5, 3, 3)
    a = 0.5 * (a + a.mT) if "symmetric" in made.needs else a
    v, phi_t = (a @ x[..., None])[..., 0], x.sum(-1) if "phi_t" in made.needs else None
    bare = Point(x.new_tensor(0.5), x, v, _known(a, made), phi_t)
    said = ", ".join(sorted(made.needs)) or "nothing"
    for p in (None, _probes(specimen, 1, x)):
        try:
            _running(made).rate(bare, p)
        except Exception as error:
            sentence = f"declares to need {said} of a point, but given no more raises {error!r}"
            raise Failed(sentence) from error
    return f"needs {said}"


@check("regularizer")
def weight(specimen: Specimen) -> str:
    """The weight is kept as it was given; applying it is the objective's part."""
    if "weight" not in class_options(specimen.cls):
        raise Skipped("it takes no weight")
    costs = []
    for given in (0.0, 0.37, 2.5):
        other = replace(specimen, spec={**specimen.spec, "weight": given})
        kept = other.make().weight
        require(kept == given, f"weight {given} is kept as {kept}")
        with invariance.global_seed(0):
            costs.append(_function(other)(*_inputs(other, 6)))
    for cost in costs[1:]:
        invariance.agree(cost, costs[0], 0.0, ("the cost with another weight",))
    return "kept, and not applied"


@check("regularizer")
def repeatable(specimen: Specimen) -> str:
    """The same places and probes cost the same."""
    fn, inputs = _function(specimen), _inputs(specimen, 6)
    with invariance.global_seed(1):
        first = fn(*inputs)
    with invariance.global_seed(2), invariance.untouched(inputs, "an input"):
        second = fn(*inputs)
    return off_by(second[0], first[0], 0.0, "the cost, again,")


@check("regularizer")
def batch_independence(specimen: Specimen) -> str:
    """The cost of a sample is the same alone as in a batch: averaging is the objective's part."""
    inputs = _inputs(specimen, 9)
    return invariance.batch_independence(_function(specimen), inputs, ROUNDING, NAMES)


@check("regularizer")
def permutation(specimen: Specimen) -> str:
    """Permuted samples have permuted costs."""
    return invariance.permutation(_function(specimen), _inputs(specimen, 9), ROUNDING, NAMES)


@check("regularizer")
def precision(specimen: Specimen) -> str:
    """float32 gives float32, and what float64 gives to single precision."""
    single = _function(specimen, dtype=torch.float32)
    double = _function(specimen, dtype=torch.float32, then=torch.float64)
    inputs = _inputs(specimen, 9, dtype=torch.float32)
    return invariance.precision(single, double, inputs, 1e-4, NAMES)


@check("regularizer")
def default_dtype(specimen: Specimen) -> str:
    """Costs do not depend on the default dtype."""
    said = []
    for dtype in (torch.float64, torch.float32):
        inputs = _inputs(specimen, 6, dtype=dtype)
        fn = _function(specimen, dtype=dtype)
        said.append(invariance.ignores_default_dtype(fn, inputs, NAMES))
    return "; ".join(said)


@check("regularizer")
def device(specimen: Specimen) -> str:
    """The cost is computed and returned on the device of the places."""
    inputs, said = _inputs(specimen, 6), []
    expected = _function(specimen)(*inputs)
    for where in invariance.devices():
        moved = [y.to(where) for y in inputs]
        fn = _function(specimen, device=where)
        said.append(invariance.on_device(fn, moved, expected, NAMES))
    return ", ".join(said)


@check("regularizer")
def gradients(specimen: Specimen) -> str:
    """The cost can be differentiated in the places and, but for that of ends, in the weights."""
    field, made = _field(), specimen.make()
    inputs = [y.requires_grad_() for y in _inputs(specimen, 6)]
    weights = [] if isinstance(made, EndpointCost) else list(field.parameters())

    def value() -> Tensor:
        cost = _cost(made, field)(*inputs)[0].sum()
        return cost + 0 * sum(y.sum() for y in inputs[:2])  # a cost may look at one end only

    leaves = [*weights, *inputs[: 1 if isinstance(made, RunningCost) else 2]]
    return slopes(value, leaves, specimen.generator(), 1e-7, "the gradient of the cost")


def _field(dim: int = 3) -> Gradient:
    """Return a small potential flow, the same every time."""
    with invariance.global_seed(0):
        field = Gradient(PotentialMLP(dim, hidden=(8,), activation="tanh"))
    return field.double()


def _function(
    specimen: Specimen,
    dim: int = 3,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    then: torch.dtype | None = None,
) -> invariance.Function:
    """Return the cost as a function of `_inputs`, of a field with weights of `dtype`.

    Weights rounded to that are turned into those of the dtype `then`.
    """
    field = _field(dim).to(device, dtype).to(then or dtype)
    return _cost(specimen.make(), field)


def _cost(made: Regularizer, field: Gradient) -> Callable[..., tuple[Tensor, ...]]:
    def running(x: Tensor, z: Tensor, p: Tensor) -> tuple[Tensor, ...]:
        at = field.at(x.new_full((), 0.3), x)
        whole = _running(made).rate(at, None)
        return (whole + _running(made).rate(at, p.transpose(0, 1)),)

    def between(x: Tensor, z: Tensor, p: Tensor) -> tuple[Tensor, ...]:
        assert isinstance(made, EndpointCost)
        return (made.between(x, z),)

    def asking(x: Tensor, z: Tensor, p: Tensor) -> tuple[Tensor, ...]:
        assert isinstance(made, FlowCost)
        return (made.cost(Continuous(field, RK4(2)), x, z)[0],)

    if isinstance(made, FlowCost):
        return asking
    return between if isinstance(made, EndpointCost) else running


def _running(made: Regularizer) -> RunningCost:
    said = "it is neither a RunningCost nor an EndpointCost nor a FlowCost"
    require(isinstance(made, RunningCost), said)
    assert isinstance(made, RunningCost)
    return made


def _size(field: Gradient) -> int:
    return sum(p.numel() for p in field.parameters())


def _known(a: Tensor, made: Regularizer) -> Known:
    return Known(a, "symmetric" in made.needs)


def _inputs(
    specimen: Specimen, n: int, dim: int = 3, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Return places x and z (n, d) and probes (n, 2, d)."""
    x, z = specimen.points(n, dim), specimen.points(n, dim, seed=1)
    p = _probes(specimen, 2, x).transpose(0, 1)
    return [y.to(dtype).contiguous() for y in (x, z, p)]


def _probes(specimen: Specimen, k: int, x: Tensor) -> Tensor:
    """Return probes (k, n, d) that are not all of one size."""
    return specimen.points(k * len(x), x.shape[1], seed=2).view(k, *x.shape)
