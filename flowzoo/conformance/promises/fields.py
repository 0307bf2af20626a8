"""Checks of fields: what velocities and potentials promise alike.

`fields_velocity` and `fields_potential` have what each promises by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from flowzoo.conformance.check import Failed, Skipped, check, off_by, require
from flowzoo.conformance.probes import invariance
from flowzoo.conformance.probes.fields_made import (
    ROUNDING,
    SINGLE,
    Field,
    made,
    map_at,
    numbers,
    places,
    probe,
)
from flowzoo.conformance.probes.slopes import slopes
from flowzoo.conformance.promises.fields_potential import at, gradient, hessian
from flowzoo.conformance.promises.fields_velocity import jacobian, phi_t, point, symmetric
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import FlowzooError
from flowzoo.field import Point, PotentialPoint, Velocity
from flowzoo.traces import Exact

TOGETHER = 1e-9  # what two orders of the same sums may differ by

__all__ = ["at", "gradient", "hessian", "jacobian", "phi_t", "point", "symmetric"]


def shapes(specimen: Specimen) -> str:
    """The value is (n, d) of a velocity, (n,) of a potential, for one time and for a time each."""
    for dtype in (torch.float64, torch.float32):
        field = made(specimen, dtype=dtype)
        t, x, *context = inputs = places(specimen, field, 5, dtype)
        expected = (5, field.dim) if isinstance(field, Velocity) else (5,)
        with invariance.untouched(inputs, "an input"), torch.no_grad():
            for time, said in ((t, "(n,)"), (t[2], "()")):
                value = field(time, x, *context)
                shape = tuple(value.shape)
                require(shape == expected, f"the value is {shape} for t {said}, not {expected}")
                require(value.dtype == dtype, f"the value is {value.dtype} for {dtype} inputs")
    return f"{expected} for 5 places"


def repeatable(specimen: Specimen) -> str:
    """Two calls agree bit for bit, and leave the weights as they are."""
    field = made(specimen)
    fn, names = numbers(field)
    inputs = places(specimen, field)
    with invariance.untouched(list(field.state_dict().values()), "a weight"):
        with invariance.global_seed(1):
            first = fn(*inputs)
        with invariance.global_seed(2):
            second = fn(*inputs)
    return invariance.agree(second, first, 0.0, names, "again")


def modes(specimen: Specimen) -> str:
    """Without gradients it computes what it computes with them, and records nothing."""
    field = made(specimen)
    fn, names = numbers(field)
    inputs = places(specimen, field)
    expected = fn(*inputs)
    with torch.no_grad():
        found = fn(*inputs)
    recording = [name for y, name in zip(found, names, strict=True) if y.requires_grad]
    require(not recording, f"{' and '.join(recording)} record a graph under no_grad")
    return invariance.agree(found, expected, ROUNDING, names, "under no_grad")


def sizes(specimen: Specimen) -> str:
    """No place, one place, and R^1 are computed."""
    for dim in (None, 1):
        try:
            field = made(specimen, dim)
        except Skipped:
            continue  # its dimension is fixed, and not 1
        fn, names = numbers(field)
        three = fn(*places(specimen, field, 3))
        for n in (0, 1):
            for y, like, name in zip(fn(*places(specimen, field, n)), three, names, strict=True):
                expected = (n, *like.shape[1:])
                require(y.shape == expected, f"{name} is {tuple(y.shape)}, expected {expected}")
    return "shapes are kept"


def batch_independence(specimen: Specimen) -> str:
    """What is computed at a place does not depend on the other places."""
    return _by_time(specimen, invariance.batch_independence)


def permutation(specimen: Specimen) -> str:
    """Permuted places have permuted values."""
    return _by_time(specimen, invariance.permutation)


def precision(specimen: Specimen) -> str:
    """In float32 it gives float32, and what the same weights give in float64."""
    single = made(specimen, dtype=torch.float32)
    double = copy.deepcopy(single).double()
    (one, names), (two, _) = numbers(single), numbers(double)
    inputs = places(specimen, single, dtype=torch.float32)
    return invariance.precision(one, two, inputs, SINGLE, names)


def default_dtype(specimen: Specimen) -> str:
    """What it computes does not depend on the default dtype."""
    said = []
    for dtype in (torch.float64, torch.float32):
        field = made(specimen, dtype=dtype)
        fn, names = numbers(field)
        inputs = places(specimen, field, dtype=dtype)
        said.append(invariance.ignores_default_dtype(fn, inputs, names))
    return "; ".join(said)


def device(specimen: Specimen) -> str:
    """It computes on the device of its weights and inputs."""
    field, said = made(specimen), []
    inputs = places(specimen, field)
    expected = numbers(field)[0](*inputs)
    for where in invariance.devices():
        fn, names = numbers(copy.deepcopy(field).to(where))
        moved = [y.to(where) for y in inputs]
        said.append(invariance.on_device(fn, moved, expected, names))
    return ", ".join(said)


def save_load(specimen: Specimen) -> str:
    """Its weights, loaded into an instance of another seed, make that one compute the same."""
    one, other = made(specimen, seed=0), made(specimen, seed=1)
    other.load_state_dict(one.state_dict())
    (fn, names), (loaded, _) = numbers(one), numbers(other)
    inputs = places(specimen, one)
    return invariance.agree(loaded(*inputs), fn(*inputs), 0.0, names, "after loading")


def gradients(specimen: Specimen) -> str:
    """The value can be differentiated in time, places and weights, rightly."""
    field = made(specimen)
    inputs = [y.requires_grad_() for y in places(specimen, field)]
    leaves = [*inputs, *(w for w in field.parameters() if w.requires_grad)]

    def value() -> Tensor:
        return _weighed(field(*inputs))

    return slopes(value, leaves, specimen.generator(), 1e-7, "the gradient of the value")


def second_derivatives(specimen: Specimen) -> str:
    """The derivatives in space can be differentiated again, in places and weights, rightly."""
    field = made(specimen)
    t, *inputs = (y.requires_grad_() for y in places(specimen, field))
    leaves, p = [*inputs, *(w for w in field.parameters() if w.requires_grad)], probe(inputs[0])

    def value() -> Tensor:
        a = map_at(field, t, *inputs)
        estimate = (p * a.vjp(p)).sum(-1) + a.jvp(p).square().sum(-1)
        return _weighed(Exact()(a, None)) + _weighed(estimate)

    return slopes(value, leaves, specimen.generator(), 1e-6, "the gradient of tr A")


def together(specimen: Specimen) -> str:
    """A trace that is computed along with the value is the trace, and so are all gradients."""
    field = made(specimen)
    inputs = [y.requires_grad_() for y in places(specimen, field)]
    leaves = [*inputs, *(w for w in field.parameters() if w.requires_grad)]
    along = field.with_divergence if isinstance(field, Velocity) else field.with_laplacian
    said = ""
    for weigh, how in ((torch.sum, "of a sum"), (_weighed, "of a weighted sum")):
        found, expected = (
            _point_and_slopes(way(*inputs), leaves, weigh) for way in (along, field.at)
        )
        for name, y in found.items():
            said = off_by(y, expected[name], TOGETHER, f"{name} {how}, computed along,")
    return said


def _point_and_slopes(
    point: Point | PotentialPoint, leaves: list[Tensor], weigh: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return a point's numbers, and the gradients of a sum of them, the trace's weighed."""
    if isinstance(point, Point):
        value, a = point.v, point.jacobian
    else:
        value, a = point.gradient, point.hessian
    numbers = {"the value": value, "the trace": Exact()(a, None)}
    if point.phi_t is not None:
        numbers["phi_t"] = point.phi_t
    total = value.square().sum() + weigh(numbers["the trace"]) + _cubes(point.phi_t, value)
    slopes = torch.autograd.grad(total, leaves, materialize_grads=True, allow_unused=True)
    flat = torch.cat([s.reshape(-1) for s in slopes])
    return {name: y.detach() for name, y in numbers.items()} | {"the gradient": flat}


def context(specimen: Specimen) -> str:
    """A context acts on its own row; a missing one, and one of another width, are refused."""
    field = made(specimen, context_dim=2)
    if field.context_dim != 2:
        raise Skipped("it takes no context")
    fn, names = numbers(field)
    t, x, c = inputs = places(specimen, field)
    found = fn(*inputs)
    invariance.batch_independence(fn, inputs, ROUNDING, names)
    changed = c.clone()
    changed[4] += 1.0
    moved = field(t, x, changed) - found[0]
    require(bool((moved[4] != 0).any()), "the context changes nothing")
    others = torch.cat((moved[:4], moved[5:]))
    off_by(others, torch.zeros_like(others), ROUNDING, "the value of a row, by another's context,")
    for wrong, said in ((None, "no context"), (c[:, :1], "a context of width 1")):
        _refused(field, t, x, wrong, said)
    return "acts on its own row, others are refused"


def time(specimen: Specimen) -> str:
    """A time for each place acts on its own row, and values change with time without jumps."""
    field = made(specimen)
    fn, names = numbers(field)
    t, *rest = places(specimen, field)
    each = [fn(t[i], *(y[i : i + 1] for y in rest)) for i in range(len(t))]
    alone = tuple(torch.cat(y) for y in zip(*each, strict=True))
    said = invariance.agree(fn(t, *rest), alone, ROUNDING, names, "with a time each")
    with torch.no_grad():
        coarse, fine = (_largest_change(field, rest, count) for count in (65, 1025))
    require(
        fine <= 0.5 * coarse + ROUNDING,
        f"the value jumps by {fine:.2g} in time, and not less in smaller steps of time",
    )
    return f"{said}; {'changes smoothly' if coarse else 'does not depend on it'}"


def _largest_change(field: Field, rest: list[Tensor], count: int) -> float:
    """Return by how much the value at one place changes at most from one time to the next."""
    t = torch.linspace(0, 1, count, dtype=torch.float64)
    value = field(t, *(y[:1].expand(count, -1) for y in rest))
    return float(value.diff(dim=0).abs().max())


def _by_time(specimen: Specimen, what: Callable[..., str]) -> str:
    """Measure with a time for each place, and with one for all."""
    field = made(specimen)
    fn, names = numbers(field)
    t, *rest = places(specimen, field)
    what(lambda *y: fn(t[3], *y), rest, ROUNDING, names)
    return what(fn, [t, *rest], ROUNDING, names)


def _refused(field: Field, t: Tensor, x: Tensor, wrong: Tensor | None, said: str) -> None:
    try:
        field(t, x, wrong)
    except FlowzooError:
        return
    except Exception as error:
        raise Failed(f"{said} raises {error!r}, expected a flowzoo.errors.Incompatible") from error
    raise Failed(f"{said} is taken without a word, where one of width 2 is expected")


def _cubes(y: Tensor | None, like: Tensor) -> Tensor:
    return like.new_zeros(()) if y is None else y.pow(3).sum()


def _weighed(y: Tensor) -> Tensor:
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype, device=y.device)
    return (weights * y.reshape(-1)).sum()


_SHARED = (
    shapes, repeatable, modes, sizes, batch_independence, permutation, precision, default_dtype,
    device, save_load, gradients, second_derivatives, together, context, time,
)  # fmt: skip
for _kind in ("velocity", "potential"):  # each is a check of either, found here by its value
    globals().update({f"{_kind}_{_run.__name__}": check(_kind)(_run) for _run in _SHARED})
