"""Continuous flows: the solution of dx/dt = v(t, x) from data at t = 0 to noise at t = 1."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from flowzoo.errors import Incompatible
from flowzoo.field import Point, Velocity
from flowzoo.flow import Decoded, Encoded, Flow
from flowzoo.integrators import RK4, Field, Integrator, State, Time
from flowzoo.maps import LinearMap
from flowzoo.regularizers import RunningCost
from flowzoo.score import Carried, Carrying, Rate, Score, outside_inference
from flowzoo.traces import Exact, TraceEstimator


class Continuous(Flow):
    """A flow along a velocity: z = x(T) with dx/dt = v(t, x), ladj = integral of div v.

    Arguments:
        velocity: The velocity v.
        integrator: How the ODE is stepped and differentiated; RK4 with 8 steps when left out.
        trace: How the divergence is computed; exactly when left out.
        end_time: The time T at which the noise is reached.
        train_end_time: True learns T, kept positive, from `end_time` on.
        evaluation: The integrator in evaluation mode (validation, samples, densities of a fitted
            flow), say the same one with more steps; `integrator` when left out. The judge has its
            own.

    Raises:
        Incompatible: The trace needs what the velocity does not provide, or redraws probes where
            the integrator does not number its stages.

    References:
        FFJORD (Grathwohl et al., ICLR 2019), https://arxiv.org/abs/1810.01367
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"velocity": {"name": "mlp", "hidden": [8]}},
        {
            "velocity": {"name": "gradient", "potential": {"name": "mlp", "hidden": [8]}},
            "train_end_time": True,
        },
        {
            "velocity": {"name": "mlp", "hidden": [8]},
            "integrator": "dopri5",
            "trace": "hutchinson",
        },
        {
            "velocity": {"name": "mlp", "hidden": [8]},
            "integrator": {"name": "rk4", "recompute": True},
            "trace": {"name": "hutchinson", "redraw": "stage"},
        },
        {
            "velocity": {"name": "mlp", "hidden": [8]},
            "integrator": {"name": "rk4", "steps": 8},
            "evaluation": {"name": "rk4", "steps": 16},
        },
    )

    def __init__(
        self,
        velocity: Velocity,
        integrator: Integrator | None = None,
        trace: TraceEstimator | None = None,
        end_time: float = 1.0,
        train_end_time: bool = False,
        evaluation: Integrator | None = None,
    ) -> None:
        super().__init__()
        self.velocity = velocity
        self.integrator = RK4() if integrator is None else integrator
        self.evaluation = evaluation
        self.trace = Exact() if trace is None else trace
        self.dim, self.context_dim = velocity.dim, velocity.context_dim
        if not end_time > 0:
            raise Incompatible(f"end_time must be positive, got {end_time}")
        self.end_time = end_time
        self.raw_end_time = (
            nn.Parameter(torch.tensor(math.log(math.expm1(end_time)))) if train_end_time else None
        )
        self._check()

    def requires(self, running: Sequence[RunningCost]) -> None:
        """Raise Incompatible where the velocity does not provide what a cost needs."""
        for cost in running:
            self._demand(cost, cost.needs)
            if cost.detached and self.raw_end_time is not None:
                raise Incompatible(
                    f"{type(cost).__name__} takes the points of the trajectory as constants, so it "
                    "cannot say how it changes with the end time: leave out detach, or "
                    "train_end_time"
                )

    def _check(self) -> None:
        self._demand(self.trace, self.trace.needs)
        for integrator in (self.integrator, self.evaluation):
            if self.trace.redraw == "stage" and integrator and integrator.evaluations is None:
                raise Incompatible(
                    f"{type(integrator).__name__} needs probes that stay fixed along a solve: "
                    "use redraw: solve, or a fixed grid such as rk4"
                )

    @property
    def solver(self) -> Integrator:
        """The integrator of the present mode, training or evaluation."""
        return self.integrator if self.training or self.evaluation is None else self.evaluation

    def _demand(self, part: object, needs: frozenset[str]) -> None:
        missing = needs - self.velocity.provides
        if missing:
            raise Incompatible(
                f"{type(part).__name__} needs {', '.join(sorted(missing))} of the velocity, which "
                f"{type(self.velocity).__name__} does not provide; the gradient of a potential does"
            )

    def encode(
        self,
        x: Tensor,
        running: Sequence[RunningCost] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """Send data to noise by one solve of (x, ladj, costs)."""
        if torch.is_inference_mode_enabled():  # divergences need gradients even there
            return outside_inference(lambda x, c: self.encode(x, running, c, generator), x, context)
        self.requires(running)
        probes = self._probes(x, generator)
        field = Augmented(self.velocity, self.trace, probes, running, context)
        start = _start(x, running)
        solution = self.solver.solve(field, start, 0.0, self._end(x), self._params(context))
        z, ladj, *costs = solution.state
        return Encoded(z, ladj, costs[0] if costs else x.new_zeros(x.shape[0], 0), (solution.nfe,))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Send noise to data: the same ODE backwards, the velocity alone."""
        return self.generate(z, (), context).x

    def generate(
        self, z: Tensor, running: Sequence[RunningCost] = (), context: Tensor | None = None
    ) -> Decoded:
        """Send noise to data and integrate costs on the way; no divergence is computed."""
        if torch.is_inference_mode_enabled():  # a potential's velocity is a gradient
            return outside_inference(lambda z, c: self.generate(z, running, c), z, context)
        self.requires(running)
        field, start = self._moving(context), (z,)
        if running:
            field, start = (
                Augmented(self.velocity, None, [None], running, context),
                _start(z, running),
            )
        solution = self.solver.solve(field, start, self._end(z), 0.0, self._params(context))
        x, *rest = solution.state
        costs = -rest[1] if running else z.new_zeros(z.shape[0], 0)  # paid from data to noise
        return Decoded(x, costs, (solution.nfe,))

    def carry_score(
        self,
        x: Tensor,
        score: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        forwards: bool = False,
        rate: Rate | None = None,
    ) -> Carried:
        """Carry points and the score of their law along the trajectories, by one solve of both.

        Arguments:
            x: Noise (n, d), which goes to data; with `forwards` data, which goes to noise.
            score: The score there (n, d).
            context: What the velocity is conditioned on, (n, c).
            generator: Source of the randomness of the trace.
            forwards: From t = 0 to T instead of from T to 0.
            rate: A cost per unit time to integrate on the way, (t / T, x, v, s) -> (n,).
        """

        def carry(x: Tensor, score: Tensor, context: Tensor | None) -> Carried:
            probes, end = self._probes(x, generator), self._end(x)
            field = Carrying(self.velocity, self.trace, probes, context, end, rate)
            return field.carried(self.solver, x, score, forwards)

        return outside_inference(carry, x, score, context)

    def _pull_score(
        self, x: Tensor, score: Score, context: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """Send the points to noise, and carry the score back."""
        moving, params = self._moving(context), self._params(context)
        (z,) = self.solver.solve(moving, (x,), 0.0, self._end(x), params).state
        return self.carry_score(z, score(z), context, generator).score

    def _moving(self, context: Tensor | None) -> Field:
        """Return the velocity alone, as the right-hand side of a solve."""

        def moving(t: Tensor, state: State, stage: int = 0) -> State:
            return (self.velocity(t, state[0], context),)

        return moving

    def with_numerics(
        self, integrator: Integrator | None = None, trace: TraceEstimator | None = None
    ) -> Continuous:
        """Return this flow, weights shared, with another integrator or trace."""
        other = copy.copy(self)
        if integrator is not None:
            other.integrator, other.evaluation = integrator, None
        other.trace = self.trace if trace is None else trace
        other._check()
        return other

    def _probes(self, x: Tensor, generator: torch.Generator | None) -> list[Tensor | None]:
        draws = self.solver.evaluations if self.trace.redraw == "stage" else None
        return [self.trace.probes(x, generator) for _ in range(draws or 1)]

    def _end(self, like: Tensor) -> Time:
        if self.raw_end_time is None:
            return self.end_time
        return softplus(self.raw_end_time).to(like.dtype)

    def _params(self, context: Tensor | None) -> tuple[Tensor, ...]:
        params = tuple(self.velocity.parameters())
        return params if context is None else (*params, context)


class Augmented:
    """The right-hand side of one solve: d/dt (x, ladj, costs) = (v, div v, rates).

    It holds what belongs to the solve (context, probes), so that nothing of a solve is kept on the
    flow: two solves before one backward pass do not disturb each other. It reads the places alone.

    Arguments:
        velocity: The velocity v.
        trace: How its divergence is computed; None leaves ladj at 0.
        probes: Its probes, one entry for the whole solve or one per numbered stage.
        running: Costs, one more column of the state each.
        context: What the velocity is conditioned on, (n, c).
    """

    reads = 1

    def __init__(
        self,
        velocity: Velocity,
        trace: TraceEstimator | None,
        probes: Sequence[Tensor | None],
        running: Sequence[RunningCost],
        context: Tensor | None,
    ) -> None:
        self.velocity, self.trace, self.probes = velocity, trace, probes
        self.running, self.context = running, context
        self.detached = any(cost.detached for cost in running)

    def __call__(self, t: Tensor, state: State, stage: int = 0) -> State:
        """Return the derivative of the state at time t; `stage` says which probes to use."""
        probes = self.probes[stage if len(self.probes) > 1 else 0]
        at = self._at(t, state[0], probes)
        ladj = torch.zeros_like(state[1])
        if self.trace is not None:
            ladj = self.trace.divergence(self.velocity, at, probes, self.context)
        if not self.running:
            return at.v, ladj
        still = at
        if self.detached and torch.is_grad_enabled():
            still = self.velocity.at(t, state[0].detach(), self.context)
        rates = [cost.rate(still if cost.detached else at, probes) for cost in self.running]
        return at.v, ladj, torch.stack(rates, -1)

    def _at(self, t: Tensor, x: Tensor, probes: Tensor | None) -> Point:
        """Return what will be asked for at (t, x)."""
        if self.trace is not None and not (self.running or self.trace.differentiates):
            return Point(t, x, self.velocity(t, x, self.context), _Unasked())
        whole = self.trace is not None and probes is None  # without probes it is the trace itself
        evaluate = self.velocity.with_divergence if whole else self.velocity.at
        return evaluate(t, x, self.context)


class _Unasked(LinearMap):
    """The Jacobian where a trace has declared to need none."""

    def vjp(self, p: Tensor) -> Tensor:
        raise Incompatible("a trace that takes products with the Jacobian must not say otherwise")

    jvp = vjp

    def dense(self) -> Tensor:
        return self.vjp(torch.empty(0))


def _start(x: Tensor, running: Sequence[RunningCost]) -> State:
    start = (x, x.new_zeros(x.shape[0]))
    return (*start, x.new_zeros(x.shape[0], len(running))) if running else start
