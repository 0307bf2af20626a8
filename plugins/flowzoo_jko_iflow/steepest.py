"""The regulariser `steepest-descent`: a velocity that descends the divergence from the noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible, UserError
from flowzoo.flow import Chain, Flow
from flowzoo.integrators import Evaluations
from flowzoo.regularizers import FlowCost


class SteepestDescent(FlowCost):
    r"""How far a flow is from the steepest descent of KL(p_t || N(0, I)), integrated on the way:

        R = integral of w(t) |v(t, x_t) + x_t + s_t|^2 dt,    w(t) = (k + 1) (1 - t / T)^k

    The steepest field is v = -x - s with the score s = grad log p_t: the limit of JKO steps of size
    0, and the probability flow of an Ornstein-Uhlenbeck process. The score of the data is not
    known. So s_t is that of the model, which is -z at the noise z and is carried back from there
    along the trajectory. A small R thus asks for a velocity that agrees with the model's own
    density, and the likelihood for a density that agrees with the data.

    At the noise x + s = 0, so that R asks for a flow that comes to rest there, which the steepest
    descent does after an infinite time only. Hence the weight: its mean is 1, and with `fade` k it
    falls to zero at the noise. In a chain of continuous flows t / T runs over all of it, an equal
    part for each block.

    It costs a solve of (x, s, R), whose evaluations take a gradient of the divergence: a derivative
    more than the likelihood. With a Hutchinson trace the score is unbiased, and R is larger by its
    variance.

    Arguments:
        weight: The factor in the objective.
        fade: The power k of the weight; 0 counts all times alike, 1 falls linearly.

    Raises:
        UserError: fade is negative.

    References:
        Normalizing flow neural networks by JKO scheme (Xu, Cheng & Xie, NeurIPS 2023),
        https://arxiv.org/abs/2212.14424, equations (9) to (12): the small-step limit; The
        Variational Formulation of the Fokker-Planck Equation (Jordan, Kinderlehrer & Otto, 1998)
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"fade": 0})

    def __init__(self, weight: float = 1.0, fade: int = 1) -> None:
        super().__init__(weight)
        if fade < 0:
            raise UserError(f"steepest-descent: fade must not be negative, got {fade}")
        self.fade = fade

    def requires(self, flow: Flow) -> None:
        """Raise Incompatible where the flow has other parts than continuous ones."""
        for block in _blocks(flow):
            if not isinstance(block, Continuous):
                raise Incompatible(
                    "steepest-descent follows trajectories, which a "
                    f"{type(block).__name__} does not have: use a continuous flow or a chain of "
                    "such"
                )

    def cost(
        self,
        flow: Flow,
        x: Tensor,
        z: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, tuple[Evaluations, ...]]:
        """Return R (n,), and what its solves took.

        Raises:
            Incompatible: The flow has other parts than continuous ones.
        """
        self.requires(flow)
        blocks = list(_blocks(flow))
        places, score, cost = z, -z, z.new_zeros(len(z))
        nfe: tuple[Evaluations, ...] = ()
        for k in reversed(range(len(blocks))):
            block, rate = blocks[k], partial(self._rate, k, len(blocks))
            given = context if block.context_dim else None
            way = block.carry_score(places, score, given, generator, rate=rate)
            places, score, cost, nfe = way.x, way.score, cost + way.cost, (*nfe, way.nfe)
        return cost, nfe

    def _rate(self, k: int, n: int, t: Tensor, x: Tensor, v: Tensor, s: Tensor) -> Tensor:
        left = 1 - (k + t) / n
        return (self.fade + 1) * left**self.fade * residual(x, v, s)


def residual(x: Tensor, v: Tensor, score: Tensor) -> Tensor:
    """Return |v - (-x - s)|^2 as (n,) for places, velocities and scores (n, d)."""
    return (v + x + score).square().sum(-1)


def _blocks(flow: Flow) -> Iterator[Any]:
    """Yield the flows that a flow is a chain of, first the one next to the data."""
    if not isinstance(flow, Chain):
        yield flow
        return
    for block in flow.flows():
        yield from _blocks(block)
