"""The objective `score`: denoising score matching, no ODE solved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible, UserError
from flowzoo.flow import Flow
from flowzoo.integrators import Evaluations
from flowzoo.objective import Batch, Loss, Objective, Stage
from flowzoo.registry import suggest
from flowzoo_matching.diffusion import ProbabilityFlow, probability_flow

TimeLaw = Literal["uniform", "debiased"]


class Score(Objective):
    """E |sigma s(t, x_t) + e|^2 / 2 with x_t = alpha x + sigma e, over data x, noise e and times t.

    The schedule, and what the network is of the score s, belong to the flow's velocity,
    `probability-flow`. The minimiser is the score of the noised data; the value at the minimum is
    not zero, and no measure of quality. It is a sum over dimensions, averaged over the batch.

    Arguments:
        times: Law of t between the velocity's `start` and 1. `debiased` has a density proportional
            to g^2 / sigma^2: with it the loss is, up to a constant and a factor, minus the evidence
            lower bound, and log(sigma / alpha) is spread evenly, so most times are near the data.
        hold: Below this time the density of `debiased` is constant: it would not be integrable.

    Raises:
        UserError: An unknown law of times.
        Incompatible: `hold` is not in (0, 1).

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., ICLR
        2021), https://arxiv.org/abs/2011.13456, equation (7) with the weight sigma^2; the debiased
        law: A Variational Perspective on Diffusion-Based Generative Models and Score Matching
        (Huang, Lim & Courville, NeurIPS 2021), https://arxiv.org/abs/2106.02808
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"times": "debiased"})

    def __init__(self, times: TimeLaw = "uniform", hold: float = 1e-3) -> None:
        if times not in (laws := ("uniform", "debiased")):
            raise UserError(f"score: unknown times '{times}'{suggest(times, laws)}")
        if not 0 < hold < 1:
            raise Incompatible(f"score: hold must be in (0, 1), got {hold}")
        self.times: TimeLaw = times
        self.hold = hold

    def stages(self, flow: Flow) -> Iterator[Stage]:
        """Yield the one stage: all parameters of the network.

        Raises:
            Incompatible: The flow is not one probability flow on the time interval [0, 1].
        """
        velocity = _velocity(flow)
        yield Stage(
            "score",
            list(velocity.parameters()),
            lambda batch, noise: self.loss(velocity, batch, noise),
        )

    def loss(
        self, velocity: ProbabilityFlow, batch: Batch, generator: torch.Generator | None = None
    ) -> Loss:
        """Return the loss on a batch: one evaluation of the network."""
        x, t = batch.x, self.draw_times(velocity, batch.x, generator)
        e = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        at = velocity.schedule.at(t[:, None])
        found = velocity.noise(t, torch.addcmul(at.alpha * x, at.sigma, e), batch.context)
        total = 0.5 * (found - e).square().sum(-1).mean()
        return Loss(total, {"score": total.detach()}, (Evaluations(forward=1),))

    def draw_times(
        self, velocity: ProbabilityFlow, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw a time of the diffusion for each row of x (n, d), as (n,)."""
        u = torch.rand(x.shape[0], dtype=x.dtype, device=x.device, generator=generator)
        return velocity.when(u) if self.times == "uniform" else self._debiased(velocity, u)

    def _debiased(self, velocity: ProbabilityFlow, u: Tensor) -> Tensor:
        """Return the times at which the distribution function is u (n,)."""
        schedule, start = velocity.schedule, velocity.start
        hold = max(self.hold, start)
        ends = torch.tensor([hold, 1.0], dtype=torch.float64)  # on the CPU: nothing waits for it
        at, (_, g_squared) = schedule.at(ends), schedule.rates(ends)
        low, high = (2 * (at.sigma / at.alpha).log()).tolist()
        density = float(g_squared[0] / at.sigma[0].square())
        flat = density * (hold - start)  # mass of [start, hold]; beyond it grows as log_ratio does
        mass = u * (flat + high - low)
        beyond = schedule.time_at(low + (mass - flat).clamp(min=0))
        return torch.where(mass < flat, start + mass / density, beyond).clamp(max=1)


def _velocity(flow: Flow) -> ProbabilityFlow:
    velocity = probability_flow(flow)
    if velocity is not None:
        return velocity
    if isinstance(flow, Continuous) and isinstance(flow.velocity, ProbabilityFlow):
        found = "a learned one" if flow.raw_end_time is not None else f"end_time {flow.end_time}"
        raise Incompatible(
            f"score's diffusion reaches the noise at time 1, but this flow has {found}: "
            "set end_time: 1 and train_end_time: false"
        )
    found = type(flow.velocity if isinstance(flow, Continuous) else flow).__name__
    raise Incompatible(
        f"score trains the network of a probability flow, and {found} is none: use the flow "
        "`continuous` with the velocity `probability-flow`"
    )
