"""Budgets and stages: what ends a fit, and what every stage is given."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from tiny_flows import QUICK, BlockByBlock, Loud, Shift, chain, fitted, points

from flowzoo.errors import UserError
from flowzoo.objective import Batch, Left, Loss, Objective, Stage
from flowzoo.settings import Budget, Optimizer
from flowzoo.training import fitting
from flowzoo.training.batches import thinned

# --- budgets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "steps", "stopped"),
    [
        (Budget(steps=7), 7, "steps"),
        (Budget(samples=100), 4, "samples"),
        (Budget(nfe=9), 9, "nfe"),
        (Budget(steps=50, samples=64), 2, "samples"),
        (Budget(steps=5, samples=6400, nfe=100, seconds=1e9), 5, "steps"),
    ],
)
def test_the_first_limit_ends_the_fit(budget, steps, stopped):
    result = fitted(budget=budget)
    assert (result.steps, result.stopped, result.samples) == (steps, stopped, 32 * steps)


def test_seconds_are_counted_by_the_clock(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(fitting.time, "monotonic", lambda: float(next(ticks)))
    result = fitted(budget=Budget(seconds=12.0))
    assert result.stopped == "seconds"
    assert 12 <= result.seconds <= 16
    assert 3 <= result.steps <= 12


@pytest.mark.parametrize(
    ("budget", "word"),
    [(Budget(), "no limit"), (Budget(steps=0), "steps"), (Budget(seconds=-1.0), "seconds")],
)
def test_a_budget_must_set_a_positive_limit(budget, word):
    with pytest.raises(UserError, match=word):
        fitted(budget=budget)


def test_a_budget_in_evaluations_needs_evaluations():
    class Free(Objective):
        def stages(self, flow):
            yield Stage("free", [flow.mu], lambda batch, g: Loss(flow.mu.sum(), {}))

    with pytest.raises(UserError, match="stage free evaluates no field"):
        fitted(objective=Free(), budget=Budget(nfe=5))
    assert fitted(objective=Free(), budget=Budget(nfe=5, steps=3)).steps == 3


def steps_of(result):
    return [
        sum(1 for _ in group)
        for _, group in itertools.groupby(row["stage"] for row in result.curve)
    ]


@pytest.mark.parametrize(
    ("shares", "steps", "expected"),
    [(None, 9, [3, 3, 3]), ((1, 1, 2), 12, [3, 3, 6]), (None, 10, [3, 4, 3])],
)
def test_stages_share_the_budget(monkeypatch, shares, steps, expected):
    monkeypatch.setattr(fitting, "ROW_EVERY", 1)
    result = fitted(chain(), BlockByBlock(shares), budget=Budget(steps=steps))
    assert steps_of(result) == expected
    assert result.steps == steps


def test_what_a_stage_leaves_goes_to_the_next(monkeypatch):
    monkeypatch.setattr(fitting, "ROW_EVERY", 1)
    # The rate is so small that no validation improves on the first: every stage ends by patience,
    # but the last, which has no validation left to wait for.
    training = replace(QUICK, validate_every=2, patience=1, optimizer=Optimizer(lr=1e-30))
    result = fitted(chain(), BlockByBlock(), Budget(steps=60), training, validation=points(seed=1))
    assert steps_of(result) == [4, 4, 4]
    assert result.stopped == "patience"


# --- stages -----------------------------------------------------------------------------------


def test_points_are_made_for_training_and_for_validation_then_the_stage_begins():
    objective = BlockByBlock()
    training = replace(QUICK, validate_every=3, criterion="loss")
    flow = chain()
    result = fitted(flow, objective, Budget(steps=9), training, validation=points(10))
    assert [k for k, *_ in objective.asked] == [0, 0, 1, 1, 2, 2]
    assert objective.begun == [(k, 100, False, False) for k in range(3)]
    assert not any(training or grad for _, training, grad in objective.asked)
    assert [x.shape[0] for x in objective.pushed] == [10, 100] * 3
    assert result.best_validation is not None


def test_the_likelihood_is_validated_on_raw_points():
    objective = BlockByBlock()
    training = replace(QUICK, validate_every=3, keep="last", validate_rows=7)
    flow, validation = chain(), points(20)
    result = fitted(flow, objective, Budget(steps=9), training, validation=validation)
    assert len(objective.begun) == 3
    expected = -flow.log_prob(thinned(validation, 7).x).mean().item()
    assert result.curve[-1]["validation"] == pytest.approx(expected, rel=1e-6)


class HandsOn(BlockByBlock):
    """Leaves the next block its points, doubled, and says so."""

    def __init__(self, until=3):
        super().__init__()
        self.until, self.ended = until, []

    def stage(self, flow, k, share):
        def end(train, validation):
            self.ended.append((k, flow.training, torch.is_grad_enabled()))
            facts = {"block": k, "mean": train.x.mean().item()}
            if k == 1:
                return Left(facts=facts)
            return Left(Batch(2 * train.x), validation and Batch(2 * validation.x), facts)

        needed = lambda: k < self.until  # noqa: E731
        return replace(super().stage(flow, k, share), end=end, needed=needed)


def test_what_a_stage_leaves_is_the_next_ones_points():
    objective = HandsOn()
    training = replace(QUICK, validate_every=3, criterion="loss")
    result = fitted(chain(), objective, Budget(steps=9), training, validation=points(10))
    assert [k for k, *_ in objective.asked] == [0, 0, 2, 2]  # block 1 took what block 0 left
    assert objective.ended == [(k, False, False) for k in range(3)]
    first, second, _ = result.stages
    assert second["mean"] == pytest.approx(2 * first["mean"])


def test_every_stage_is_accounted_for():
    result = fitted(chain(), HandsOn(), Budget(steps=10))
    rows = result.stages
    assert [row["stage"] for row in rows] == ["block 0", "block 1", "block 2"]
    assert [row["steps"] for row in rows] == [3, 4, 3]
    assert [row["samples"] for row in rows] == [96, 128, 96]
    assert [row["nfe_forward"] for row in rows] == [3, 4, 3]
    assert [row["block"] for row in rows] == [0, 1, 2]
    assert sum(row["seconds"] for row in rows) <= result.seconds
    assert {row["stopped"] for row in rows} == {"steps"}


def test_a_stage_that_is_not_needed_leaves_its_share_to_the_others():
    objective = HandsOn(until=2)
    flow = chain()
    last = {name: p.clone() for name, p in flow.blocks[2].named_parameters()}
    result = fitted(flow, objective, Budget(steps=9))
    assert [row["steps"] for row in result.stages] == [3, 3]
    assert {k for k, *_ in objective.begun} == {0, 1}
    assert all(torch.equal(p, last[name]) for name, p in flow.blocks[2].named_parameters())


def test_points_and_begin_find_the_weights_of_the_stage_before():
    flow, found = Shift(), []

    class Moves(Objective):
        def stages(self, flow):
            def made(data):
                found.append(flow.mu[0].item())
                return Batch(data.x + 1)

            def begin(data):
                found.append(flow.mu[0].item())
                flow.mu.add_(1.0)

            def loss(batch, g):
                return Loud().loss(flow, batch, g)

            for k in range(2):
                yield Stage(f"{k}", [flow.s], loss, made, begin)

    training = replace(QUICK, validate_every=10, criterion="loss")
    fitted(flow, Moves(), training=training, validation=points(5))
    assert found == [0, 0, 0, 1, 1, 1]
    assert flow.mu.tolist() == [2, 2]


def test_only_the_stages_parameters_need_gradients():
    flow, needed = chain(), []

    class Watched(BlockByBlock):
        def stage(self, flow, k, share):
            stage = super().stage(flow, k, share)

            def loss(batch, generator):
                needed.append([p.requires_grad for p in flow.parameters()])
                return stage.loss(batch, generator)

            return replace(stage, loss=loss)

    fitted(flow, Watched(), budget=Budget(steps=3))
    assert needed == [[k == j // 2 for j in range(6)] for k in range(3)]
    assert all(p.requires_grad and p.grad is None for p in flow.parameters())


def test_training_and_evaluation_mode():
    objective = Loud()
    training = replace(QUICK, validate_every=1, criterion="loss")
    flow = Shift()
    fitted(flow, objective, Budget(steps=2), training, validation=points(5))
    assert objective.modes == [True, False, True, False]
    assert not flow.training
