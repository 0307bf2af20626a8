"""What a step of JKO-iFlow keeps for its backward pass, counted in bytes: no clock, no noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import torch
from jko_jobs import Bench, Case, adjoint, published
from machine import Machine
from torch import Tensor

from flowzoo.continuous import Continuous
from flowzoo.integrators import RK438, Integrator
from flowzoo.objective import Batch, Likelihood
from flowzoo.traces import TraceEstimator
from flowzoo_jko_iflow.growing import Growing
from flowzoo_jko_iflow.joint import FineTuning, joint_loss
from flowzoo_jko_iflow.objective import JKO
from flowzoo_jko_iflow.push import Pushed, push


class Tally:
    """Counts the bytes that are kept for a backward pass, each tensor's memory once.

    Arguments:
        known: What does not count: weights and points.
    """

    def __init__(self, known: list[Tensor]) -> None:
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.holders: dict[int, int] = {}
        self.bytes = self.peak = 0

    def kept(self, tensor: Tensor) -> _Kept:
        """Count a tensor until what is returned is gone."""
        return _Kept(self, tensor)

    def counting(self) -> Any:
        """Return a context in which everything kept is counted."""
        return torch.autograd.graph.saved_tensors_hooks(self.kept, lambda held: held.tensor)


class _Kept:
    def __init__(self, tally: Tally, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        # Of an output, the tensor itself would hold what holds it here.
        self.tally, self.tensor = tally, tensor.detach()
        self.key, self.size = storage.data_ptr(), storage.nbytes()
        if self.key in tally.known:
            return
        if not tally.holders.get(self.key):
            tally.bytes += self.size
            tally.peak = max(tally.peak, tally.bytes)
        tally.holders[self.key] = tally.holders.get(self.key, 0) + 1

    def __del__(self) -> None:
        if self.key in self.tally.known:
            return
        self.tally.holders[self.key] -= 1
        if not self.tally.holders[self.key]:
            self.tally.bytes -= self.size


Loss: TypeAlias = Callable[[Growing, Batch], Tensor]


def last_block(chain: Growing, batch: Batch) -> Tensor:
    """Return the loss of the last block on points that those before it have moved."""
    points = Pushed.of(batch)
    for block in chain.flows()[:-1]:
        push(block, points, chunk=len(points.x), seed=0)
    return JKO().loss(chain, chain.depth - 1, points).total


def end_to_end(chain: Growing, batch: Batch) -> Tensor:
    """Return the loss of all blocks at once."""
    return Likelihood().loss(chain, batch).total


def fine_tuned(chain: Growing, batch: Batch) -> Tensor:
    """Return the loss of fine-tuning, which recomputes."""
    return joint_loss(chain, FineTuning(), JKO().costs, batch).total


WAYS: dict[str, tuple[Loss, Callable[[int], Integrator]]] = {
    "block by block": (last_block, RK438),
    "block by block, recompute": (last_block, partial(RK438, recompute=True)),
    "block by block, adjoint": (last_block, adjoint),
    "end to end": (end_to_end, RK438),
    "fine-tuning": (fine_tuned, RK438),
}


def kept_bytes(way: str, trace: TraceEstimator, case: Case, blocks: int, machine: Machine) -> int:
    """Return the most bytes that a step of a chain keeps for its backward pass at any time."""
    loss, solver = WAYS[way]
    nets = [case.fresh().to(machine.device, machine.dtype) for _ in range(blocks)]
    chain = Growing([Continuous(net, solver(case.steps), trace) for net in nets])
    points = case.points(machine)
    tally = Tally([*chain.parameters(), points])
    with tally.counting():
        loss(chain.to(points), Batch(points)).backward()
    return tally.peak


def published_bytes(case: Case, adjoint: bool, machine: Machine) -> int:
    """Return the same of a published block, alone."""
    bench = Bench(replace(case, training=0), machine)
    tally = Tally([*bench.net.parameters(), bench.points])
    with tally.counting():
        bench.step(published(adjoint))
    return tally.peak
