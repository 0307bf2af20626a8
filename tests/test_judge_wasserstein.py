"""Sliced and exact Wasserstein distances, corrected for sample size."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch
from judge_samples import Given, coverage, normal
from oracles import F64

from flowzoo.errors import UserError
from flowzoo.judge.measure import quantile
from flowzoo.judge.optimal import Coupled, exact_w2, sliced_w2
from flowzoo.judge.wasserstein import W2, Debiased, SlicedW2, debiased, directions, rooted


def random_directions(k, dim, seed=5):
    return directions(k, dim, torch.Generator().manual_seed(seed))


def sliced(k, dim):
    along = random_directions(k, dim)
    return lambda x, y: sliced_w2(x, y, along)


# --- the correction ------------------------------------------------------------------------------


def test_the_correction_is_the_distance_within_the_samples():
    x, y = normal(41, 3), normal(60, 3, seed=1, shift=0.5)
    along = random_directions(20, 3)

    def w(a, b):
        return ot.sliced_wasserstein_distance(a, b, projections=along.mT) ** 2

    x0, x1, y0, y1 = x[:20], x[20:40], y[:30], y[30:]
    between = (w(x0, y0) + w(x0, y1) + w(x1, y0) + w(x1, y1)) / 4
    within = (w(x0, x1) + w(y0, y1)) / 2
    found = debiased(sliced(20, 3), x, y)
    assert found.between == pytest.approx(float(between), abs=1e-12)
    assert found.within == pytest.approx(float(within), abs=1e-12)
    assert found.squared == pytest.approx(float(between - within), abs=1e-12)


def test_the_variance_is_that_of_the_slopes_in_all_four_halves():
    """For squared distances of means the slope at a point is known: <x, mean X' - mean Y>."""

    def distance(a, b):
        apart = a.mean(0) - b.mean(0)
        return Coupled(apart.square().sum()[None], 2 * a @ apart, -2 * b @ apart)

    x, y = normal(40, 2), normal(60, 2, seed=1, shift=0.3, scale=2.0)
    x0, x1, y0, y1 = x[:20], x[20:], y[:30], y[30:]
    other = ((x0, x1, y), (x1, x0, y), (y0, y1, x), (y1, y0, x))
    slopes = [points @ (half.mean(0) - across.mean(0)) for points, half, across in other]
    variance = sum(slope.var().item() / len(slope) for slope in slopes)
    found = debiased(distance, x, y)
    assert found.sampling == pytest.approx(math.sqrt(variance), rel=1e-12)
    assert found.projections == 0


# The sliced distance of N(0, I) and N(shift, scale^2 I) is |shift|^2 / d + (scale - 1)^2 on average
# over all directions, d times less than the whole.
LAWS = [(0.0, 1.0), (0.1, 1.0), (0.5, 1.2)]


@pytest.mark.parametrize(("shift", "scale"), LAWS)
@pytest.mark.parametrize(("kind", "dim"), [("sliced", 1), ("sliced", 3), ("exact", 2)])
def test_the_interval_holds_the_true_distance(kind, dim, shift, scale):
    repeats = 100
    truth = (shift**2 + (scale - 1) ** 2) * (dim if kind == "exact" else 1)
    sizes = (160, 160) if kind == "exact" else (160, 200)
    squares, roots, errors = [], [], []
    for seed in range(repeats):
        x, y = normal(sizes[0], dim, seed), normal(sizes[1], dim, 1000 + seed, shift, scale)
        along = random_directions(25 if dim > 1 else 1, dim, seed)
        found = debiased(exact_w2 if kind == "exact" else lambda a, b: sliced_w2(a, b, along), x, y)  # noqa: B023
        measure = rooted(found, sizes[0] // 2, sizes[1] // 2, "")
        squares.append(found.squared)
        roots.append((measure.value, measure.error))
        errors.append(math.hypot(found.sampling, found.projections))
    spread = np.std(squares)
    assert np.mean(squares) == pytest.approx(truth, abs=4 * spread / repeats**0.5 + 0.02 * truth)
    assert coverage(roots, math.sqrt(truth)) >= 0.96
    # At zero the error is too large, by at most the root of two; away from it, it is right.
    assert 0.6 < spread / np.mean(errors) < 1.15 if shift < 0.5 else spread / np.mean(errors) > 0.8


def test_fewer_projections_have_a_larger_error():
    x, y = normal(60, 5), normal(60, 5, seed=1) * torch.tensor([4.0, 1, 1, 1, 1], dtype=F64)
    few, many = debiased(sliced(20, 5), x, y), debiased(sliced(2000, 5), x, y)
    assert few.projections == pytest.approx(10 * many.projections, rel=0.5)
    estimates = [
        debiased(lambda a, b, s=s: sliced_w2(a, b, random_directions(20, 5, s)), x, y).squared
        for s in range(60)
    ]
    assert np.std(estimates) == pytest.approx(few.projections, rel=0.5)


def test_a_shifted_copy_is_found_exactly_at_its_distance():
    """The samples are their own baseline where only the mean differs."""
    x = normal(40, 6)
    shift = torch.tensor([3.0, 0, 0, 0, 0, 4.0], dtype=F64)
    found = debiased(exact_w2, torch.cat((x, x)), torch.cat((x, x)) + shift)
    assert found.squared == pytest.approx(25, abs=1e-12)
    assert found.within == pytest.approx(0, abs=1e-12)


# --- the root ------------------------------------------------------------------------------------


@pytest.mark.parametrize("squared", [-0.5, -0.1, 0.0, 0.1, 4.0])
def test_the_error_reaches_both_ends_of_the_interval(squared):
    measure = rooted(Debiased(squared, 5.0, 5.0 - squared, 0.03, 0.04), 300, 200, "clause")
    ends = [math.sqrt(max(squared + sign * quantile(200) * 0.05, 0)) for sign in (-1, 1)]
    assert measure.value == math.sqrt(max(squared, 0))
    assert measure.error == pytest.approx(max(abs(end - measure.value) for end in ends))
    assert measure.parts["squared"] == squared
    assert measure.parts["plug_in"] ** 2 - measure.parts["floor"] ** 2 == pytest.approx(squared)
    assert (measure.unit, measure.better, measure.note) == ("units", "lower", "clause")


# --- the metrics ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "name"), [(SlicedW2, "sliced-w2"), (W2, "w2")])
def test_equal_laws_may_be_at_zero_and_others_are_not(make, name):
    x = normal(300, 2)
    subject = Given(x, normal(300, 2, seed=1))
    same = make(samples=300).measure(subject)
    assert list(same) == [name]
    assert same[name].value <= same[name].error
    assert same[name].parts["plug_in"] > 0
    other = make(samples=300).measure(Given(x, normal(300, 2, seed=1, shift=1.0)))[name]
    expected = math.sqrt(2) if name == "w2" else 1.0
    assert other.value == pytest.approx(expected, abs=other.error)
    assert other.value > 2 * other.error
    assert make(samples=300).measure(subject) == same


def test_sliced_takes_all_points_and_exact_as_many_of_each():
    x, y = normal(31, 2), normal(60, 2, seed=1)
    parts = SlicedW2(samples=50).measure(Given(x, y))["sliced-w2"].parts
    assert (parts["n"], parts["m"]) == (15, 25)
    parts = W2(samples=50).measure(Given(x, y))["w2"].parts
    assert (parts["n"], parts["m"], parts["projections"]) == (15, 15, 0)


def test_in_one_dimension_one_projection_is_all():
    measure = SlicedW2().measure(Given(normal(50, 1), normal(50, 1, seed=1)))["sliced-w2"]
    exact = W2().measure(Given(normal(50, 1), normal(50, 1, seed=1)))["w2"]
    assert measure.note.endswith("projections: 1")
    assert measure.parts["projections"] == 0
    assert measure.parts["squared"] == pytest.approx(exact.parts["squared"], abs=1e-12)


def test_values_scale_with_the_coordinates():
    x, y = normal(50, 3), normal(60, 3, seed=1, shift=2.0)
    for make, name in ((SlicedW2, "sliced-w2"), (W2, "w2")):
        one, ten = (make().measure(Given(c * x, c * y))[name] for c in (1, 10))
        assert ten.value == pytest.approx(10 * one.value)
        assert ten.error == pytest.approx(10 * one.error)


@pytest.mark.parametrize(("dim", "said"), [(4, False), (5, True)])
def test_the_bias_in_many_dimensions_is_named(dim, said):
    note = W2().measure(Given(normal(20, dim), normal(20, dim, seed=1)))["w2"].note
    assert (f"in {dim} dimensions too small where spreads differ" in note) == said


def test_the_bias_in_many_dimensions_is_as_documented():
    """W2^2 of Gaussians with standard deviations 1 and 1.2 in 20 dimensions: 0.8, found 0.44."""
    found = debiased(exact_w2, normal(2000, 20), normal(2000, 20, seed=1, scale=1.2))
    assert 0.3 < found.squared < 0.6
    assert found.between > 0.8


def test_directions_are_unit_vectors_without_preference():
    along = random_directions(4000, 3)
    assert along.dtype == F64
    torch.testing.assert_close(along.norm(dim=1), torch.ones(4000, dtype=F64))
    torch.testing.assert_close(
        along.mT @ along / 4000, torch.eye(3, dtype=F64) / 3, atol=0.02, rtol=0
    )


@pytest.mark.parametrize("make", [SlicedW2, W2])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_test_points_have_no_distance(make, n):
    assert make().measure(Given(normal(n, 2), normal(50, 2))) == {}


@pytest.mark.parametrize("make", [SlicedW2, W2])
def test_points_that_all_coincide_are_no_distance_apart(make):
    same = torch.ones(10, 2, dtype=F64)
    (measure,) = make().measure(Given(same, same)).values()
    assert (measure.value, measure.error) == (0, 0)


def test_options_are_checked():
    with pytest.raises(UserError, match="projections of sliced-w2 must be at least 2, got 1"):
        SlicedW2(projections=1)
    with pytest.raises(UserError, match="samples of sliced-w2 must be at least 4, got 3"):
        SlicedW2(samples=3)
    with pytest.raises(UserError, match="samples of w2 must be at least 4, got 3"):
        W2(samples=3)
