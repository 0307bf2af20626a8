"""What the judge looks at: a trained flow on test points, solved once by the judge's numerics.

The judge uses the exact trace and an adaptive solver at a stated tolerance, whatever the flow was
trained with. Every metric reads the same solve.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from flowzoo.errors import Diverged, Incompatible
from flowzoo.flow import Encoded, Flow, log_normal
from flowzoo.judge.measure import Measure, Metric
from flowzoo.odeint import Dopri5
from flowzoo.regularizers import Transport
from flowzoo.traces import Exact

TOLERANCE = 1e-5


class Standardised(Protocol):
    """The affine map between the data's published coordinates and the flow's."""

    @property
    def ladj(self) -> float:
        """log abs det of the map from the data's coordinates to the flow's, in nats."""
        ...


class Points(Protocol):
    """Test points and what is known of their law, in the flow's coordinates."""

    @property
    def test(self) -> Tensor:
        """Test points (n, d)."""
        ...

    @property
    def test_context(self) -> Tensor | None:
        """What they are conditioned on, (n, c)."""
        ...

    @property
    def log_prob(self) -> Callable[[Tensor], Tensor] | None:
        """Their true log-density, (n, d) -> (n,) in nats, where it is known."""
        ...

    @property
    def transport_cost(self) -> float | None:
        """The least transport cost to N(0, I), where it is known."""
        ...


class Subject:
    """A flow under judgement.

    Arguments:
        flow: The trained flow, with the numerics it was trained with.
        data: Test points, in the flow's coordinates.
        scale: The map from the data's published coordinates, None where they are the flow's.
        device: Where to compute.
        seed: Seed of every random choice.
    """

    def __init__(
        self,
        flow: Flow,
        data: Points,
        scale: Standardised | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        self.flow, self.data, self.scale, self.seed = flow.to(device).eval(), data, scale, seed
        like = next(iter(flow.parameters()), torch.empty(0))
        self.x = data.test.to(device=device, dtype=like.dtype)
        context = data.test_context
        self.context = None if context is None else context.to(device=device, dtype=like.dtype)

    @property
    def volume(self) -> float:
        """The log-determinant of the standardisation, in nats."""
        return 0.0 if self.scale is None else float(self.scale.ladj)

    def generator(self) -> torch.Generator:
        """Return a fresh source of randomness, the same at every call."""
        return torch.Generator(self.x.device).manual_seed(self.seed)

    def rows(self, n: int) -> Tensor:
        """Return the indices of n test points chosen at random, or of all where there are fewer."""
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.seed))
        return order[:n].to(self.x.device)

    @cached_property
    def judged(self) -> Flow:
        """The flow with the judge's numerics."""
        return self.flow.with_numerics(Dopri5(TOLERANCE, TOLERANCE), Exact())

    @cached_property
    def refined(self) -> Flow:
        """A float64 copy of the flow, solved at a tolerance a hundred times tighter."""
        fine = TOLERANCE / 100
        return copy.deepcopy(self.flow).double().with_numerics(Dopri5(fine, fine), Exact())

    @cached_property
    def encoded(self) -> Encoded:
        """All test points sent to noise, with the transport cost where there is a trajectory."""
        return self.encode(self.judged, self.x, self.context)

    @cached_property
    def log_prob(self) -> Tensor:
        """log p (n,) of the test points in the data's coordinates, in nats."""
        return log_normal(self.encoded.z) + self.encoded.ladj + self.volume

    def encode(self, flow: Flow, x: Tensor, context: Tensor | None) -> Encoded:
        """Send points (n, d) to noise in pieces that fit in memory, without gradients."""
        costs = [Transport()]
        try:
            flow.requires(costs)
        except Incompatible:
            costs = []
        pieces: list[Encoded] = []
        with torch.no_grad():
            for rows in torch.arange(len(x), device=x.device).split(piece(x.shape[1])):
                part = None if context is None else context[rows]
                pieces.append(flow.encode(x[rows], costs, part, self.generator()))
        z, ladj, cost = (torch.cat([getattr(p, k) for p in pieces]) for k in ("z", "ladj", "costs"))
        return Encoded(z, ladj, cost, tuple(n for p in pieces for n in p.nfe))


def piece(dim: int) -> int:
    """Return how many points to solve at once: an exact trace holds dim rows for each point."""
    return max(16, min(4096, 2**21 // dim**2))


def evaluate(
    flow: Flow,
    data: Points,
    scale: Standardised | None = None,
    metrics: Sequence[Metric] = (),
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> dict[str, Measure]:
    """Score a flow on test points.

    Arguments:
        flow: The trained flow.
        data: Test points, in the flow's coordinates.
        scale: The map from the data's published coordinates, if any.
        metrics: What to measure.
        device: Where to compute.
        seed: Seed of every random choice.

    Returns:
        Measures by name.

    Raises:
        Diverged: A number is not finite, or the judge's solver gave up.
    """
    subject = Subject(flow, data, scale, device, seed)
    measures: dict[str, Measure] = {}
    for metric in metrics:
        measures |= metric.measure(subject)
    bad = [name for name, measure in measures.items() if not measure.finite]
    if bad:
        raise Diverged(f"the metric {bad[0]} is {measures[bad[0]].value}, which is not a number")
    return measures
