"""Energy distance against scipy, brute force and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from judge_samples import Given, coverage, normal
from oracles import F64
from scipy import stats

from flowzoo.errors import UserError
from flowzoo.judge import pairs
from flowzoo.judge.energy import EnergyDistance, energy_distance
from flowzoo.judge.measure import quantile


def test_in_one_dimension_the_biased_value_is_the_square_of_scipys():
    x, y = normal(40, 1), normal(55, 1, seed=1, shift=0.3, scale=1.4)
    expected = stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    assert energy_distance(x, y).biased == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dim", [1, 3, 40])
def test_the_value_is_the_mean_over_different_pairs(dim):
    x, y = normal(30, dim), normal(41, dim, seed=1, shift=0.2)
    within = [float(torch.pdist(p).mean()) for p in (x, y)]
    between = float((x[:, None] - y).norm(dim=-1).mean())
    assert energy_distance(x, y).unbiased == pytest.approx(2 * between - sum(within), abs=1e-12)


def test_blocks_of_rows_change_nothing(monkeypatch):
    x, y = normal(30, 2), normal(45, 2, seed=1, shift=0.5)
    whole = energy_distance(x, y)
    monkeypatch.setattr(pairs, "_ELEMENTS", 75 * 7)
    parts = energy_distance(x, y)
    assert parts.unbiased == pytest.approx(whole.unbiased, abs=1e-13)
    assert parts.sampling == pytest.approx(whole.sampling, abs=1e-13)


def folded(shift, scale):
    """E |N(shift, scale^2)|, in closed form."""
    return scale * math.sqrt(2 / math.pi) * math.exp(-(shift**2) / (2 * scale**2)) + shift * (
        1 - 2 * stats.norm.cdf(-shift / scale)
    )


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.1, 1.0), (0.6, 1.0), (0.0, 2.0)])
def test_the_interval_holds_the_true_value(shift, scale):
    n, m = 150, 200
    truth = 2 * folded(shift, math.hypot(1, scale)) - math.sqrt(2) * (1 + scale) * folded(0, 1)
    found = [
        energy_distance(normal(n, 1, seed), normal(m, 1, 1000 + seed, shift, scale))
        for seed in range(200)
    ]
    mean, spread = np.mean([f.unbiased for f in found]), np.std([f.unbiased for f in found])
    assert mean == pytest.approx(truth, abs=4 * spread / math.sqrt(200))
    assert coverage([(f.unbiased, quantile(n) * f.sampling) for f in found], truth) >= 0.96


def test_the_measure_and_its_parts():
    x, y = normal(120, 3), normal(100, 3, seed=1, shift=0.5)
    subject = Given(x, y)
    found = EnergyDistance(samples=100).measure(subject)
    expected = energy_distance(x[subject.rows(100)], y)
    measure = found.pop("energy-distance")
    assert not found
    assert measure.value == expected.unbiased
    assert measure.error == pytest.approx(quantile(100) * expected.sampling)
    assert measure.parts == {"sampling": expected.sampling, "n": 100, "m": 100}
    assert (measure.unit, measure.better) == ("units", "lower")
    assert measure.value > measure.error


def test_it_scales_with_the_coordinates():
    x, y = normal(50, 2), normal(60, 2, seed=1, shift=1.0)
    one, ten = energy_distance(x, y), energy_distance(10 * x + 3, 10 * y + 3)
    assert ten.unbiased == pytest.approx(10 * one.unbiased)
    assert ten.sampling == pytest.approx(10 * one.sampling)


def test_points_that_all_coincide_are_no_distance_apart():
    same = torch.ones(10, 2, dtype=F64)
    measure = EnergyDistance(10).measure(Given(same, same))["energy-distance"]
    assert (measure.value, measure.error) == (0, 0)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_test_points_have_no_distance(n):
    assert EnergyDistance().measure(Given(normal(n, 2), normal(50, 2))) == {}


def test_options_are_checked():
    with pytest.raises(UserError, match="samples of energy-distance must be at least 4, got 3"):
        EnergyDistance(samples=3)
