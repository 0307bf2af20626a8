"""What the generative objective teaches: a Gaussian, a condition, an optimal transport."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_flows import Shift

from flowzoo.continuous import Continuous
from flowzoo.field import Gradient
from flowzoo.integrators import RK1, RK4
from flowzoo.networks import MLP, PotentialMLP
from flowzoo.objective import Batch
from flowzoo.regularizers import HJB
from flowzoo.settings import Budget, Optimizer, Training
from flowzoo.training import fit
from flowzoo_pfg.discrepancy import MMD, Energy, SlicedW2
from flowzoo_pfg.objective import Generative

QUICK = Training(batch_size=256, optimizer=Optimizer(lr=0.01), validate_every=50)


def potential_flow(seed=0):
    torch.manual_seed(seed)
    return Continuous(Gradient(PotentialMLP(2, (32, 32), "tanh")), RK1(5))


def gaussian(s, n, seed=0):
    return Batch(s * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)))


def fitted(flow, objective, train, validation=None, steps=200, training=QUICK):
    return fit(flow, objective, train, validation, budget=Budget(steps=steps), training=training)


def nll(flow, data):
    with torch.no_grad():
        return -flow.log_prob(data.x, data.context).mean()


@pytest.mark.parametrize("s", [0.4, 2.0])
def test_a_gaussian_is_learnt(s, seeded):
    """The generated spread comes near to that of the data; validation is by the likelihood."""
    flow, validation = potential_flow(), gaussian(s, 500, seed=1)
    start, least = nll(flow, validation), 2 * math.log(s) + 1 + math.log(2 * math.pi)
    objective = Generative(SlicedW2(32), 1.0, [HJB(0.1, "squared", detach=True)])
    result = fitted(flow, objective, gaussian(s, 4000), validation)
    with torch.no_grad():
        x = flow.sample(4000, generator=seeded())
    assert x.std(0).sub(s).abs().max() < 0.15 * s
    assert x.mean(0).abs().max() < 0.15 * s
    assert result.best_validation < least + 0.4 * (start - least)
    first, last = result.curve[0], result.curve[-1]
    assert last["terms"]["SlicedW2"] < 0.5 * first["terms"]["SlicedW2"]


@pytest.mark.parametrize("discrepancy", [SlicedW2(16), MMD(), Energy()])
def test_a_flow_without_trajectory_is_trained(discrepancy):
    flow, data = Shift(), gaussian(0.5, 2000)
    data = Batch(data.x + 1)
    fitted(flow, Generative(discrepancy), data, training=replace(QUICK, validate_every=0))
    assert (flow.mu - 1).abs().max() < 0.15
    assert (flow.s.exp() - 0.5).abs().max() < 0.1


def test_conditions_are_learnt(seeded):
    """Data at the place that the context says: points alone would look right without it."""
    torch.manual_seed(0)
    flow = Continuous(MLP(1, (32,), "tanh", context_dim=1), RK4(3))
    side = 2.0 * torch.randint(2, (4000, 1), generator=seeded()) - 1
    x = 2 * side + 0.3 * torch.randn(4000, 1, generator=seeded(1))
    fitted(
        flow, Generative(SlicedW2(32)), Batch(x, side), training=replace(QUICK, validate_every=0)
    )
    with torch.no_grad():
        for c in (-1.0, 1.0):
            x = flow.sample(1000, torch.full((1000, 1), c), seeded(2))
            assert abs(x.mean() - 2 * c) < 0.3
            assert x.std() < 0.7


def test_the_hjb_cost_falls_where_it_is_asked_for(seeded):
    """The discrepancy says nothing of the way; the cost of the untrained flow is small, too."""
    costs = []
    for weight in (0.0, 1.0):
        flow = potential_flow(seed=1)
        objective = Generative(SlicedW2(32), 1.0, [HJB(weight, "squared", detach=True)])
        fitted(flow, objective, gaussian(0.5, 4000), training=replace(QUICK, validate_every=0))
        with torch.no_grad():
            z = torch.randn(500, 2, generator=seeded())
            costs.append(flow.generate(z, [HJB(power="squared")]).costs.mean())
    assert costs[1] < 0.5 * costs[0]
