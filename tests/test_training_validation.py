"""Validation: which weights are kept, and when it ends a fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_flows import QUICK, Loud, Shift, fitted, points, same_weights, swirl

from flowzoo.integrators import RK4
from flowzoo.objective import Likelihood
from flowzoo.settings import Budget, Optimizer, Schedule

# Training pulls mu from 0 to 5, past the validation points around 2.
PASSING = replace(QUICK, validate_every=5, optimizer=Optimizer(lr=0.1))


def passing(training, steps=100, **kwargs):
    return fitted(
        Shift(),
        Likelihood(),
        Budget(steps=steps),
        training,
        train=points(mean=5.0),
        validation=points(mean=2.0),
        **kwargs,
    )


def test_best_and_last_weights():
    best, last = passing(PASSING), passing(replace(PASSING, keep="last"))
    rows = [row for row in best.curve if row["validation"] is not None]
    lowest = min(rows, key=lambda row: row["validation"])
    assert (best.best_step, best.best_validation) == (lowest["step"], lowest["validation"])
    assert 5 < best.best_step < 60
    measured = -best.flow.log_prob(points(mean=2.0).x).mean().item()
    assert measured == pytest.approx(best.best_validation, rel=1e-6)
    assert -last.flow.log_prob(points(mean=2.0).x).mean() > measured + 0.1
    assert (last.best_step, last.steps) == (best.best_step, 100)


def test_patience_ends_the_fit():
    result = passing(replace(PASSING, patience=3))
    assert result.stopped == "patience"
    assert result.steps == result.best_step + 3 * 5


def test_plateau_drops_the_rate_and_ends():
    schedule = Schedule("plateau", patience=2, factor=0.5, drops=1)
    result = passing(replace(PASSING, schedule=schedule), steps=1000)
    assert result.stopped == "plateau"
    assert {row["lr"] for row in result.curve} == {0.1, 0.05}
    assert result.curve[-1]["lr"] == 0.05


def test_the_last_step_is_validated_too():
    result = passing(replace(PASSING, validate_every=40), steps=50)
    assert [row["step"] for row in result.curve if row["validation"] is not None] == [40, 50]


@pytest.mark.parametrize("ema", [None, 0.9])
def test_restarting_from_the_best_weights(ema):
    training = replace(PASSING, ema=ema)
    going = passing(replace(training, keep="last"))
    back = passing(replace(training, keep="last", restart_from_best=100))
    assert same_weights(back.flow, passing(training).flow)
    assert not same_weights(back.flow, going.flow)


def test_without_validation_the_last_weights_are_kept():
    result = fitted(training=replace(QUICK, validate_every=10, keep="best"))
    assert result.best_validation is None
    assert all(row["validation"] is None for row in result.curve)


def test_validation_uses_the_averaged_weights_and_leaves_the_others():
    with_ema = replace(PASSING, ema=0.9, keep="last")
    watched, blind = passing(with_ema), passing(replace(with_ema, validate_every=1000))
    assert same_weights(watched.flow, blind.flow)
    measured = -watched.flow.log_prob(points(mean=2.0).x).mean().item()
    assert watched.curve[-1]["validation"] == pytest.approx(measured, rel=1e-6)


def test_validations_are_comparable():
    # The weights stand still; Hutchinson's probes would move the value.
    training = replace(QUICK, validate_every=2, optimizer=Optimizer(lr=1e-30))
    from flowzoo.traces import Hutchinson

    result = fitted(
        swirl(RK4(1), Hutchinson()), Likelihood(), Budget(steps=6), training, validation=points(9)
    )
    assert len({row["validation"] for row in result.curve}) == 1


def test_a_stage_may_say_what_its_validations_measure():
    class Own(Loud):
        def stages(self, flow):
            for stage in super().stages(flow):
                yield replace(stage, criterion="loss")

    training = replace(QUICK, validate_every=5, criterion="nll")
    flow = Shift()
    result = fitted(flow, Own(1.0), Budget(steps=5), training, validation=points(10))
    last = result.curve[-1]
    assert last["criterion"] == "loss"
    with torch.no_grad():
        nll = -flow.log_prob(points(10).x).mean().item()
    assert last["validation"] != pytest.approx(nll, rel=1e-3)  # Loud blurs its points
    usual = fitted(Shift(), Loud(0.0), Budget(steps=5), training, validation=points(10))
    assert usual.curve[-1]["criterion"] == "nll"


def test_a_guarded_stage_ends_no_worse_than_it_begins():
    class Guarded(Likelihood):
        def stages(self, flow):
            for stage in super().stages(flow):
                yield replace(stage, guarded=True)

    training = replace(QUICK, validate_every=5, optimizer=Optimizer(lr=1.0))
    data = {"train": points(mean=5.0), "validation": points(mean=0.0)}
    begun = Shift()
    result = fitted(Shift(), Guarded(), Budget(steps=10), training, **data)
    assert (result.best_step, result.steps) == (0, 10)
    assert same_weights(result.flow, begun)
    loose = fitted(Shift(), Likelihood(), Budget(steps=10), training, **data)
    assert loose.best_step == 5
