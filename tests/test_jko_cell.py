"""A benchmark cell of JKO: killed, run again, and scored again from its file."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from fake_matrices import make

from flowzoo.bench import load_matrix
from flowzoo.bench.cell import run_cell
from flowzoo.bench.store import Store
from flowzoo.bench.trained import load_flow
from flowzoo_jko_iflow.objective import JKO

RECIPE = """
  blocks:
    title: Blocks
    flow:
      name: growing
      blocks:
        repeat: 6
        of:
          name: continuous
          velocity: {name: mlp, hidden: [4]}
          integrator: {name: rk4-38, steps: 2}
          trace: hutchinson
    objective:
      name: jko
      reparametrise: {rounds: 1, even: 0.0, tail: 0.01}
      refine: {factor: 2}
    training: {batch_size: 50, validate_every: 20, criterion: loss}
    budget: {steps: 60}
"""


@pytest.fixture
def cell(tmp_path):
    """Return a maker of the cell with a folder of its own."""
    path = make(tmp_path, "flows: [blocks]\ndata: [blob]\nmetrics: [nll]\n")
    with (tmp_path / "mine.yaml").open("a") as file:
        file.write(RECIPE)

    def planned(name):
        store = Store(tmp_path / name)
        (one,) = store.plan(load_matrix(path))
        return one, store.path(one)

    return planned


def watched(monkeypatch, fail_at=None):
    """Count the losses of every pass and block; the process dies at one of them."""
    seen, loss = Counter(), JKO.loss

    def counted(self, chain, k, batch, generator=None):
        if torch.is_grad_enabled():
            seen[chain.passes, k + 1] += 1
            if fail_at == (chain.passes, k + 1, seen[chain.passes, k + 1]):
                raise RuntimeError("killed")
        return loss(self, chain, k, batch, generator)

    monkeypatch.setattr(JKO, "loss", counted)
    return seen


def test_a_cell_that_was_killed_goes_on_and_is_read_from_its_file(cell, monkeypatch):
    one, folder = cell("whole")
    whole = run_cell(one, folder)
    one, folder = cell("cut")
    with monkeypatch.context() as patch:
        watched(patch, (1, 3, 2))
        assert run_cell(one, folder).reason == "RuntimeError: killed"
    with monkeypatch.context() as patch:
        seen = watched(patch)
        again = run_cell(one, folder)
    assert [row["stage"] for row in whole.stages[:3]] == ["block 1", "block 2", "block 3"]
    assert {(1, 1), (1, 2)}.isdisjoint(seen)
    assert seen[1, 3] == whole.stages[2]["steps"]
    assert (again.state, again.metrics) == ("ok", whole.metrics)
    assert [row["nll"] for row in again.stages] == [row["nll"] for row in whole.stages]

    def refuse(*_, **__):
        raise AssertionError("fitted again")

    monkeypatch.setattr("flowzoo.bench.phases.fit", refuse)
    scored = run_cell(one, folder)
    assert (scored.state, scored.metrics, scored.stages) == ("ok", again.metrics, again.stages)
    flow = load_flow(folder)
    blocks = len([row for row in whole.stages if row["stage"].endswith("refined 1")])
    assert (flow.depth, flow.passes) == (blocks, 3)
    windows = [(block.velocity.part, block.velocity.parts) for block in flow.flows()]
    assert windows == [(0, 2), (1, 2)] * (blocks // 2)
