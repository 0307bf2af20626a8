"""Checks of convex potentials: convexity, contexts, what the first batch sets.

`convex_point` has gradients and Hessians, `convex_manners` batches, precision, devices and modes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from flowzoo.conformance.check import Failed, Skipped, check, off_by, require
from flowzoo.conformance.probes import invariance
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import FlowzooError
from flowzoo.maps import LinearMap
from flowzoo_cp_flow.conformance.convex_made import (
    NAMES,
    ROUNDING,
    log_det,
    made,
    numbers,
    places,
    slope,
)
from flowzoo_cp_flow.conformance.convex_manners import (
    batch_independence,
    default_dtype,
    device,
    modes,
    permutation,
    precision,
    repeatable,
    save_load,
    shapes,
    sizes,
)
from flowzoo_cp_flow.conformance.convex_point import (
    at,
    gradients,
    hessian,
    second_derivatives,
    third_derivatives,
)
from flowzoo_cp_flow.convex import Convex

__all__ = [
    "at",
    "batch_independence",
    "context",
    "convex",
    "default_dtype",
    "device",
    "finite",
    "floor",
    "gradients",
    "hessian",
    "modes",
    "permutation",
    "precision",
    "repeatable",
    "save_load",
    "second_derivatives",
    "settle",
    "shapes",
    "sizes",
    "third_derivatives",
]

_POINTS = 64  # at each distance, of each instance
_FAR = (1.0, 30.0, 1e3)  # distances of points from 0, on the scale of the data
_EXTREME = (0.0, 1e-9, 1e2, 1e4, 1e6)


@check("convex")
def convex(specimen: Specimen) -> str:
    """No chord lies below it and no eigenvalue of H below 0: anywhere, whatever the weights."""
    lowest = 0.0
    for potential, far in _instances(specimen):
        x, *context = places(specimen, potential, _POINTS)
        x, y = far * x, far * specimen.points(_POINTS, potential.dim, seed=2)
        with torch.no_grad():
            one, other, middle = (potential(p, *context) for p in (x, y, (x + y) / 2))
            eigenvalues = _eigenvalues(potential.at(x, *context).hessian)
        excess = (middle - (one + other) / 2) / (1 + one.abs() + other.abs())
        above = float(excess.max())
        require(above <= ROUNDING, f"half way between two points F is {above:.2g} (relative) above "
                f"their mean, at a distance of {far:g}")  # fmt: skip
        least = float((eigenvalues[:, 0] / (1 + eigenvalues[:, -1])).min())
        require(least >= -ROUNDING, f"H has an eigenvalue of {least:.2g} (relative to the largest) "
                f"at a distance of {far:g}")  # fmt: skip
        lowest = min(lowest, least)
    return f"lowest eigenvalue {lowest:.1g} (relative), chords above, to a distance of {_FAR[-1]:g}"


@check("convex")
def floor(specimen: Specimen) -> str:
    """The Hessian says a number that none of its eigenvalues lies below."""
    spare = float("inf")
    for potential, far in _instances(specimen):
        x, *context = places(specimen, potential, _POINTS)
        with torch.no_grad():
            a = potential.at(far * x, *context).hessian
            if a.floor is None:
                raise Failed("its Hessian says no floor; 0 is one of every convex F")
            eigenvalues = _eigenvalues(a)
        over = (eigenvalues[:, 0] - a.floor) / (1 + eigenvalues[:, -1])
        spare = min(spare, float(over.min()))
        require(spare >= -ROUNDING, f"an eigenvalue lies {-spare:.2g} (relative) below the floor")
    return f"eigenvalues at least {max(spare, 0.0):.2g} (relative) above it"


@check("convex")
def finite(specimen: Specimen) -> str:
    """All is finite at 0, next to it and far out, and so are the slopes of log det H."""
    potential = made(specimen)
    x, *context = places(specimen, potential, 16)
    for far in _EXTREME:
        here = (far * x).requires_grad_()
        point = potential.at(here, *context)
        found = {"F": point.value, "the gradient": point.gradient, "H": point.hessian.dense()}
        found["the slope of log det (H + I)"] = slope(log_det(point.hessian), here)
        for name, y in found.items():
            require(bool(y.isfinite().all()), f"{name} is not finite at a distance of {far:g}")
    return f"from 0 to a distance of {_EXTREME[-1]:g}"


@check("convex")
def context(specimen: Specimen) -> str:
    """A context acts on its own row; a missing, a needless or a narrower one is refused."""
    plain, potential = made(specimen), made(specimen, context_dim=2)
    if not plain.context_dim:
        x = specimen.points(9, plain.dim)
        _refused(plain, x, x, f"a context of width {plain.dim}, of which it has no use,")
    if not potential.context_dim:
        raise Skipped("it takes no context, and refuses one")
    x, c = places(specimen, potential)
    fn = numbers(potential)
    invariance.batch_independence(fn, [x, c], ROUNDING, NAMES)
    changed = c.clone()
    changed[4] += 1.0
    before, after = potential.at(x, c).gradient, potential.at(x, changed).gradient
    moved = (after - before).abs().amax(-1)
    require(bool(moved[4] > ROUNDING), "the context changes nothing")
    others = torch.cat((moved[:4], moved[5:]))
    off_by(others, torch.zeros_like(others), ROUNDING, "a row, by another's context,")
    for wrong, said in ((None, "no context"), (torch.cat((c, c), -1), "a context too wide")):
        _refused(potential, x, wrong, said)
    return "acts on its own row, others are refused"


@check("convex")
def settle(specimen: Specimen) -> str:
    """What waits for a batch is set by it once, whatever its order, and is saved and copied."""
    potential: Convex = specimen.sized(3)
    if not potential.waits:
        raise Skipped("nothing waits for a batch")
    x, *context = places(specimen, potential, 64)
    x = 3 + 2 * x
    order = torch.arange(63, -1, -1)
    settled, mixed, equal = (copy.deepcopy(potential).train() for _ in range(3))
    with invariance.untouched([x, *context], "an input"):
        settled.settle(x, *context)
    mixed.settle(x[order], *(c[order] for c in context))
    equal.settle(*(y[:1].expand(2, -1) for y in (x, *context)))
    require(not settled.waits, "it still waits after a batch")
    fn, before = numbers(settled), numbers(potential)(x, *context)
    expected = fn(x, *context)
    for made_of, found in (("64 points", expected), ("equal points", numbers(equal)(x, *context))):
        finite = all(bool(y.isfinite().all()) for y in found)
        require(finite, f"{made_of} make it infinite or nan")
    same = all(torch.equal(a, b) for a, b in zip(expected, before, strict=True))
    require(not same, "a batch changes nothing")
    invariance.agree(numbers(mixed)(x, *context), expected, 1e-8, NAMES, "after a permuted batch")
    return _kept(specimen, settled, [x, *context])


def _kept(specimen: Specimen, settled: Convex, inputs: list[Tensor]) -> str:
    """Compare a settled potential with itself, loaded into a new one and copied."""
    expected, loaded = numbers(settled)(*inputs), specimen.sized(3, seed=1)
    fresh = copy.deepcopy(loaded.state_dict())
    loaded.load_state_dict(settled.state_dict())
    for other, how in ((loaded, "loaded"), (copy.deepcopy(settled), "copied")):
        require(not other.waits, f"it waits again after being {how}")
        invariance.agree(numbers(other)(*inputs), expected, 0.0, NAMES, f"after being {how}")
    loaded.load_state_dict(fresh)
    require(loaded.waits, "it does not wait after the state of one that waits was loaded")
    return "set once, saved and copied"


def _instances(specimen: Specimen) -> Iterator[tuple[Convex, float]]:
    """Yield potentials with several weights, one that may wait for a batch, and distances."""
    found = [specimen.sized(3, shake=1.0), *(made(specimen, seed=s, shake=1.0) for s in (1, 2))]
    for potential in found:
        for far in _FAR:
            yield potential, far


def _eigenvalues(a: LinearMap) -> Tensor:
    h = a.dense()
    require(bool(h.isfinite().all()), "H is not finite")
    return torch.linalg.eigvalsh(h)


def _refused(potential: Convex, x: Tensor, wrong: Tensor | None, said: str) -> None:
    for call in (potential, potential.at):
        try:
            call(x, wrong)
        except FlowzooError:
            continue
        except Exception as error:
            raise Failed(f"{said} raises {error!r}, not a flowzoo.errors.Incompatible") from error
        raise Failed(f"{said} is taken without a word")
