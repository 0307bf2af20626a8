"""Every family, trained from its recipe, reaches what a closed form says it can reach.

Gaussian data to Gaussian noise: the best NLL is the entropy, the least transport cost is that of
the linear map. The recipes are trained for seconds, so their budgets and batches are cut here.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from flowzoo.build import build
from flowzoo.data.synthetic import Gaussian
from flowzoo.judge import Subject
from flowzoo.objective import Batch
from flowzoo.recipes import load_recipes, swap
from flowzoo.registry import Registry
from flowzoo.settings import Budget, Optimizer, Schedule, Training
from flowzoo.training import fit

STEPS = {  # by dimension
    "ot-flow": {2: 400, 10: 500},
    "ffjord": {2: 150, 10: 150},
    "flow-matching": {2: 1500, 10: 1500},
}
TRAINING = {
    "ot-flow": Training(optimizer=Optimizer(lr=0.1)),
    "ffjord": Training(optimizer=Optimizer(lr=1e-2)),
    "flow-matching": Training(optimizer=Optimizer(lr=3e-3), ema=0.99),
}
CHANGED = {
    # The optimum of cost + weight * NLL undershoots the optimal cost by 1 / weight.
    "ot-flow": {"flow.integrator": {"name": "rk4", "steps": 4}, "objective.weight": 200},
    "ffjord": {"flow.integrator": {"name": "rk4", "steps": 4}},
    "flow-matching": {},
}


@functools.cache
def judged(family: str, dim: int) -> tuple[Gaussian, Subject]:
    registry = Registry.installed()
    recipe = load_recipes()[family]
    for part, value in CHANGED[family].items():
        recipe = swap(recipe, part, value)
    torch.manual_seed(0)
    flow = build("flow", recipe.flow, registry, dim=dim)
    objective = build("objective", recipe.objective, registry)
    training = replace(
        TRAINING[family], batch_size=256, schedule=Schedule(name="cosine"), validate_every=500
    )
    dataset = Gaussian(dim=dim, condition=10.0, mean=0.5, test=4000)
    data = dataset.load()
    batches = Batch(data.train), Batch(data.val)
    fitted = fit(
        flow, objective, *batches, budget=Budget(steps=STEPS[family][dim]), training=training
    )
    return dataset, Subject(fitted.flow, data)


@pytest.mark.parametrize("dim", [2, 10])
@pytest.mark.parametrize("family", STEPS)
def test_the_nll_reaches_the_entropy(family, dim):
    """KL(data || flow) is the NLL less the entropy, without the noise that the two share."""
    dataset, subject = judged(family, dim)
    kl = dataset.oracle.log_prob(subject.data.test) - subject.log_prob.double()
    assert -0.005 * dim < kl.mean() < 0.02 * dim


@pytest.mark.parametrize("dim", [2, 10])
def test_ot_flow_is_optimal_transport(dim):
    """Its cost on the test points is within 2 % of that of the optimal map on the same points."""
    dataset, subject = judged("ot-flow", dim)
    x = subject.data.test
    optimal = 0.5 * (x - dataset.oracle.transport(x)).square().sum(-1).mean()
    assert subject.encoded.costs[:, 0].mean().item() == pytest.approx(optimal.item(), rel=0.02)


def test_the_others_do_not_happen_to_be_optimal():
    """A likelihood alone does not ask for a short way: the test above can fail."""
    dataset, subject = judged("flow-matching", 2)
    assert subject.encoded.costs[:, 0].mean() > 1.2 * dataset.oracle.transport_cost
