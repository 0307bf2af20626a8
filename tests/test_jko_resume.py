"""JKO interrupted: blocks that are done are not trained again, and the result is the same."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from jko_chains import QUICK, cloud, grown, same_weights, trained
from tiny_flows import Killed, killed_at, without_seconds

from flowzoo.errors import UserError
from flowzoo.settings import Optimizer, Schedule
from flowzoo.traces import Hutchinson
from flowzoo.training import fitting
from flowzoo.training.checkpoint import Folder
from flowzoo_jko_iflow import joint
from flowzoo_jko_iflow import objective as jko
from flowzoo_jko_iflow.joint import FineTuning
from flowzoo_jko_iflow.objective import JKO
from flowzoo_jko_iflow.steps import Refinement, Reparametrisation, Steps
from flowzoo_jko_iflow.stopping import Stopping

# Everything that has a memory: moments, averages, a schedule, best weights.
BUSY = replace(
    QUICK,
    optimizer=Optimizer(lr=0.03),
    schedule=Schedule("cosine", warmup=2),
    ema=0.8,
    clip=1.0,
    validate_every=2,
)


class Counting(JKO):
    """JKO that counts the training losses of every pass and block, and what is begun and pushed."""

    def __init__(self, **options):
        super().__init__(**options)
        self.losses, self.pushed = Counter(), []

    def loss(self, chain, k, batch, generator=None):
        if torch.is_grad_enabled():
            self.losses[chain.passes, k + 1] += 1
        return super().loss(chain, k, batch, generator)

    def _pushed(self, chain, k, data):
        self.pushed.append(k + 1)
        return super()._pushed(chain, k, data)


ALL = {
    "steps": Steps(0.5, 1.2),
    "reparametrise": Reparametrisation(1, even=0.0, tail=0.05),
    "refine": Refinement(),
    "fine_tune": FineTuning(0.25),
}
CASES = {
    "plain": ({}, 24),
    "all": (ALL, 32),
    "tuned": ({"fine_tune": FineTuning(0.25)}, 24),
    "stopped": ({"stop": Stopping(1e9, None), "fine_tune": FineTuning(0.25)}, 16),
}


def run(options, steps, **more):
    """Fit a new chain with a random trace; return objective and result."""
    flow = grown(4, steps=1, trace=Hutchinson(noise="gaussian"))
    objective = Counting(**{"diffusion": 1e-3, "chunk": 70, **options})
    more = {"validation": cloud(40, seed=1), "training": BUSY, **more}
    return objective, trained(flow, objective, steps, **more)


def plain(rows):
    """Return the stages' rows without what a clock says."""
    return [{k: v for k, v in row.items() if k != "push_seconds"} for row in without_seconds(rows)]


def same(a, b):
    assert same_weights(a.flow, b.flow)
    assert (a.flow.depth, a.flow.planned, a.flow.passes) == (
        b.flow.depth,
        b.flow.planned,
        b.flow.passes,
    )
    assert plain(a.stages) == plain(b.stages)
    assert without_seconds(a.curve) == without_seconds(b.curve)
    assert (a.steps, a.samples, a.nfe_forward, a.stopped) == (
        b.steps,
        b.samples,
        b.nfe_forward,
        b.stopped,
    )


@functools.cache
def whole(case):
    """Return the fit of a case that was never interrupted."""
    return run(*CASES[case])[1]


def cut(case, step, folder):
    """Return the rerun of a fit that was killed after a step."""
    kept = {"folder": folder, "checkpoint_every": 0.0}
    with pytest.raises(Killed):
        run(*CASES[case], observe=killed_at(step), **kept)
    torch.rand(7)  # another process has another global generator
    return run(*CASES[case], **kept)


@pytest.fixture(autouse=True)
def _every_step(monkeypatch):
    monkeypatch.setattr(fitting, "ROW_EVERY", 1)


@pytest.mark.parametrize("step", [13, 15, 18])
def test_killed_in_block_3_the_blocks_before_are_not_trained_again(tmp_path, step):
    again, result = cut("plain", step, tmp_path)
    assert [row["steps"] for row in result.stages] == [6, 6, 6, 6]
    same(whole("plain"), result)
    # Step 18 was taken, but killed before it was saved.
    assert again.losses == {(1, 3): 18 - step + 1, (1, 4): 6}
    assert again.pushed == [3, 3]  # validation and training points, made anew


# Blocks 1, 2; the same reparametrised; blocks 1 to 4, refined; 8 steps of all blocks.


@pytest.mark.parametrize(
    ("step", "left"),
    [
        (2, {(1, 1): 2, (1, 2): 3, (2, 1): 3, (2, 2): 3}),
        (8, {(2, 1): 2, (2, 2): 3}),
        (11, {(2, 2): 2}),
        (14, {(3, 1): 2}),
        (20, {(3, 3): 2}),
        (28, {}),
    ],
)
def test_killed_in_any_pass(tmp_path, step, left):
    again, result = cut("all", step, tmp_path)
    names = [row["stage"] for row in result.stages]
    assert names == [
        *("block 1", "block 2", "block 1, reparametrised 1", "block 2, reparametrised 1"),
        *(f"block {k}, refined 1" for k in (1, 2, 3, 4)),
        "all blocks",
    ]
    assert [row["steps"] for row in result.stages] == [3] * 8 + [8]
    same(whole("all"), result)
    refined = {(3, k): 3 for k in range(1, 5) if 9 + 3 * k > step}
    assert again.losses == refined | left


@pytest.mark.parametrize("saves", range(1, 41, 4))
def test_any_checkpoint_can_be_the_last(tmp_path, monkeypatch, saves):
    # 32 steps are saved 32 times, and the end of each of 9 stages once more.
    done, save = itertools.count(1), Folder.save

    def until(self, state):
        if next(done) > saves:
            raise Killed
        save(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "save", until)
        with pytest.raises(Killed):
            run(*CASES["all"], folder=tmp_path, checkpoint_every=0.0)
    same(whole("all"), run(*CASES["all"], folder=tmp_path)[1])


@pytest.mark.parametrize("block", [1, 2, 3])
def test_killed_exactly_between_two_blocks(tmp_path, monkeypatch, block):
    def killed(chain, k, *_):
        if k == block:  # counted from 0: the next one begins
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(JKO, "_begin", _before(JKO._begin, killed))
        with pytest.raises(Killed):
            run(*CASES["plain"], folder=tmp_path)
    again, result = run(*CASES["plain"], folder=tmp_path)
    same(whole("plain"), result)
    assert again.losses == {(1, k): 6 for k in range(block + 1, 5)}


def _before(method, hook):
    def both(self, *args):
        hook(*args)
        return method(self, *args)

    return both


@pytest.mark.parametrize("module", [jko, joint])
def test_killed_while_the_points_are_pushed_at_the_end_of_a_stage(tmp_path, monkeypatch, module):
    push, calls = module.push, itertools.count(1)

    def half(block, points, chunk, seed):
        found = push(block, points, chunk, seed)
        if next(calls) == 3:  # training points of the second block (or held-out ones of the chain)
            raise Killed
        return found

    kept = {"folder": tmp_path, "checkpoint_every": 0.0}
    with monkeypatch.context() as patch:
        patch.setattr(module, "push", half)
        with pytest.raises(Killed):
            run(*CASES["tuned"], **kept)
    same(whole("tuned"), run(*CASES["tuned"], **kept)[1])


@pytest.mark.parametrize("step", [3, 8, 14])
def test_a_chain_that_stopped_early_resumes_as_it_was(tmp_path, step):
    again, result = cut("stopped", step, tmp_path)
    assert [row["stage"] for row in result.stages] == ["block 1", "all blocks"]
    assert (result.flow.depth, result.flow.planned) == (1, 1)
    same(whole("stopped"), result)
    assert set(again.losses) <= {(1, 1)}


def test_a_finished_chain_is_not_trained_again(tmp_path):
    _, first = run(*CASES["all"], folder=tmp_path)
    again, result = run(*CASES["all"], folder=tmp_path)
    same(first, result)
    assert (again.losses, again.pushed) == ({}, [])
    assert first.stages == result.stages


def test_a_folder_of_other_passes_is_refused(tmp_path):
    run({}, 4, folder=tmp_path)
    with pytest.raises(UserError, match="is of another fit: stages was"):
        run({"fine_tune": FineTuning()}, 4, folder=tmp_path)
