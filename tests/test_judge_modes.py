"""How many modes a flow covers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from judge_samples import Given, normal
from oracles import F64
from scipy import stats

from flowzoo.data.oracles import MixtureOracle
from flowzoo.errors import UserError
from flowzoo.judge.modes import Modes, undecided


def mixture(weights, dim=2, scale=0.1, radius=4.0):
    """Modes on the axes, and as many on their negative sides as it takes."""
    eye = torch.eye(dim, dtype=F64)
    means = radius * torch.cat((eye, -eye))[: len(weights)]
    return MixtureOracle(torch.tensor(weights, dtype=F64), means, scale)


def draw(oracle, n=2000, seed=0):
    return oracle.sample(n, torch.Generator().manual_seed(seed))


def measure(oracle, y, samples=2000):
    return Modes(samples).measure(Given(y, y, oracle))["modes"]


@pytest.mark.parametrize("dim", [2, 10])
def test_the_true_law_covers_all(dim):
    oracle = mixture([0.4, 0.3, 0.2, 0.1], dim)
    found = measure(oracle, draw(oracle))
    assert (found.value, found.error, found.parts["total"]) == (4, 0, 4)
    assert found.parts["high_quality"] == pytest.approx(0.997, abs=5 * 0.0012)
    weights = np.array([0.4, 0.3, 0.2, 0.1])
    expected = np.sqrt(weights * (1 - weights) / (2 * np.pi * 2000)).sum()
    distances = [measure(oracle, draw(oracle, seed=s)).parts["share_distance"] for s in range(100)]
    assert np.mean(distances) == pytest.approx(expected, rel=0.15)
    assert (found.unit, found.better) == ("modes", "higher")
    assert "of 4, by 2000 samples" in found.note


def test_a_mode_that_is_not_there_is_not_counted():
    oracle = mixture([0.25] * 4)
    found = measure(oracle, draw(mixture([0.25, 0.25, 0.5])))
    assert (found.value, found.error) == (3, 0)
    assert found.parts["share_distance"] == pytest.approx(0.25, abs=0.05)


def at(*counts):
    """So many samples exactly on the mean of each mode."""
    means = mixture([0.25] * len(counts)).means
    return means.repeat_interleave(torch.tensor(counts), 0)


@pytest.mark.parametrize(("few", "covered"), [(49, 3), (50, 4)])
def test_a_tenth_of_the_weight_is_enough(few, covered):
    found = measure(mixture([0.25] * 4), at(700, 700, 600 - few, few))
    assert found.value == covered
    assert found.error == 1  # so near the threshold the samples leave it open
    assert found.parts["high_quality"] == 1
    expected = ((700 + 700) / 2000 - 0.5 + abs((600 - few) / 2000 - 0.25) + 0.25 - few / 2000) / 2
    assert found.parts["share_distance"] == pytest.approx(expected, abs=1e-15)


def test_one_sample_is_no_mode():
    found = measure(mixture([0.25] * 4), at(700, 700, 599, 1))
    assert (found.value, found.error) == (3, 0)


def test_modes_are_weighed_by_their_own_weights():
    oracle = mixture([0.98, 0.02])
    assert measure(oracle, at(1990, 10)).value == 2
    assert measure(mixture([0.5, 0.5]), at(1990, 10)).value == 1


@pytest.mark.parametrize(("dim", "share"), [(1, 0.997), (2, 0.997), (30, 0.997)])
def test_the_radius_holds_the_same_share_in_all_dimensions(dim, share):
    oracle = mixture([1.0], dim, scale=0.7)
    parts = measure(oracle, draw(oracle, 40_000), 40_000).parts
    assert parts["high_quality"] == pytest.approx(share, abs=5 * (0.003 / 40_000) ** 0.5)


@pytest.mark.parametrize(("distance", "quality"), [(0.99, 1.0), (1.01, 0.0)])
def test_points_outside_the_radius_are_near_a_mode_but_not_inside(distance, quality):
    oracle = mixture([0.5, 0.5], scale=0.1)
    radius = 0.1 * stats.chi2.ppf(0.997, 2) ** 0.5
    away = torch.tensor([[0.6, 0.8]], dtype=F64) * distance * radius
    found = measure(oracle, oracle.means.repeat(50, 1) + away, 100)
    assert found.parts["high_quality"] == quality
    assert found.value == 2 * quality
    assert found.parts["share_distance"] == 0


def test_what_the_samples_leave_open():
    counts = torch.arange(0, 60, 5)
    found = undecided(counts, 400, torch.full((12,), 0.05, dtype=F64))
    level = 0.01 / 24
    for count, open_ in zip(counts.tolist(), found.tolist(), strict=True):
        tests = [stats.binomtest(count, 400, 0.05, side).pvalue for side in ("less", "greater")]
        assert open_ == (min(tests) > level)
    assert not found[0]
    assert found[4]
    assert not found[-1]


@pytest.mark.parametrize("n", [10, 30])
def test_few_samples_leave_modes_open(n):
    oracle = mixture([0.25] * 4)
    found = measure(oracle, draw(oracle, n), n)
    assert found.error > 0


def test_the_decision_holds_with_confidence():
    """Modes of a twentieth of their weight, half the threshold, are seldom counted for sure."""
    oracle = mixture([0.25] * 4)
    poor = mixture([0.5, 0.475, 0.0125, 0.0125])
    truth = 2
    found = [measure(oracle, draw(poor, 1000, seed), 1000) for seed in range(200)]
    assert np.mean([abs(f.value - truth) <= f.error for f in found]) >= 0.97


def test_single_precision_weights_and_samples():
    oracle = mixture([0.25] * 4)
    single = MixtureOracle(oracle.weights.float(), oracle.means.float(), oracle.scale)
    assert measure(single, draw(oracle).float()).value == 4


@pytest.mark.parametrize(
    "oracle", [None, SimpleNamespace(entropy=1.0), SimpleNamespace(modes=None)]
)
def test_no_modes_no_measure(oracle):
    assert Modes().measure(Given(normal(10, 2), normal(10, 2), oracle)) == {}


def test_options_are_checked():
    with pytest.raises(UserError, match="samples of modes must be at least 4, got 3"):
        Modes(samples=3)
