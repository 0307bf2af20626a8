"""Checkpoints: a fit that is interrupted ends with the same bits."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tiny_flows import (
    BUSY,
    BlockByBlock,
    Killed,
    Loud,
    Reflow,
    Shift,
    chain,
    killed_at,
    running,
    same_weights,
    swirl,
    without_seconds,
)

from flowzoo.integrators import RK4
from flowzoo.objective import Likelihood
from flowzoo.settings import Optimizer, Schedule, Training
from flowzoo.traces import Hutchinson
from flowzoo.training import fitting
from flowzoo.training.checkpoint import Folder

COSINE = Training(
    batch_size=1000,
    optimizer=Optimizer("adamw", lr=0.02, weight_decay=0.1),
    schedule=Schedule("cosine", warmup=2),
    validate_every=7,
    criterion="loss",
    keep="last",
    precision="float64",
)


def hutchinson():
    return swirl(RK4(1), Hutchinson(noise="gaussian"))


CASES = {
    "one stage": (Shift, Loud),
    "three stages": (chain, BlockByBlock),
    "rounds on the same weights": (Shift, Reflow),
    "random probes": (hutchinson, Likelihood),
}


@pytest.mark.parametrize("training", [BUSY, COSINE], ids=["busy", "cosine"])
@pytest.mark.parametrize("case", CASES)
def test_a_fit_that_is_killed_twice_ends_with_the_same_bits(tmp_path, monkeypatch, case, training):
    monkeypatch.setattr(fitting, "ROW_EVERY", 3)
    make, objective = CASES[case]
    whole = running(make, objective, training)
    kept = {"folder": tmp_path, "checkpoint_every": 0.0}
    for step in (14, 24):
        with pytest.raises(Killed):
            running(make, objective, training, observe=killed_at(step), **kept)
        with (tmp_path / "curve.jsonl").open("a") as file:
            file.write('{"step": 10000, "of": "steps after the checkpoint"}\n{"ha')
        torch.rand(7)  # another process has another global generator
    resumed = running(make, objective, training, **kept)
    assert same_weights(whole.flow, resumed.flow)
    assert without_seconds(whole.curve) == without_seconds(resumed.curve)
    lines = (tmp_path / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == resumed.curve
    for name in ("steps", "samples", "nfe_forward", "stopped", "best_step", "best_validation"):
        assert getattr(whole, name) == getattr(resumed, name)


def test_what_validations_have_seen_is_resumed(tmp_path):
    # The rate is so small that nothing improves on the first validation.
    still = replace(BUSY, optimizer=Optimizer(lr=1e-30), patience=3)
    whole = running(Shift, Loud, still)
    assert (whole.steps, whole.stopped) == (16, "patience")
    rates = [row["lr"] / 1e-30 for row in whole.curve]
    assert rates == pytest.approx([1, 1, 0.7, 0.49])
    kept = {"folder": tmp_path, "checkpoint_every": 0.0}
    with pytest.raises(Killed):
        running(Shift, Loud, still, observe=killed_at(12), **kept)
    assert without_seconds(running(Shift, Loud, still, **kept).curve) == without_seconds(
        whole.curve
    )


@pytest.mark.parametrize("last", range(1, 13))
def test_every_step_can_be_the_last_that_was_saved(tmp_path, monkeypatch, last):
    saves = []
    save = Folder.save

    def until(self, state):
        saves.append(state)
        if len(saves) > last:
            raise Killed
        save(self, state)

    whole = running(chain, BlockByBlock, steps=12)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "save", until)
        with pytest.raises(Killed):
            running(chain, BlockByBlock, steps=12, folder=tmp_path, checkpoint_every=0.0)
    resumed = running(chain, BlockByBlock, steps=12, folder=tmp_path)
    assert same_weights(whole.flow, resumed.flow)
    assert without_seconds(whole.curve) == without_seconds(resumed.curve)


def test_seconds_go_on_where_they_were(tmp_path, monkeypatch):
    now = [0.0]

    def tick():
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(fitting.time, "monotonic", tick)
    kept = {"folder": tmp_path, "checkpoint_every": 0.0}
    with pytest.raises(Killed):
        running(Shift, Loud, observe=killed_at(20), **kept)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["spent"]["seconds"]
    now[0] += 1e6  # between the two runs
    resumed = running(Shift, Loud, **kept)
    assert saved < resumed.seconds < saved + 200


def test_a_finished_fit_is_not_done_again(tmp_path):
    first = running(chain, BlockByBlock, folder=tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    told, objective = [], BlockByBlock()
    again = running(chain, lambda: objective, folder=tmp_path, observe=told.append)
    assert same_weights(first.flow, again.flow)
    assert replace(first, flow=again.flow) == again
    assert (told, objective.begun) == ([], [])
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not again.flow.training


def test_checkpoints_keep_to_their_interval(tmp_path, monkeypatch):
    saves = []
    monkeypatch.setattr(Folder, "save", lambda self, state: saves.append(state))
    running(Shift, Loud, folder=tmp_path, checkpoint_every=1e9)
    assert [state["loop"] for state in saves] == [None]
