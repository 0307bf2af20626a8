"""MMD with its bandwidths, its threshold and its error."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from judge_samples import Given, coverage, normal
from oracles import F64
from sklearn.metrics.pairwise import rbf_kernel

from flowzoo.errors import UserError
from flowzoo.judge import pairs
from flowzoo.judge.measure import quantile
from flowzoo.judge.mmd import MMD, NAMES, bandwidth_of, divisions, median_distance, mmd_squared

GOLDEN = Path(__file__).parent / "golden" / "jko" / "mmd.npz"
RULES = ("median", "one", "tenth")
NONE = torch.zeros(0, 1, dtype=torch.long)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}


# --- the published numbers -----------------------------------------------------------------------


@pytest.mark.parametrize("i", range(3))
def test_golden_values(golden, i):
    x, y = golden["X"], golden["Y"]
    s = bandwidth_of(x, RULES[i])
    groups = golden["perms"].long()[:, : len(x)]
    found, permuted = mmd_squared(x, y, s, groups)
    assert 1 / (2 * s**2) == pytest.approx(golden["alphas_m_1_c"][i].item(), abs=1e-12)
    assert found.biased == pytest.approx(golden["mmd2_biased_m_1_c"][i].item(), abs=1e-12)
    assert found.unbiased == pytest.approx(golden["mmd2_unbiased_m_1_c"][i].item(), abs=1e-12)
    assert permuted.shape == (200,)
    tau = permuted.quantile(0.95).item()
    assert tau == pytest.approx(golden["tau95_m_1_c"][i].item(), abs=1e-12)


def test_golden_median(golden):
    median = golden["median_with_diag"].item()
    assert median_distance(golden["X"]) == pytest.approx(median, abs=1e-12)
    assert median != pytest.approx(golden["median_offdiag"].item(), abs=1e-3)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9])
def test_the_median_is_the_lower_one_with_the_diagonal(n):
    x = normal(n, 2, seed=n)
    assert median_distance(x) == pytest.approx(torch.cdist(x, x).median().item(), abs=1e-12)


def test_far_from_the_origin_nothing_cancels():
    x, y = normal(40, 3), normal(50, 3, seed=1, shift=0.2)
    near = mmd_squared(x, y, 1.0, NONE)[0]
    far = mmd_squared(x + 1e5, y + 1e5, 1.0, NONE)[0]
    assert far.biased == pytest.approx(near.biased, abs=1e-9)


def test_blocks_of_rows_change_nothing(monkeypatch):
    x, y = normal(30, 2), normal(45, 2, seed=1, shift=0.5)
    groups = divisions(30, 45, 5, torch.Generator().manual_seed(0))
    whole, permuted = mmd_squared(x, y, 0.7, groups)
    monkeypatch.setattr(pairs, "_ELEMENTS", 75 * 7)
    parts, again = mmd_squared(x, y, 0.7, groups)
    assert parts.biased == pytest.approx(whole.biased, abs=1e-14)
    assert parts.sampling == pytest.approx(whole.sampling, abs=1e-14)
    torch.testing.assert_close(again, permuted, rtol=0, atol=1e-14)


# --- the error -----------------------------------------------------------------------------------


def test_the_variance_is_the_jackknife_and_that_of_equal_laws():
    x, y = normal(9, 2), normal(12, 2, seed=1, shift=0.5)

    def without(points, i):
        return torch.cat((points[:i], points[i + 1 :]))

    def jackknife(values):
        return (len(values) - 1) * np.var(values)

    def unbiased(x, y):
        return mmd_squared(x, y, 0.8, NONE)[0].unbiased

    left_out = jackknife([unbiased(without(x, i), y) for i in range(9)])
    left_out += jackknife([unbiased(x, without(y, i)) for i in range(12)])
    # The square of the U-centred kernel, entry by entry (Szekely & Rizzo 2014, definition 2).
    z, n = torch.cat((x, y)).numpy(), 21
    k = rbf_kernel(z, gamma=0.5 / 0.8**2)
    np.fill_diagonal(k, 0)
    rows = k.sum(0) / (n - 2)
    centred = k - rows[:, None] - rows + k.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0)
    square = (centred**2).sum() / (n * (n - 3))
    expected = left_out + 2 * (1 / 72 + 1 / 132 + 2 / 108) * square
    assert mmd_squared(x, y, 0.8, NONE)[0].sampling ** 2 == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5])
def test_the_interval_holds_the_true_value(shift):
    dim, n, m = 2, 150, 200

    def expected(shift):
        return 3 ** (-dim / 2) * math.exp(-dim * shift**2 / 6)

    truth = 2 * expected(0.0) - 2 * expected(shift)
    found = [
        mmd_squared(normal(n, dim, seed), normal(m, dim, 1000 + seed, shift), 1.0, NONE)[0]
        for seed in range(200)
    ]
    assert coverage([(f.unbiased, quantile(n) * f.sampling) for f in found], truth) >= 0.965
    ratio = np.std([f.unbiased for f in found]) / np.mean([f.sampling for f in found])
    assert 0.45 < ratio < 1.15 if shift < 0.5 else 0.85 < ratio < 1.15


def test_random_divisions_are_subsets():
    groups = divisions(5, 7, 400, torch.Generator().manual_seed(0))
    assert groups.shape == (400, 5)
    assert all(len(set(group)) == 5 for group in groups.tolist())
    counts = groups.flatten().bincount(minlength=12)
    assert ((counts - 400 * 5 / 12).abs() < 5 * (400 * 5 * 7 / 144) ** 0.5).all()


def test_tau_is_exceeded_by_equal_laws_in_one_of_twenty():
    below = 0
    for seed in range(300):
        x, y = normal(30, 2, seed), normal(40, 2, 1000 + seed)
        groups = divisions(30, 40, 100, torch.Generator().manual_seed(seed))
        found, permuted = mmd_squared(x, y, 1.0, groups)
        below += found.biased <= permuted.quantile(0.95)
    assert 0.9 < below / 300 < 0.985


# --- the metric ----------------------------------------------------------------------------------


def test_names():
    assert NAMES == {"median": "mmd-m", "one": "mmd-1", "tenth": "mmd-c"}


@pytest.mark.parametrize("rule", RULES)
def test_the_measure_and_its_parts(rule):
    x, y = normal(300, 2), normal(400, 2, seed=1, shift=0.4)
    subject = Given(x, y)
    found = MMD(rule, samples=250).measure(subject)
    chosen = x[subject.rows(250)]
    s = {"median": 1.0, "one": 1 / median_distance(chosen), "tenth": 0.1}[rule]
    s *= median_distance(chosen)
    expected = rbf_kernel(chosen, gamma=0.5 / s**2).mean()
    expected += rbf_kernel(y[:250], gamma=0.5 / s**2).mean()
    expected -= 2 * rbf_kernel(chosen, y[:250], gamma=0.5 / s**2).mean()
    measure = found.pop(NAMES[rule])
    assert not found
    assert measure.value == pytest.approx(expected, abs=1e-12)
    parts = measure.parts
    assert measure.error == pytest.approx(quantile(250) * parts["sampling"])
    assert (parts["n"], parts["m"]) == (250, 250)
    assert parts["bandwidth"] == pytest.approx(s)
    assert parts["unbiased"] < measure.value
    assert measure.better == "lower"
    assert "no difference" in measure.note
    assert subject.asked == [(250, 0)]


def test_equal_laws_are_below_tau_and_others_above():
    x = normal(300, 2)
    same = MMD().measure(Given(x, normal(300, 2, seed=1)))["mmd-m"]
    other = MMD().measure(Given(x, normal(300, 2, seed=1, shift=0.5)))["mmd-m"]
    assert same.value < same.parts["tau"]
    assert other.value > 2 * other.parts["tau"]


def test_all_test_points_are_taken_where_they_are_few():
    parts = MMD(samples=50).measure(Given(normal(20, 2), normal(60, 2)))["mmd-m"].parts
    assert (parts["n"], parts["m"]) == (20, 50)


def test_a_kernel_that_sees_nothing_is_named():
    """In 43 dimensions and with s = 1 even a wrong law has the value of any two samples."""
    x, y = normal(200, 43), normal(200, 43, seed=1, shift=0.5)
    dead = MMD("one").measure(Given(x, y))["mmd-1"]
    assert "too narrow" in dead.note
    assert dead.value == pytest.approx(1 / 200 + 1 / 200, rel=1e-3)
    assert "too narrow" not in MMD("median").measure(Given(x, y))["mmd-m"].note


def test_it_repeats():
    subject = Given(normal(50, 2), normal(50, 2, seed=1))
    assert MMD().measure(subject) == MMD().measure(subject)


def test_samples_in_single_precision_are_compared_in_double():
    x, y = normal(50, 2), normal(50, 2, seed=1)
    double = MMD("one").measure(Given(x.float().double(), y.float().double()))
    assert MMD("one").measure(Given(x.float(), y.float())) == double


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_test_points_have_no_mmd(n):
    assert MMD().measure(Given(normal(n, 2), normal(50, 2))) == {}


def test_four_test_points_are_enough():
    assert MMD("one").measure(Given(normal(4, 1), normal(50, 1)))["mmd-1"].finite


def test_test_points_that_coincide_have_no_median():
    with pytest.raises(UserError, match="bandwidth: one"):
        MMD().measure(Given(torch.zeros(20, 2, dtype=F64), normal(20, 2)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"bandwidth": "mean"}, "bandwidth of mmd is 'mean'; it must be one of median, one, tenth"),
        ({"samples": 3}, "samples of mmd must be at least 4, got 3"),
        ({"permutations": 19}, "permutations of mmd must be at least 20"),
    ],
)
def test_options_are_checked(options, sentence):
    with pytest.raises(UserError, match=sentence):
        MMD(**options)
