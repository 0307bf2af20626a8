"""The metric `elbo`: the bound on the likelihood that a score model has as a diffusion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowzoo.errors import UserError
from flowzoo.judge import Measure, Metric, Subject, mean
from flowzoo.judge.likelihood import density_change
from flowzoo.judge.measure import at_least_two
from flowzoo.judge.numerics import piece
from flowzoo.judge.solves import pieces
from flowzoo.judge.subject import AGAIN
from flowzoo.traces import Exact, TraceEstimator
from flowzoo_matching.diffusion import ProbabilityFlow, probability_flow

_STREAM = 4000  # of the generator of times and noise, apart from those of solves and samples


class ELBO(Metric):
    r"""Mean evidence lower bound of the test points, E log p_SDE(x) >= `elbo`, in nats per point.

    A score s makes two models: the probability flow, whose likelihood is `nll`, and the diffusion
    run backwards from N(0, I), which has this bound. With x_t the diffusion of x,

        log p_SDE(x) >= E log N(x_1; 0, I) + int E [d f - g^2 (|s|^2 / 2 + div s)] dt

    over times from the velocity's `start` on. The first two terms are in closed form. The last one
    is averaged over stratified times, one draw of x_t = m x + sqrt(v) e each, with
    (1 - v) div s + sqrt(v) e.s + (|e|^2 - d) / 2 in place of div s: by Stein's identity the mean is
    the same, and near the noise next to nothing of the variance is left. A point's draws are its
    own, so `sampling` includes their noise.

    The part `gap` is the mean log p of the probability flow less the bound, and `gap_error` half of
    its 99 % interval. It is no bound itself, as the flow is another model: with the exact score
    both are the data's law but for the end, and the gap is nearly zero; it may be negative.

    Arguments:
        times: Times for each point, one drawn uniformly in each of as many equal intervals.
        trace: How div s is computed; exactly when left out.
        subsample: Points that are solved again, for the solver's part of `gap_error`.

    Raises:
        UserError: There is no time, or the subsample is smaller than 2.

    References:
        A Variational Perspective on Diffusion-Based Generative Models and Score Matching (Huang,
        Lim & Courville, NeurIPS 2021), https://arxiv.org/abs/2106.02808
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"trace": "hutchinson", "times": 64})

    def __init__(
        self, times: int = 32, trace: TraceEstimator | None = None, subsample: int = AGAIN
    ) -> None:
        if times < 1:
            raise UserError(f"elbo needs at least 1 time for each point, got {times}")
        self.times, self.trace = times, Exact() if trace is None else trace
        self.subsample = at_least_two("elbo", subsample)

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `elbo`, or nothing for a flow that is not one probability flow."""
        flow = subject.refined
        if (velocity := probability_flow(flow)) is None:
            return {}
        bound = self._bound(subject, velocity) + subject.volume
        change = density_change(subject, self.subsample)
        gap = mean(subject.log_prob - bound, change, finer=subject.finer)
        parts = {"gap": gap.value} | ({} if gap.error is None else {"gap_error": gap.error})
        note = f"{self.times} stratified times for each point, {type(self.trace).__name__} trace"
        found = mean(bound, unit="nats", better="higher", parts=parts, note=note)
        return {"elbo": found}

    def _bound(self, subject: Subject, velocity: ProbabilityFlow) -> Tensor:
        """Return an unbiased estimate of the bound at each test point (n,), without the volume."""
        n, device = len(subject.x), subject.x.device
        generator = subject.generator(_STREAM)
        draws = torch.rand(n, self.times, generator=generator, dtype=torch.float64, device=device)
        t = velocity.when((torch.arange(self.times, device=device) + draws) / self.times)

        def rate(rows: Tensor) -> Tensor:
            x = subject.places(rows)
            context = None if subject.context is None else subject.context[rows].double()
            found = [self._rate(velocity, at, x, context, generator) for at in t[rows].unbind(1)]
            return torch.stack(found).mean(0)

        size = piece(subject.x.shape[1])
        rates = torch.cat(list(pieces(rate, n, size, device)))
        known = _ends(velocity, subject.places(torch.arange(n, device=device)))
        return known - (1 - velocity.start) * rates

    def _rate(
        self,
        velocity: ProbabilityFlow,
        t: Tensor,
        x: Tensor,
        context: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        """Return one draw of g^2 (|s|^2 / 2 + div s) at the diffusion's times t (n,), as (n,)."""
        m, v = _kernel(velocity, t)
        e = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        place = m[:, None] * x + v.sqrt()[:, None] * e
        probes = self.trace.probes(place, generator)
        evaluate = velocity.net.with_divergence if probes is None else velocity.net.at
        at, factor = evaluate(t, place, context), velocity.factor(t)
        score, divergence = factor[:, None] * at.v, factor * self.trace(at.jacobian, probes)
        stein = (1 - v) * divergence + v.sqrt() * (e * score).sum(-1)
        beside = 0.5 * (e.square() - 1).sum(-1)  # of mean 0
        return velocity.schedule.rates(t)[1] * (0.5 * score.square().sum(-1) + stein + beside)


def _kernel(velocity: ProbabilityFlow, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return m and v of the diffusion's law N(m x, v I) at times t, where it is at x at `start`."""
    at = velocity.schedule.at(t)
    begin = velocity.schedule.at(t.new_tensor(velocity.start))
    m = at.alpha / begin.alpha
    return m, (at.sigma.square() - (m * begin.sigma).square()).clamp(min=0)


def _ends(velocity: ProbabilityFlow, x: Tensor) -> Tensor:
    """Return E log N(x_1; 0, I) + d int f dt for places x (n, d), as (n,)."""
    m, v = _kernel(velocity, x.new_ones(()))
    square = m.square() * x.square().sum(-1)
    return -0.5 * square + x.shape[1] * (m.log() - 0.5 * v - 0.5 * math.log(2 * math.pi))
