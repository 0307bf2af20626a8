"""How far points are moved: closed forms, what trajectories say, and a ratio that is paired."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from judge_subjects import Density, Rows, Scale, gaussian, matching, optimal
from oracles import F64

from flowzoo.data.dataset import standardised
from flowzoo.data.wishart import WishartGaussian
from flowzoo.errors import UserError
from flowzoo.flow import Encoded, Flow
from flowzoo.judge import evaluate
from flowzoo.judge.displacement import Displacement
from flowzoo.judge.trajectories import TransportCost


class Affine(Flow):
    """z = A (x - m)."""

    def __init__(self, a, m):
        super().__init__()
        self.dim = len(m)
        self.register_buffer("a", a)
        self.register_buffer("m", m)

    def encode(self, x, running=(), context=None, generator=None):
        ladj = torch.linalg.slogdet(self.a)[1].expand(len(x))
        return Encoded((x - self.m) @ self.a.mT, ladj, x.new_zeros(len(x), 0))

    def decode(self, z, context=None):
        return z @ self.a.inverse().mT + self.m


def measured(flow, data, **options):
    return evaluate(flow, data, metrics=[Displacement(**options)])


def wishart(dim=4, test=500, seed=1):
    return WishartGaussian(dim, train=10, val=2, test=test, seed=seed)


def optimal_affine(oracle):
    return Affine((oracle.basis * oracle.variances.rsqrt()) @ oracle.basis.mT, oracle.mean)


def knothe(oracle):
    """Return the triangular map to N(0, I), and its cost E |x - z|^2 / 2."""
    factor = torch.linalg.cholesky(oracle.covariance).inverse()
    rest = torch.eye(oracle.dim, dtype=F64) - factor
    spread = torch.trace(rest @ oracle.covariance @ rest.mT)
    return Affine(factor, oracle.mean), 0.5 * float(oracle.mean.square().sum() + spread)


def test_a_closed_form_moves_points_as_far_as_it_says(places):
    x = places(50)
    found = measured(Scale(3, 2.0), Rows(x))
    assert found.keys() == {"displacement"}
    expected = 0.5 * (x / 2).square().sum(-1)
    assert found["displacement"].value == pytest.approx(expected.mean().item(), rel=1e-12)
    sampling = expected.std().item() / 50**0.5
    assert found["displacement"].parts["sampling"] == pytest.approx(sampling, rel=1e-12)
    assert found["displacement"].unit == "squared units"


def test_straight_trajectories_cost_their_displacement_and_curved_ones_more():
    dataset = gaussian(3, condition=30.0)
    data, metrics = dataset.load(), [Displacement(), TransportCost()]
    straight = evaluate(optimal(dataset), data, metrics=metrics)
    assert straight["displacement"].value == pytest.approx(straight["transport"].value, rel=1e-5)
    curved = evaluate(matching(dataset), data, metrics=metrics)
    detour = curved["transport"].value / curved["displacement"].value
    assert detour == pytest.approx(curved["detour"].value, rel=1e-6)
    assert detour > 1.02
    # Both arrive at N(0, I), and by maps that commute with the covariance: by the same one.
    assert curved["displacement-optimality"].value == pytest.approx(1, abs=1e-4)
    assert straight["displacement-optimality"].value == pytest.approx(1, abs=1e-4)


def test_the_optimal_map_is_optimal_without_sampling_error():
    dataset = wishart()
    found = measured(optimal_affine(dataset.oracle), dataset.load())
    ratio = found["displacement-optimality"]
    assert ratio.value == pytest.approx(1, abs=1e-13)
    assert ratio.error < 1e-13
    unpaired = found["displacement"]
    assert abs(unpaired.value - dataset.oracle.transport_cost) > 1e-3 * unpaired.value
    assert unpaired.error > 0.01 * unpaired.value


@pytest.mark.parametrize("seed", range(4))
def test_the_triangular_map_costs_what_its_closed_form_says(seed):
    dataset = wishart(6, test=4000, seed=seed)
    flow, cost = knothe(dataset.oracle)
    found, truth = measured(flow, dataset.load()), cost / dataset.oracle.transport_cost
    ratio = found["displacement-optimality"]
    assert truth > 1.02
    assert abs(ratio.value - truth) < ratio.error
    assert 0 < ratio.error < 0.05
    assert abs(found["displacement"].value - cost) < found["displacement"].error


def test_the_ratio_is_paired_where_the_map_is_known_and_plain_where_the_cost_alone_is():
    dataset = wishart()
    best = optimal_affine(dataset.oracle)
    near = Affine(best.a * 1.01, best.m)
    data = dataset.load()
    paired = measured(near, data)["displacement-optimality"]
    plain = measured(near, replace(data, oracle=None))["displacement-optimality"]
    cost = measured(near, data)["displacement"]
    assert plain.value == pytest.approx(cost.value / data.transport_cost, rel=1e-12)
    assert plain.error == pytest.approx(cost.error / data.transport_cost, rel=1e-12)
    assert paired.error < 0.1 * plain.error
    own = 0.5 * (data.test - dataset.oracle.transport(data.test)).square().sum(-1).mean().item()
    expected = 1 + (cost.value - own) / data.transport_cost
    assert paired.value == pytest.approx(expected, rel=1e-12)


def test_what_is_not_known_is_left_out():
    dataset = gaussian(2)
    data, _ = standardised(dataset.load())
    assert measured(Scale(2), data).keys() == {"displacement"}
    still = gaussian(2, condition=1.0, mean=0.0)
    assert measured(Scale(2), still.load()).keys() == {"displacement"}  # nothing has to move
    assert measured(Density(2), dataset.load()) == {}
    with pytest.raises(UserError, match="subsample of displacement must be at least 2"):
        Displacement(1)


def test_single_precision_is_certified_by_the_double_one():
    dataset = wishart(3)
    data = dataset.load()
    double = measured(optimal_affine(dataset.oracle), data)
    single = measured(optimal_affine(dataset.oracle).float(), data)
    for name, measure in double.items():
        gap = abs(single[name].value - measure.value)
        assert gap < 1e-5
        assert single[name].parts["solver"] > 0
    assert single["displacement-optimality"].error < 1e-5
