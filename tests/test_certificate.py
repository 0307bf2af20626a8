"""The certificate of a coarse solver covers what it is off by, on a trained flow."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowzoo.build import build
from flowzoo.data.toys import EightGaussians
from flowzoo.integrators import RK4
from flowzoo.judge import Subject, evaluate
from flowzoo.judge.likelihood import NLL
from flowzoo.objective import Batch
from flowzoo.recipes import load_recipes
from flowzoo.registry import Registry
from flowzoo.settings import Budget, Optimizer, Training
from flowzoo.training import fit


@pytest.fixture(scope="module")
def trained():
    """Return an OT-Flow after 150 steps on eight Gaussians, and the data."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    recipe, registry = load_recipes()["ot-flow"], Registry.installed()
    data = EightGaussians(train=4000, val=10, test=3000).load()
    flow = build("flow", recipe.flow, registry, dim=2)
    objective = build("objective", recipe.objective, registry)
    training = Training(batch_size=256, optimizer=Optimizer(lr=0.1))
    fit(flow, objective, Batch(data.train), budget=Budget(steps=150), training=training)
    return flow.eval(), data


@pytest.mark.parametrize("steps", [1, 2])
def test_the_own_numerics_certificate_covers_the_judge(trained, steps):
    """On all test points, of which the certificate has seen a third."""
    flow, data = trained
    coarse = flow.with_numerics(RK4(steps))
    found = evaluate(coarse, data, metrics=[NLL()])
    own, judge = found["nll-own"], found["nll"]
    whole = -Subject(coarse, data).own(len(data.test))[1].log_prob.mean().item()
    difference = abs(whole - judge.value)
    assert difference > 20 * judge.parts["solver"]  # there is something to cover
    assert difference <= own.parts["solver"] < 2 * difference + 0.01
    assert abs(own.value - whole) <= own.error
    assert abs(own.value - judge.value) <= own.error


def test_the_judge_is_the_same_whatever_the_flow_would_use(trained):
    flow, data = trained
    small = replace(data, test=data.test[:500])
    by_two, by_eight = (
        evaluate(flow.with_numerics(RK4(n)), small, metrics=[NLL()])["nll"] for n in (2, 8)
    )
    assert by_two == by_eight
