"""Batches and seeds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from tiny_flows import fitted, points

from flowzoo.objective import Batch
from flowzoo.settings import Budget
from flowzoo.training.batches import Batches, seed_of, thinned


def test_an_epoch_is_a_permutation_without_the_rows_left_over():
    rows = torch.arange(10.0)[:, None]
    batches = Batches(Batch(rows, rows + 100), 3, seed=0)
    epochs = [[batches.at(3 * e + i) for i in range(3)] for e in range(2)]
    seen = [torch.cat([b.x for b in epoch]).flatten().tolist() for epoch in epochs]
    assert all(len(set(s)) == 9 and set(s) <= set(range(10)) for s in seen)
    assert seen[0] != seen[1]
    assert all(torch.equal(b.context, b.x + 100) for epoch in epochs for b in epoch)
    again = Batches(Batch(rows), 3, seed=0).at(4)
    assert torch.equal(again.x, epochs[1][1].x)


def test_data_smaller_than_a_batch_are_used_whole():
    data = points(7)
    assert torch.equal(Batches(data, 32, seed=0).at(5).x, data.x)
    assert fitted(train=data, budget=Budget(steps=3)).samples == 21


def test_a_batch_with_more_tensors_is_cut_alike():
    @dataclass(frozen=True)
    class Pairs(Batch):
        z: torch.Tensor | None = None

    rows = torch.arange(6.0)[:, None]
    batch = Batches(Pairs(rows, None, -rows), 2, seed=3).at(1)
    assert torch.equal(batch.z, -batch.x)


def test_thinned_rows_are_spread_evenly():
    rows = torch.arange(10.0)[:, None]
    assert thinned(Batch(rows), 4).x.flatten().tolist() == [0, 2, 5, 7]
    assert thinned(Batch(rows), 10).x is rows


def test_seeds_of_near_parts_are_far_apart():
    seeds = {seed_of(*parts) for parts in itertools.product(range(10), repeat=3)}
    assert len(seeds) == 1000
    assert seed_of(1, 23) != seed_of(12, 3)
    assert all(0 <= seed < 2**63 for seed in seeds)
