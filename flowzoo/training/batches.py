"""Batches and random numbers that depend on the step alone: a resumed fit repeats exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TypeAlias

import torch
from torch import Tensor

from flowzoo.objective import Batch

RandomState: TypeAlias = dict[str, Tensor]


def seed_of(*parts: int | str) -> int:
    """Return a seed below 2^63: a hash of the parts, so that near parts give far seeds."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def each(data: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Return the points with `change` applied to every tensor of theirs.

    A subclass of Batch may carry more tensors of n rows (pairs, weights): they follow.
    """
    found = {entry.name: getattr(data, entry.name) for entry in fields(data)}
    return replace(data, **{k: change(v) for k, v in found.items() if isinstance(v, Tensor)})


def thinned(data: Batch, rows: int) -> Batch:
    """Return at most so many rows, evenly spaced: of sorted data as much as of shuffled."""
    n = data.x.shape[0]
    if n <= rows:
        return data
    kept = torch.arange(rows, device=data.x.device) * n // rows
    return each(data, lambda values: values[kept])


class Batches:
    """The batches of a stage: each epoch is a permutation of the rows that its number determines.

    All batches have the same size: the rows left over at the end of an epoch are dropped (the next
    epoch permutes anew), and data smaller than a batch are used whole.

    Arguments:
        data: The stage's points.
        size: Points in a batch.
        seed: Seed of the stage.
    """

    def __init__(self, data: Batch, size: int, seed: int) -> None:
        n = data.x.shape[0]
        self.data, self.size, self.seed = data, min(size, n), seed
        self.per_epoch = n // self.size
        self._epoch, self._order = -1, torch.empty(0)

    def at(self, step: int) -> Batch:
        """Return the batch of a step of the stage, counted from 0."""
        n = self.data.x.shape[0]
        if self.size == n:
            return self.data
        epoch, i = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._permutation(n, epoch)
        rows = self._order[i * self.size : (i + 1) * self.size]
        return each(self.data, lambda values: values.index_select(0, rows))

    def _permutation(self, n: int, epoch: int) -> Tensor:
        # Drawn on the CPU, so that every device sees the same batches.
        generator = torch.Generator().manual_seed(seed_of(self.seed, "epoch", epoch))
        order, device = torch.randperm(n, generator=generator), self.data.x.device
        if device.type == "cuda":  # only a copy from pinned memory does not wait for the device
            order = order.pin_memory()
        return order.to(device, non_blocking=True)


@contextmanager
def own_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's global generators inside, and leave them as they were outside."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[_index(device)] if cuda else []):
        set_random_state(
            {"cpu": torch.Generator().manual_seed(seed).get_state()}
            | ({"cuda": torch.Generator(device).manual_seed(seed).get_state()} if cuda else {}),
            device,
        )
        yield


def random_state(device: torch.device) -> RandomState:
    """Return the state of torch's global generators."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: RandomState, device: torch.device) -> None:
    """Set the state of torch's global generators, as far as it was saved."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
