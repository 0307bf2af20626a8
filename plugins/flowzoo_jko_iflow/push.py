"""Points on their way through a chain, and what a block does to them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowzoo.errors import Diverged
from flowzoo.flow import Flow, log_normal
from flowzoo.objective import Batch


@dataclass(frozen=True)
class Pushed(Batch):
    """Points that some blocks have moved, with the volume change of the way.

    Arguments:
        ladj: log abs det of the map so far (n,), in nats, by the flow's own solver and trace.
    """

    ladj: Tensor | None = None

    @classmethod
    def of(cls, data: Batch) -> Pushed:
        """Return points that no block has moved yet, in memory of their own."""
        return cls(data.x.clone(), data.context, data.x.new_zeros(data.x.shape[0]))


@dataclass(frozen=True)
class Moved:
    """What a block did to n points, as plain numbers.

    Arguments:
        nll: Mean negative log-likelihood of the flow that ends with this block, in nats.
        kl_decrease: By how much the block lowered KL(law of the points || N(0, I)), in nats.
        movement: (E|T(x) - x|^2)^(1/2), the length of the step in W2 if T is optimal.
        ratio: E|T(x) - x|^2 / E|T(x)|^2.
        round_trip: Mean of |T^-1(T(x)) - x|, on the first chunk; infinite where the block cannot be
            inverted there.
        nfe: Evaluations of the field for one point.
        seconds: What the push took, round trip apart.
    """

    nll: float
    kl_decrease: float
    movement: float
    ratio: float
    round_trip: float
    nfe: int
    seconds: float


@torch.no_grad()
def push(block: Flow, points: Pushed, chunk: int, seed: int) -> Moved:
    """Move points through a block, in place, chunk by chunk; return what it did to them.

    The memory needed beside the points is that of one chunk, however many blocks there are.

    Arguments:
        block: The block, in evaluation mode.
        points: The points, whose `x` and `ladj` are overwritten.
        chunk: How many points are moved at once.
        seed: Seed of the trace estimator, the same for the same points however they got there.
    """
    assert points.ladj is not None
    started, x, ladj = time.perf_counter(), points.x, points.ladj
    noise = torch.Generator(x.device).manual_seed(seed)
    sums, trip, nfe = x.new_zeros(4, dtype=torch.float64), 0.0, 0
    context = points.context if block.context_dim else None
    for i in range(0, len(x), chunk):
        rows = slice(i, i + chunk)
        given = None if context is None else context[rows]
        encoded = block.encode(x[rows], context=given, generator=noise)
        if not i:
            nfe = sum(solve.forward for solve in encoded.nfe)
            pause = time.perf_counter()
            trip = _round_trip(block, x[rows], encoded.z, given)
            started += time.perf_counter() - pause
        sums += _sums(x[rows], encoded.z, encoded.ladj, ladj[rows])
        x[rows], ladj[rows] = encoded.z, ladj[rows] + encoded.ladj
    nll, decrease, moved, square = (sums / len(x)).tolist()
    return Moved(
        nll=nll,
        kl_decrease=decrease,
        movement=math.sqrt(moved),
        ratio=moved / square if square else 0.0,
        round_trip=trip,
        nfe=nfe,
        seconds=time.perf_counter() - started,
    )


def _round_trip(block: Flow, x: Tensor, z: Tensor, context: Tensor | None) -> float:
    try:
        back = block.decode(z, context)
    except Diverged:  # a fact to be recorded, and no reason to give up the training
        return math.inf
    return float((back - x).norm(dim=-1).mean())


def _sums(x: Tensor, z: Tensor, ladj: Tensor, before: Tensor) -> Tensor:
    """Return sums over points: NLL, decrease of the KL, |T - x|^2, |T|^2."""
    log_prob = log_normal(z) + ladj
    rows = (
        -(log_prob + before),
        log_prob - log_normal(x),
        (z - x).square().sum(-1),
        z.square().sum(-1),
    )
    return torch.stack([row.sum(dtype=torch.float64) for row in rows])


def facts(train: Moved, held: Moved | None) -> dict[str, Any]:
    """Return what a record says of a block: of held-out points where there are any."""
    shown = train if held is None else held
    return {
        "nll": shown.nll,
        "kl_decrease": shown.kl_decrease,
        "movement": train.movement,
        "ratio": train.ratio,
        "round_trip": train.round_trip,
        "train_nll": train.nll,
        "push_nfe": train.nfe,
        "push_seconds": train.seconds + (held.seconds if held else 0.0),
    }
