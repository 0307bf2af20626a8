"""Flows to check: made from a specimen, solved so well that only mathematics is left.

What is promised of a map holds to the accuracy of its solver. Where a flow takes other numerics,
promises are therefore checked with an exact trace, in one of two ways; a flow that takes none is
checked as it is, and has to keep them to the same accuracy:

- `solved`: dopri5 at a tolerance of 1e-9 in float64. What holds for the true solution of the ODE
  (inverse, ladj) is then off by about 1e-8; 1e-6 is allowed, for steep flows. Integrals of many
  points (mass) are solved at 1e-6, and 1e-3 is allowed. A flow that takes too many steps, or whose
  Jacobian by automatic differentiation depends on the tolerance, has kinks in an activation, at
  which its Jacobian jumps; it is solved at 1e-5, and 1e-2 is allowed.
- `gridded`: a few steps of RK4. What holds for any numerics (rows apart, gradients, modes) is then
  off by rounding alone; `ROUNDING` = 1e-10 is allowed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowzoo.conformance.check import Failed, Skipped, require
from flowzoo.conformance.probes.invariance import Function
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import Diverged
from flowzoo.flow import Flow
from flowzoo.integrators import RK4
from flowzoo.odeint import Dopri5
from flowzoo.traces import Exact

ROUNDING = 1e-10


@dataclass(frozen=True)
class Accuracy:
    """How well a flow is solved.

    Arguments:
        tolerance: Relative and absolute, of dopri5.
        allowed: What results may be off by, relative to 1 + |result|.
        most_steps: How many steps a solve may take.
    """

    tolerance: float
    allowed: float
    most_steps: int


_ROUGH = Accuracy(1e-5, 1e-2, 1000)
POINTWISE = (Accuracy(1e-9, 1e-6, 150), _ROUGH)
INTEGRALS = (Accuracy(1e-6, 1e-3, 150), _ROUGH)


class TooRough(Exception):
    """What a flow is compared with is not known to the accuracy that is wanted."""


def made(specimen: Specimen, dim: int | None = None, **options: Any) -> Flow:
    """Return a flow of dimension 2, or of dimension `dim` if given (`Specimen.sized`)."""
    return specimen.sized(2, dim, **options)


def typical(specimen: Specimen, flow: Flow, n: int) -> Tensor:
    """Return points (n, d) that the flow deems typical: there it stretches space the least."""
    z = specimen.points(n, flow.dim)
    if not flow.latent:
        return z
    with torch.no_grad():
        return exact(flow, 1e-3).decode(z)


def exact(flow: Flow, tolerance: float, max_steps: int = 1000) -> Flow:
    """Return a flow with an exact trace and an adaptive solver, where it takes them."""
    return flow.with_numerics(Dopri5(tolerance, tolerance, max_steps), Exact())


def gridded(flow: Flow, steps: int = 3) -> Flow:
    """Return a flow with an exact trace and a few steps of RK4, where it takes them."""
    return flow.with_numerics(RK4(steps), Exact())


def takes_numerics(flow: Flow) -> bool:
    """Return whether a flow can be solved by other numerics than its own."""
    return gridded(flow) is not flow


def solved(
    flow: Flow,
    promise: Callable[[Flow, Accuracy], str],
    accuracies: Sequence[Accuracy] = POINTWISE,
) -> str:
    """Return what a promise measures of a flow, solved as well as it can be in reasonable time.

    Arguments:
        flow: The flow.
        promise: Is given the solved flow and the accuracy, and says what it measured.
        accuracies: What to try in turn.

    Raises:
        Failed: The promise is not kept, or the flow diverges by its only numerics.
        Skipped: No accuracy can be reached.
    """
    reason = ""
    for by in accuracies:
        try:
            return promise(exact(flow, by.tolerance, by.most_steps), by)
        except Diverged as error:
            if not takes_numerics(flow):
                raise Failed(str(error)) from error
            reason = str(error)
        except TooRough as error:
            reason = str(error)
    raise Skipped(f"it is too rough: {reason}")


def volume(
    specimen: Specimen, flow: Flow, by: Accuracy, back: bool, n: int
) -> tuple[Tensor, Tensor]:
    """Return points x (n, d) and log abs det dz/dx there, by automatic differentiation.

    Arguments:
        specimen: Where points come from.
        flow: The flow, solved.
        by: How well it is solved.
        back: Whether decode is differentiated, also at z = 0, instead of encode.
        n: How many points.

    Raises:
        TooRough: At a looser tolerance the Jacobian is another.
    """
    start = specimen.points(n, flow.dim)
    if back:
        start[0] = 0
    else:
        start = typical(specimen, flow, n)

    def found(flow: Flow) -> tuple[Tensor, Tensor]:
        here = start.clone().requires_grad_()
        there = flow.decode(here) if back else flow.encode(here).z
        sized = log_abs_det(there, here, "decode" if back else "z")
        return (there.detach(), -sized) if back else (start, sized)

    x, fine = found(flow)
    _, coarse = found(exact(flow, 30 * by.tolerance, by.most_steps))
    off = float(((fine - coarse) / (1 + fine.abs())).abs().max())
    if off > by.allowed:
        raise TooRough(f"its Jacobian changes by {off:.1g} with the tolerance of the solver")
    return x, fine


def log_abs_det(y: Tensor, x: Tensor, name: str) -> Tensor:
    """Return log abs det dy/dx (n,) by automatic differentiation, a pass for each column of y."""
    require(y.requires_grad, f"{name} is not differentiable")
    rows = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0] for column in y.unbind(-1)]
    return torch.linalg.slogdet(torch.stack(rows, -2)).logabsdet


def numbers(flow: Flow) -> tuple[Function, tuple[str, ...]]:
    """Return all that a flow computes as one function of x and maybe a context, and its names.

    That is z, ladj and decode(x); log p alone where the flow has no latent space.
    """

    def ends(x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        with torch.no_grad():
            if not flow.latent:
                return (flow.log_prob(x, context),)
            encoded = flow.encode(x, context=context)
            return encoded.z, encoded.ladj, flow.decode(x, context)

    return ends, ("z", "ladj", "decode") if flow.latent else ("log_prob",)
