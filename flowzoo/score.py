r"""Scores: gradients of log-densities, and how flows carry them.

A flow that sends x to z, with Jacobian J and volume change ladj, pulls the score at z back to x by

    s_x = J^T s_z + grad_x ladj

Over an instant of dx/dt = v(t, x) that is ds/dt = -(dv/dx)^T s - grad_x div v: along a trajectory
the score obeys an ODE of its own, which runs in either direction of time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from flowzoo.errors import Incompatible
from flowzoo.field import Velocity
from flowzoo.integrators import Evaluations, Integrator, State, Time
from flowzoo.maps import leaf
from flowzoo.traces import TraceEstimator

Score: TypeAlias = Callable[[Tensor], Tensor]
Rate: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Made = TypeVar("Made")


@dataclass(frozen=True)
class Carried:
    """What became of points and their scores.

    Arguments:
        x: Places (n, d).
        score: The score there (n, d).
        cost: The integral of the rate (n,) from data to noise; zero without one.
        nfe: The solve's count; its `backward` grows when gradients are taken.
    """

    x: Tensor
    score: Tensor
    cost: Tensor
    nfe: Evaluations


class Carrying:
    """The right-hand side of one solve: d/dt (x, s, cost) = (v, -(dv/dx)^T s - grad div v, rate).

    Both terms of the score come from one backward pass at each evaluation. Without gradients its
    graph is dropped at once, so that memory does not grow with the number of steps.

    Arguments:
        velocity: The velocity v.
        trace: How its divergence is computed; the gradient of an unbiased estimate is unbiased, and
            so is the score, which is linear in it.
        probes: Its probes, one entry for the whole solve or one per numbered stage.
        context: What the velocity is conditioned on, (n, c).
        end: The time T of the noise.
        rate: A cost per unit time, one more entry of the state: (t / T, x, v, s) -> (n,).
    """

    reads = 2

    def __init__(
        self,
        velocity: Velocity,
        trace: TraceEstimator,
        probes: Sequence[Tensor | None],
        context: Tensor | None,
        end: Time,
        rate: Rate | None = None,
    ) -> None:
        self.velocity, self.trace, self.probes = velocity, trace, probes
        self.context, self.end, self.rate = context, end, rate

    def __call__(self, t: Tensor, state: State, stage: int = 0) -> State:
        """Return the derivative of the state at time t; `stage` says which probes to use."""
        probes, s = self.probes[stage if len(self.probes) > 1 else 0], state[1]
        recorded, x = torch.is_grad_enabled(), leaf(state[0])
        # What a field fuses with its divergence serves one derivative, not one of a derivative.
        whole = probes is None and not recorded
        with torch.enable_grad():
            evaluate = self.velocity.with_divergence if whole else self.velocity.at
            at = evaluate(t, x, self.context)
            divergence = self.trace.divergence(self.velocity, at, probes, self.context)
        slope = -pulled((at.v, divergence), x, (s, torch.ones_like(divergence)))
        v = at.v if recorded else at.v.detach()
        if self.rate is None:
            return v, slope
        return v, slope, self.rate(t / self.end, state[0], v, s)

    def carried(self, integrator: Integrator, x: Tensor, score: Tensor, forwards: bool) -> Carried:
        """Solve from noise at t = T to data at t = 0, or with `forwards` the other way."""
        start = (x, score) if self.rate is None else (x, score, x.new_zeros(len(x)))
        times = (0.0, self.end) if forwards else (self.end, 0.0)
        given = [y for y in (self.context, self.end) if isinstance(y, Tensor)]
        params = [*self.velocity.parameters(), *given]
        solution = integrator.solve(self, start, *times, params)
        x, score, *paid = solution.state
        cost = paid[0] if paid else x.new_zeros(len(x))
        return Carried(x, score, cost if forwards else -cost, solution.nfe)


def pulled(outputs: Sequence[Tensor], x: Tensor, cotangents: Sequence[Tensor]) -> Tensor:
    """Return sum_i (dy_i/dx)^T c_i for outputs y_i, cotangents c_i; zero where none depends on x.

    The cotangents are constants, even where they were computed from x. The result has a graph where
    gradients are enabled.
    """
    kept = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad]
    if not kept:
        return torch.zeros_like(x)
    ys, cs = zip(*kept, strict=True)
    (out,) = torch.autograd.grad(
        ys, x, cs, create_graph=torch.is_grad_enabled(), allow_unused=True, materialize_grads=True
    )
    return out


def pulled_through(
    module: nn.Module, fn: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, score: Score
) -> Tensor:
    """Return (dy/dx)^T s(y) + grad_x sum(others) for (y, *others) = fn(x).

    It is evaluated in evaluation mode, in which no batch changes a module.

    Arguments:
        module: What computes `fn`.
        fn: A function of places (n, d).
        x: Places (n, d).
        score: The score s, a function of y.

    Raises:
        Incompatible: y has no gradient.
    """
    recorded, x = torch.is_grad_enabled(), leaf(x)
    with torch.enable_grad(), _evaluating(module):
        y, *others = fn(x)
    if not y.requires_grad:
        raise Incompatible(
            f"{type(module).__name__} computes without a gradient in x, so that its score is not "
            "known: a score needs a density that torch can differentiate"
        )
    cotangents = [score(y if recorded else y.detach()), *map(torch.ones_like, others)]
    return pulled((y, *others), x, cotangents)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, and then each of its parts back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def outside_inference(fn: Callable[..., Made], *given: Tensor | None) -> Made:
    """Return fn(*given), out of inference mode where that is on: a score is a gradient even there.

    Arguments:
        fn: What needs gradients.
        given: Its tensors; those made in inference mode can take no part in a graph, copies can.
    """
    if not torch.is_inference_mode_enabled():
        return fn(*given)
    with torch.inference_mode(False), torch.no_grad():
        return fn(*(None if y is None else y.clone() for y in given))
