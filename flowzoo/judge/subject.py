"""What the judge looks at: a trained flow on test points, solved once by the judge's numerics.

The judge uses the exact trace and an adaptive solver at a stated tolerance, whatever the flow was
trained with. Every metric reads the same solve, and the same finer solve of a subsample.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from flowzoo.errors import Diverged, Incompatible, UserError
from flowzoo.field import Point
from flowzoo.flow import Encoded, Flow, log_normal
from flowzoo.odeint import Dopri5
from flowzoo.regularizers import RunningCost, Transport
from flowzoo.traces import Exact

TOLERANCE = 1e-5
FINER = 100.0  # the finer solve's tolerance is that of the judge divided by this
AGAIN = 200  # test points that are solved again, for the solver's error
OWN = 1000  # test points on which the flow's own numerics are tried


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


class Elapsed(RunningCost):
    """The time that a trajectory takes: T for a flow that ends at T, their sum for a chain."""

    def rate(self, at: Point, probes: Tensor | None) -> Tensor:
        """Return 1."""
        return torch.ones_like(at.v[:, 0])


class Subject:
    """A flow under judgement.

    The flow is neither changed nor moved; where it lies on another device it is copied.

    Arguments:
        flow: The trained flow, in evaluation mode, with the numerics it was trained with.
        data: Test points, in the flow's coordinates.
        scale: The map from the data's published coordinates, None where they are the flow's.
        device: Where to compute.
        seed: Seed of every random choice.
        tolerance: Relative and absolute tolerance of the judge's solver.

    Raises:
        UserError: There are no test points.
    """

    def __init__(
        self,
        flow: Flow,
        data: Points,
        scale: Standardised | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
        tolerance: float = TOLERANCE,
    ) -> None:
        if not len(data.test):
            raise UserError("there are no test points to judge a flow on; give at least one")
        self.flow = _brought(flow, torch.device(device))
        self.data, self.scale, self.seed, self.tolerance = data, scale, seed, tolerance
        dtype = _dtype(flow, data.test)
        self.x = data.test.to(device=device, dtype=dtype)
        context = data.test_context
        self.context = None if context is None else context.to(device=device, dtype=dtype)
        self._kept: dict[tuple[str, int], tuple[Tensor, Encoded]] = {}

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

    def places(self, rows: Tensor) -> Tensor:
        """Return test points as float64, not rounded to the flow's precision as those of `x`."""
        test = self.data.test
        return test[rows.to(test.device)].to(self.x.device, torch.float64)

    @cached_property
    def running(self) -> tuple[RunningCost, ...]:
        """What is integrated along the way: transport cost and time, where there is a way."""
        costs = (Transport(), Elapsed())
        try:
            self.flow.requires(costs)
        except Incompatible:
            return ()
        return costs

    @cached_property
    def judged(self) -> Flow:
        """The flow with the judge's numerics; the flow itself where it takes no others."""
        return self.flow.with_numerics(Dopri5(self.tolerance, self.tolerance), Exact())

    @cached_property
    def refined(self) -> Flow:
        """A float64 copy of the flow, solved at a tolerance a hundred times tighter."""
        fine = self.tolerance / FINER
        return copy.deepcopy(self.flow).double().with_numerics(Dopri5(fine, fine), Exact())

    @property
    def numerics(self) -> str:
        """By what the test points are solved, in a clause."""
        if self.judged is self.flow:
            return "the flow's own numerics, as it takes no others"
        return f"exact trace, dopri5 at {self.tolerance:g}"

    @cached_property
    def encoded(self) -> Encoded:
        """All test points sent to noise by the judge, with the costs of `running`."""
        return self._solved(self.judged, self.tolerance, self.x, self.context)

    def again(self, n: int) -> tuple[Tensor, Encoded]:
        """Return the indices of n test points, and what the finer solve makes of them."""
        key = ("again", min(n, len(self.x)))
        if key not in self._kept:
            rows = self.rows(n)
            context = None if self.context is None else self.context[rows].double()
            fine = self._solved(self.refined, self.tolerance / FINER, self.places(rows), context)
            self._kept[key] = (rows, fine)
        return self._kept[key]

    def own(self, n: int) -> tuple[Tensor, Encoded]:
        """Return the indices of n test points, and what the flow's own numerics make of them."""
        key = ("own", min(n, len(self.x)))
        if key not in self._kept:
            rows = self.rows(n)
            context = None if self.context is None else self.context[rows]
            self._kept[key] = (rows, self.encode(self.flow, self.x[rows], context))
        return self._kept[key]

    @cached_property
    def log_prob(self) -> Tensor:
        """log p (n,) of the test points in the data's coordinates, in nats, as float64.

        Raises:
            Diverged: It is not finite at some points.
        """
        log_prob = self.density(self.encoded)
        bad = int((~log_prob.isfinite()).sum())
        if bad:
            raise Diverged(f"{bad} of {len(log_prob)} test points have no finite log-density")
        return log_prob

    def density(self, encoded: Encoded) -> Tensor:
        """Return log p (n,) of encoded points in the data's coordinates, in nats, as float64."""
        return log_normal(encoded.z.double()) + encoded.ladj.double() + self.volume

    def encode(
        self, flow: Flow, x: Tensor, context: Tensor | None, running: Sequence[RunningCost] = ()
    ) -> Encoded:
        """Send points (n, d) to noise in pieces that fit in memory, without gradients."""
        generator = self.generator()
        pieces: list[Encoded] = []
        with torch.no_grad():
            for rows in torch.arange(len(x), device=x.device).split(piece(x.shape[1])):
                part = None if context is None else context[rows]
                pieces.append(flow.encode(x[rows], running, part, generator))
        z, ladj, cost = (torch.cat([getattr(p, k) for p in pieces]) for k in ("z", "ladj", "costs"))
        return Encoded(z, ladj, cost, tuple(n for p in pieces for n in p.nfe))

    def _solved(self, flow: Flow, tolerance: float, x: Tensor, context: Tensor | None) -> Encoded:
        try:
            return self.encode(flow, x, context, self.running)
        except Diverged as error:
            reason = str(error).partition(";")[0]
            raise Diverged(
                f"the judge's solver gave up at a tolerance of {tolerance:g} ({reason}): the "
                "trained flow is too stiff, or not finite, near some test points"
            ) from error


def piece(dim: int) -> int:
    """Return how many points to solve at once: an exact trace sends dim rows for each of them.

    2^14 rows through layers of 860 units take 0.4 GB, or 0.7 GB where v is a gradient.
    """
    return max(16, min(4096, 2**14 // dim))


def _brought(flow: Flow, device: torch.device) -> Flow:
    here = all(t.device == device for t in (*flow.parameters(), *flow.buffers()))
    return flow if here else copy.deepcopy(flow).to(device)


def _dtype(flow: Flow, x: Tensor) -> torch.dtype:
    """Return the precision of the flow's weights, or of the data where it has none."""
    tensors = (*flow.parameters(), *flow.buffers())
    return next((t.dtype for t in tensors if t.is_floating_point()), x.dtype)
