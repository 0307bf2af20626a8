"""Discrepancies against loops over pairs, other libraries, and closed forms."""

from __future__ import annotations

import itertools
import math

import ot
import pytest
import torch
from torch.nn.functional import normalize

from flowzoo.errors import BadData, UserError
from flowzoo.judge import optimal
from flowzoo_pfg.discrepancy import MMD, Energy, SlicedW2

EACH = {"sliced-w2": SlicedW2, "mmd": MMD, "energy": Energy}


def pairs_mean(fn, x, y=None):
    """Return the mean of fn over the rows of x and y, or over pairs of different rows of x."""
    both = itertools.product(x, y) if y is not None else itertools.permutations(x, 2)
    values = [fn((a - b).norm()) for a, b in both]
    return sum(values) / len(values)


def by_hand(fn, x, y):
    return pairs_mean(fn, x), pairs_mean(fn, y), pairs_mean(fn, x, y)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (5, 8), (9, 4)])
def test_mmd_is_the_mean_over_pairs_of_different_points(n, m, places):
    x, y = 1 + places(n, 3), places(m, 3, seed=1)
    xx, yy, xy = by_hand(lambda r: 0.5 * (math.exp(-(r**2) / 0.5) + math.exp(-(r**2) / 4.5)), x, y)
    found = MMD(0.5, [1.0, 3.0])(x, y)
    assert found.item() == pytest.approx((xx + yy - 2 * xy), rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (5, 8)])
def test_the_energy_distance_is_the_mean_over_pairs_of_different_points(n, m, places):
    x, y = 1 + places(n, 3), places(m, 3, seed=1)
    xx, yy, xy = (float(value) for value in by_hand(lambda r: r, x, y))
    assert Energy()(x, y).item() == pytest.approx(2 * xy - xx - yy, rel=1e-12)


@pytest.mark.parametrize("m", [2, 3, 4, 6])
def test_the_bandwidth_is_the_median_distance_of_the_data(m, places):
    x, y = places(5, 2), 3 * places(m, 2, seed=1)
    lengths = sorted(float((a - b).norm()) for a, b in itertools.combinations(y, 2))
    median = lengths[(len(lengths) - 1) // 2]
    expected = MMD(median, (0.5, 1.0))(x, y)
    assert MMD(factors=(0.5, 1.0))(x, y).item() == pytest.approx(expected.item(), rel=1e-12)
    scaled = MMD()(100 * x, 100 * y)
    assert scaled.item() == pytest.approx(MMD()(x, y).item(), rel=1e-10)


def test_the_median_of_many_points_is_that_of_some(places):
    """Sorted data must not be judged by their first rows."""
    y = places(2000, 2).sort(0).values
    x = places(8, 2, seed=1)
    median = torch.pdist(y).median()
    assert MMD()(x, y).item() == pytest.approx(MMD(median.item())(x, y).item(), rel=0.02)


@pytest.mark.parametrize("y", [torch.zeros(6, 2), torch.tensor([[0.0, 0.0]] * 5 + [[1.0, 0.0]])])
def test_data_that_coincide_have_a_bandwidth(y):
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.3, 0.2]]).requires_grad_()
    value = MMD()(x, y)
    value.backward()
    assert 0 < value < 2
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(("n", "m"), [(7, 7), (5, 8), (8, 5), (1, 6), (6, 4), (30, 10)])
def test_in_one_dimension_sliced_w2_is_w2(n, m, places):
    x, y = 1 + places(n, 1), places(m, 1, seed=1)
    expected = float(ot.wasserstein_1d(x[:, 0].numpy(), y[:, 0].numpy(), p=2))
    assert SlicedW2()(x, y).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(7, 7), (5, 8)])
def test_sliced_w2_is_the_judges_for_the_same_directions(n, m, places, seeded):
    x, y = 1 + places(n, 3), places(m, 3, seed=1)
    along = normalize(torch.randn(32, 3, dtype=x.dtype, generator=seeded(5)), dim=1)
    expected = optimal.sliced_w2(x, y, along).squared.mean()
    assert SlicedW2(32)(x, y, seeded(5)).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("d", [2, 5])
def test_a_shift_costs_its_square_by_the_dimension(d, places, seeded):
    x = places(20, d)
    b = torch.arange(1.0, d + 1, dtype=x.dtype)
    found, k = SlicedW2(20_000)(x + b, x.flip(0), seeded()), 20_000
    spread = b.square().sum() * math.sqrt(2 * (d - 1) / (d**2 * (d + 2)) / k)
    assert abs(found - b.square().sum() / d) < 5 * spread


def test_directions_are_drawn_anew(places, seeded):
    x, y, source = 1 + places(5, 2), places(5, 2, seed=1), seeded()
    assert SlicedW2(4)(x, y, source) != SlicedW2(4)(x, y, source)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("m", [6, 9])
def test_the_gradient_reaches_the_generated_points_alone(name, m, places, seeded):
    x, y = (1 + places(6, 2)).requires_grad_(), places(m, 2, seed=1)
    assert torch.autograd.gradcheck(lambda x: EACH[name]()(x, y, seeded()), x, eps=1e-7, atol=1e-6)
    EACH[name]()(x, y, seeded()).backward()
    assert x.grad.abs().sum(-1).min() > 0
    assert y.grad is None


@pytest.mark.parametrize("name", EACH)
def test_points_that_coincide_have_a_gradient(name, places):
    x = places(6, 2).requires_grad_()
    EACH[name]()(x, x.detach().clone()).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", ["mmd", "energy"])
@pytest.mark.parametrize(("n", "m"), [(1, 4), (4, 1)])
def test_pairs_need_two_points(name, n, m):
    said = f"{name} compares at least 2 points of each side, got {n} generated and {m} of the data"
    with pytest.raises(BadData, match=said):
        EACH[name]()(torch.zeros(n, 2), torch.zeros(m, 2))


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 0)])
def test_sliced_w2_needs_a_point(n, m):
    with pytest.raises(BadData, match="sliced-w2 compares at least 1 point of each side"):
        SlicedW2()(torch.zeros(n, 2), torch.zeros(m, 2))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SlicedW2(0), "sliced-w2: projections must be at least 1, got 0"),
        (lambda: MMD(0.0), "mmd: bandwidth must be positive, got 0"),
        (lambda: MMD(factors=[]), "mmd: factors must be positive, and at least one"),
        (lambda: MMD(factors=[1.0, -2.0]), r"mmd: factors must be positive.* got \[1.0, -2.0\]"),
    ],
)
def test_what_makes_no_sense_is_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()
