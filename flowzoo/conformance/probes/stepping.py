"""How checks make integrators accurate, and by how much those then miss the known solution."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowzoo.conformance.check import require
from flowzoo.conformance.probes.known import Logistic, Watched, start
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import Incompatible
from flowzoo.integrators import Evaluations, Integrator, State, Time
from flowzoo.registry.signature import class_options

SPAN = (0.3, 1.4)  # from where to where; neither end is a special time
NAMES = ("places", "ladj", "costs")
FACTOR = 100  # by how much the error of an adaptive solve may exceed its tolerance
WORST = 0.05  # what is allowed at most, however inaccurate an integrator is


@dataclass(frozen=True)
class Accurate:
    """An integrator made accurate.

    Arguments:
        integrator: The integrator.
        allowed: By how much what it computes may be off.
    """

    integrator: Integrator
    allowed: float


def with_options(specimen: Specimen, **options: object) -> Integrator | None:
    """Return an instance with other options, or None where it does not take them."""
    if not options.keys() <= class_options(specimen.cls).keys():
        return None
    try:
        return replace(specimen, spec={**specimen.spec, **options}).make()
    except Incompatible:
        return None


def gridded(specimen: Specimen, steps: int) -> Integrator | None:
    """Return an instance with that many steps, or None where error control chooses them."""
    return with_options(specimen, steps=steps)


def tolerant(specimen: Specimen, tolerance: float) -> Integrator | None:
    """Return an instance with that relative and absolute tolerance, or None on a fixed grid."""
    if gridded(specimen, 8) is not None:
        return None
    return with_options(specimen, rtol=tolerance, atol=tolerance)


def accurate(specimen: Specimen) -> Accurate:
    """Return an accurate instance: of a tight tolerance, or of up to as many steps as that takes.

    Allowed are 100 tolerances, or five times the error on the known ODE forwards in time.
    """
    if made := tolerant(specimen, 1e-6):
        return Accurate(made, FACTOR * 1e-6)
    made = specimen.make()
    error = missed(made, specimen)
    for steps in (32, 128, 512):
        finer = gridded(specimen, steps)
        if finer is None or error < 1e-4:
            break
        before, made, error = error, finer, missed(finer, specimen)
        if error > before / 2:
            break  # it does not converge, as `order` says
    return Accurate(made, min(5 * error, WORST) + 1e-9)


def equation(like: Tensor) -> Logistic:
    """Return the ODE for places (n, d), with a coefficient for each dimension."""
    return Logistic(0.5 + torch.arange(like.shape[1], device=like.device).to(like.dtype) / 2)


def solve(integrator: Integrator, state: State, t0: Time = SPAN[0], t1: Time = SPAN[1]) -> Solved:
    """Return the known ODE solved without gradients, with its evaluations."""
    ode = equation(state[0])
    field = Watched(ode)
    with torch.no_grad():
        solution = integrator.solve(field, state, t0, t1, (ode.a,))
    return Solved(solution.state, ode.solution(state, t0, t1), solution.nfe, field.calls)


@dataclass(frozen=True)
class Solved:
    """A solve of the known ODE.

    Arguments:
        found: The state at the end.
        expected: What it should be.
        nfe: The count of evaluations that the integrator gives.
        calls: The evaluations, as (stage, t).
    """

    found: State
    expected: State
    nfe: Evaluations
    calls: list[tuple[int, Tensor]]

    @property
    def errors(self) -> list[float]:
        """The largest error of each entry.

        Raises:
            Failed: One has another shape or is not finite.
        """
        for y, z, name in zip(self.found, self.expected, NAMES, strict=False):
            require(y.shape == z.shape, f"{name} {tuple(z.shape)} become {tuple(y.shape)}")
            require(bool(y.isfinite().all()), f"{name} are not finite at the end")
        pairs = zip(self.found, self.expected, strict=True)
        return [float((y - z).abs().max()) for y, z in pairs]


def missed(integrator: Integrator, specimen: Specimen) -> float:
    """Return the largest error of a solve forwards in time."""
    return max(solve(integrator, start(specimen.points(6))).errors)
