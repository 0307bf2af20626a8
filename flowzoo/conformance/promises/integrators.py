"""Checks of integrators, on a nonlinear ODE that depends on time and has a known solution.

Where a check needs an accurate integrator it asks for many steps or for a tight tolerance,
whichever the component takes as `steps` or as `rtol` and `atol`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flowzoo.conformance.check import Skipped, check, off_by, require
from flowzoo.conformance.probes import invariance
from flowzoo.conformance.probes.known import Watched, start
from flowzoo.conformance.probes.stepping import (
    FACTOR,
    NAMES,
    SPAN,
    accurate,
    gridded,
    solve,
    tolerant,
    with_options,
)
from flowzoo.conformance.promises.integrators_gradient import (
    discrete_gradient,
    evaluations,
    gradient,
    second_derivatives,
    two_solves,
)
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import Diverged
from flowzoo.integrators import Field, Integrator, State

__all__ = [
    "batch_independence",
    "default_dtype",
    "device",
    "discrete_gradient",
    "evaluations",
    "failure",
    "gradient",
    "order",
    "permutation",
    "precision",
    "repeatable",
    "reverse",
    "second_derivatives",
    "sizes",
    "stages",
    "state",
    "times",
    "tolerance",
    "two_solves",
]

ROUNDING = 1e-12


@check("integrator")
def order(specimen: Specimen) -> str:
    """On a fixed grid the error falls with the step size as fast as the order says."""
    grid, x = [8, 16, 32, 64], specimen.points(6)
    made = [gridded(specimen, steps) for steps in grid]
    if any(each is None for each in made):
        raise Skipped("it has no fixed grid; `tolerance` checks it")
    errors = np.array([solve(each, start(x)).errors for each in made if each is not None])
    coarse = errors.max(0) > 1e-9  # entries whose slope is not one of rounding errors
    lines = np.polyfit(np.log(grid), np.log(np.maximum(errors[:, coarse], 1e-13)), 1)
    slope = float(-lines[0].max()) if coarse.any() else np.inf
    declared = getattr(getattr(made[0], "tableau", made[0]), "order", None)
    require(
        slope >= (declared or 1) - 0.2,
        f"errors {', '.join(f'{e:.1e}' for e in errors.max(1))} at {grid} steps are of order "
        f"{slope:.2f}, expected {declared or 'at least 1'}",
    )
    return f"measured {slope:.2f}, declared {declared or 'none'}"


@check("integrator")
def tolerance(specimen: Specimen) -> str:
    """The error of an adaptive solve falls with the tolerance, and is within a factor of it."""
    tolerances, x = (1e-3, 1e-4, 1e-5, 1e-6), specimen.points(6)
    made = [tolerant(specimen, each) for each in tolerances]
    if any(each is None for each in made):
        raise Skipped("it takes no tolerance; `order` checks it")
    errors = [max(solve(each, start(x)).errors) for each in made if each is not None]
    factors = [error / each for error, each in zip(errors, tolerances, strict=True)]
    require(
        max(factors) <= FACTOR,
        f"the error is {max(factors):.0f} times the tolerance, expected at most {FACTOR} times",
    )
    require(errors[-1] < errors[0], f"a tolerance of 1e-6 gives an error of {errors[-1]:.1g}")
    return f"the error is up to {max(factors):.1g} times the tolerance"


@check("integrator")
def reverse(specimen: Specimen) -> str:
    """It solves backwards in time as well, and so returns to where it came from."""
    made, begin = accurate(specimen), start(specimen.points(6))
    back = solve(made.integrator, begin, SPAN[1], SPAN[0])
    invariance.agree(back.found, back.expected, made.allowed, NAMES, "backwards in time")
    there = solve(made.integrator, begin).found
    again = solve(made.integrator, there, SPAN[1], SPAN[0]).found
    return off_by(again[0], begin[0], 2 * made.allowed, "what returns")


@check("integrator")
def repeatable(specimen: Specimen) -> str:
    """Two solves agree bit for bit."""
    made, begin = specimen.make(), start(specimen.points(6))
    first, second = (solve(made, begin).found for _ in range(2))
    return invariance.agree(second, first, 0.0, NAMES, "again")


@check("integrator")
def state(specimen: Specimen) -> str:
    """States of one, two or three entries are solved alike, and costs do not steer the steps."""
    made, x = specimen.make(), specimen.points(6)
    begins = [start(x), start(x, 2), start(x, 1), start(x, 3, costs=3)]
    with invariance.untouched([y for each in begins for y in each], "the state at the start"):
        three, two, one, wide = (solve(made, each) for each in begins)
    for each in (three, two, one, wide):
        require(len(each.found) == len(each.expected), "the state has lost entries")
    invariance.agree(three.found[:2], two.found, ROUNDING, ("places beside a cost", "ladj beside"))
    off_by(wide.found[0], two.found[0], ROUNDING, "places beside three costs")
    off_by(wide.found[2][:, 2:], three.found[2], ROUNDING, "the third of three equal costs")
    adaptive = tolerant(specimen, 1e-5) is not None  # its steps may depend on ladj
    allowed = 2 * max(*one.errors, *three.errors) if adaptive else ROUNDING
    return off_by(one.found[0], two.found[0], allowed, "places without ladj")


@check("integrator")
def times(specimen: Specimen) -> str:
    """Times are numbers or tensors, lie between the ends, and have the dtype of the state."""
    made, begin = specimen.make(), start(specimen.points(6))
    plain = solve(made, begin)
    tensors = solve(made, begin, *(torch.tensor(t, dtype=torch.float64) for t in SPAN))
    single = solve(made, tuple(y.float() for y in begin))
    for solved, dtype in ((plain, torch.float64), (single, torch.float32)):
        seen = [t for _, t in solved.calls]
        require(all(t.dim() == 0 for t in seen), "the field gets times that are not of shape ()")
        require(all(t.dtype == dtype for t in seen), f"the field gets times that are not {dtype}")
    seen = [float(t) for _, t in plain.calls]
    first, last = min(seen), max(seen)
    inside = first >= SPAN[0] - 1e-9 and last <= SPAN[1] + 1e-9
    require(inside, f"the field is asked from t = {first:.3g} to {last:.3g} in a solve over {SPAN}")
    return invariance.agree(tensors.found, plain.found, ROUNDING, NAMES, "with tensors as times")


@check("integrator")
def sizes(specimen: Specimen) -> str:
    """A batch of none, a batch of one and R^1 are solved."""
    made = specimen.make()
    for n, d in ((0, 2), (1, 3), (4, 1), (0, 1), (1, 1)):
        begin = start(specimen.points(n, d))
        found = solve(made, begin).found
        for y, z, name in zip(found, begin, NAMES, strict=True):
            require(y.shape == z.shape, f"{name} {tuple(z.shape)} become {tuple(y.shape)}")
    return "shapes are kept"


@check("integrator")
def stages(specimen: Specimen) -> str:
    """On a fixed grid the stages are numbered from 0 on, and keep number and time when repeated."""
    made = specimen.make()
    if made.evaluations is None:
        raise Skipped("it does not number its stages: `evaluations` is None")
    begin = tuple(y.requires_grad_() for y in start(specimen.points(6)))
    field = Watched(lambda t, state, stage=0: tuple(-y * t for y in state))
    end = made.solve(field, begin, *SPAN).state
    forward = field.calls[:]
    numbers = [stage for stage, _ in forward]
    require(numbers == list(range(made.evaluations)), f"its stages are {_few(numbers)}")
    require(abs(float(forward[0][1]) - SPAN[0]) < ROUNDING, "stage 0 is not at the start")
    sum(y.sum() for y in end).backward()  # pyright: ignore[reportAttributeAccessIssue]
    at = dict(forward)
    for stage, t in field.calls[len(forward) :]:
        same = stage in at and bool((at[stage] - t).abs() < ROUNDING)
        require(same, f"stage {stage} is at another time when it is repeated for the gradient")
    return f"{len(forward)} stages, {len(field.calls) - len(forward)} repeated"


@check("integrator")
def failure(specimen: Specimen) -> str:
    """A solve that leaves the numbers raises Diverged or shows it; one without end is ended."""
    made, said = specimen.make(), []

    def nowhere(t: Tensor, state: State, stage: int = 0) -> State:
        factor = torch.where(t < 0.8, 1.0, torch.nan).to(state[0])
        return tuple(factor * torch.ones_like(y) for y in state)

    def explosive(t: Tensor, state: State, stage: int = 0) -> State:
        return (50 * state[0].square(), *(torch.zeros_like(y) for y in state[1:]))

    said.append(f"of nan {_fails(made, nowhere, specimen)}")
    if tolerant(specimen, 1e-4) is not None:
        said.append(f"of an explosion {_fails(made, explosive, specimen)}")
        if short := with_options(specimen, max_steps=3):
            said.append(f"of too few steps {_fails(short, None, specimen)}")
    return ", ".join(said)


def _fails(integrator: Integrator, field: Field | None, specimen: Specimen) -> str:
    """Return how a failure is shown; None as a field is one with too many wiggles for it."""

    def wiggly(t: Tensor, state: State, stage: int = 0) -> State:
        return tuple(100 * torch.cos(100 * t) * torch.ones_like(y) for y in state)

    try:
        end = integrator.solve(Watched(field or wiggly), start(specimen.points(6)), *SPAN).state[0]
    except Diverged:
        return "says so"
    require(field is not None, "takes more steps than its max_steps")
    require(not bool(end.isfinite().all()), "a solve that leaves the numbers ends in finite ones")
    return "gives no number"


@check("integrator")
def batch_independence(specimen: Specimen) -> str:
    """A sample's solution is the same alone as in a batch; up to the tolerance, if adaptive."""
    made = tolerant(specimen, 1e-5)
    allowed = ROUNDING if made is None else FACTOR * 1e-5
    fn = _function(made or specimen.make())
    return invariance.batch_independence(fn, [specimen.points(9)], allowed, NAMES)


@check("integrator")
def permutation(specimen: Specimen) -> str:
    """Permuting the batch permutes the solutions."""
    allowed = ROUNDING if tolerant(specimen, 1e-5) is None else 1e-9
    return invariance.permutation(_function(specimen.make()), [specimen.points(9)], allowed, NAMES)


@check("integrator")
def precision(specimen: Specimen) -> str:
    """float32 gives float32, and what float64 gives to single precision or to the tolerance."""
    made = tolerant(specimen, 1e-4)
    allowed = 1e-4 if made is None else FACTOR * 1e-4
    fn = _function(made or specimen.make())
    return invariance.precision(fn, fn, [specimen.points(6).float()], allowed, NAMES)


@check("integrator")
def default_dtype(specimen: Specimen) -> str:
    """Solutions do not depend on the default dtype."""
    fn, x = _function(tolerant(specimen, 1e-4) or specimen.make()), specimen.points(6)
    return "; ".join(invariance.ignores_default_dtype(fn, [y], NAMES) for y in (x, x.float()))


@check("integrator")
def device(specimen: Specimen) -> str:
    """The solution is computed and returned on the device of the state."""
    made, x, said = specimen.make(), specimen.points(6), []
    fn = _function(made)
    for where in invariance.devices():
        if where.type != "meta" or made.evaluations is not None:
            said.append(invariance.on_device(fn, [x.to(where)], fn(x), NAMES))
    if not said:
        raise Skipped("its steps depend on values, meta tensors have none; no accelerator is here")
    return ", ".join(said)


def _function(integrator: Integrator) -> invariance.Function:
    """Return the state at the end as a function of points."""
    return lambda x: solve(integrator, start(x)).found


def _few(numbers: list[int]) -> str:
    text = ", ".join(map(str, numbers[:8]))
    return f"{text}, ..." if len(numbers) > 8 else text
