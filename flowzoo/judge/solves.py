"""One solve of many points, in pieces that fit in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from flowzoo.errors import Incompatible
from flowzoo.field import Point
from flowzoo.flow import Encoded, Flow, log_normal
from flowzoo.judge.numerics import piece
from flowzoo.regularizers import RunningCost, Transport

T = TypeVar("T")
_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class Elapsed(RunningCost):
    """The time that a trajectory takes: T for a flow that ends at T, their sum for a chain."""

    def rate(self, at: Point, probes: Tensor | None) -> Tensor:
        """Return 1."""
        return torch.ones_like(at.v[:, 0])


@dataclass(frozen=True)
class Solved:
    """What a flow makes of points.

    Arguments:
        log_prob: Log-density (n,) in the data's coordinates, in nats, as float64.
        encoded: Noise, ladj and costs; None for a flow that only knows its density.
    """

    log_prob: Tensor
    encoded: Encoded | None = None


def running_costs(flow: Flow) -> tuple[RunningCost, ...]:
    """Return what is integrated along the way: transport cost and time, where there is a way."""
    costs = (Transport(), Elapsed())
    try:
        flow.requires(costs)
    except Incompatible:
        return ()
    return costs


def solve(
    flow: Flow,
    x: Tensor,
    context: Tensor | None,
    running: Sequence[RunningCost],
    generator: torch.Generator,
    volume: float,
) -> Solved:
    """Score points (n, d) by a flow, without gradients.

    Arguments:
        flow: The flow, with the numerics to use.
        x: Points, in the flow's coordinates.
        context: What they are conditioned on, (n, c).
        running: Costs to integrate along the way.
        generator: Source of the randomness of trace estimators.
        volume: Log-determinant of the map from the data's coordinates to the flow's, in nats.
    """

    def one(rows: Tensor) -> Encoded | Tensor:
        part = None if context is None else context[rows]
        if flow.latent:
            return flow.encode(x[rows], running, part, generator)
        return flow.log_prob(x[rows], part, generator)

    found = list(pieces(one, len(x), piece(x.shape[1]), x.device))
    encoded = [part for part in found if isinstance(part, Encoded)]
    if not encoded:
        densities = torch.cat([part for part in found if isinstance(part, Tensor)])
        return Solved(densities.double() + volume)
    z, ladj, costs = (torch.cat([getattr(e, k) for e in encoded]) for k in ("z", "ladj", "costs"))
    log_prob = log_normal(z.double()) + ladj.double() + volume
    return Solved(log_prob, Encoded(z, ladj, costs, tuple(n for e in encoded for n in e.nfe)))


def latent(solved: Solved) -> Encoded:
    """Return what points were encoded to.

    Raises:
        Incompatible: The flow only knows its density.
    """
    if solved.encoded is None:
        raise Incompatible("this flow only knows its density: it sends no point to noise")
    return solved.encoded


def brought(flow: Flow, device: torch.device, x: Tensor) -> tuple[Flow, torch.dtype]:
    """Return the flow, a copy where it lies elsewhere, and its precision.

    The precision is that of its weights, or that of the points x where it has none.
    """
    tensors = (*flow.parameters(), *flow.buffers())
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), x.dtype)
    here = all(t.device == device for t in tensors)
    return flow if here else copy.deepcopy(flow).to(device), dtype


def pieces(one: Callable[[Tensor], T], n: int, size: int, device: torch.device) -> Iterator[T]:
    """Yield what a function makes of the rows 0 ... n - 1, piece by piece, without gradients.

    A piece that does not fit in memory is tried again in halves, as are all after it.

    Arguments:
        one: What to do with some rows, given their indices.
        n: Number of rows.
        size: Rows in a piece.
        device: Where the indices are to lie.
    """
    start = 0
    while start < n:
        rows = torch.arange(start, min(start + size, n), device=device)
        try:
            with torch.no_grad():
                made = one(rows)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if size == 1 or not any(words in str(error).lower() for words in _MEMORY):
                raise
            size = (len(rows) + 1) // 2
            continue
        yield made
        start += len(rows)
