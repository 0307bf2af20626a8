"""The judge against closed forms: likelihoods, divergences, and the certificate of both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from judge_subjects import Field, Rows, Scale, gaussian, matching, optimal
from oracles import F64, GaussianOT

from flowzoo.continuous import Continuous
from flowzoo.data import standardised
from flowzoo.data.oracles import GaussianOracle
from flowzoo.data.synthetic import Mixture
from flowzoo.field import Gradient
from flowzoo.judge import Subject, evaluate, mean
from flowzoo.judge.likelihood import KL, NLL
from flowzoo.judge.measure import quantile

DTYPES = [torch.float32, F64]


# --- likelihood ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 3])
def test_the_nll_of_the_exact_flow_is_that_of_the_true_density(dim, dtype):
    dataset = gaussian(dim)
    data = dataset.load()
    measures = evaluate(optimal(dataset, dtype), data, metrics=[NLL(), KL()])
    nll, kl = measures["nll"], measures["kl"]
    truth = -data.log_prob(data.test)
    assert nll.value == pytest.approx(truth.mean().item(), abs=2e-5)
    assert nll.parts["sampling"] == pytest.approx(truth.std().item() / 20, rel=1e-4)
    assert nll.parts["trace"] == 0
    random = quantile(400) * nll.parts["sampling"]
    assert nll.error == pytest.approx(random + nll.parts["solver"], rel=1e-12)
    assert abs(kl.value) < 2e-5
    assert kl.error < 2e-5
    assert abs(nll.value - data.entropy) < nll.error


@pytest.mark.parametrize("dtype", DTYPES)
def test_standardised_data_are_reported_in_their_own_coordinates(dtype):
    """The log-determinant of the standardisation is added once, and cancels in the KL."""
    dataset = gaussian(2, condition=30.0, mean=3.0)
    raw = dataset.load()
    data, scale = standardised(replace(raw, train=7 * raw.train))
    assert abs(scale.ladj) > 1  # so that forgetting it, or adding it twice, is seen
    back = (1 / scale.std).diag()
    inside = GaussianOracle.of(
        back @ (dataset.oracle.mean - scale.mean), back @ dataset.oracle.covariance @ back
    )
    flow = Continuous(Field(inside.velocity, 2, dtype))
    measures = evaluate(flow, data, scale, [NLL(), KL()])
    assert measures["nll"].value == pytest.approx(-raw.log_prob(raw.test).mean().item(), abs=5e-5)
    assert abs(measures["kl"].value) < 5e-5
    subject = Subject(flow, data, scale)
    assert subject.volume == scale.ladj
    assert data.entropy - scale.ladj == pytest.approx(raw.entropy)


def test_kl_between_two_gaussians():
    """KL(N(0, S) || N(0, s^2 I)) = (tr S / s^2 - d - log det(S / s^2)) / 2, within the error."""
    dataset = gaussian(3, test=4000, mean=0.0)
    data, s2 = dataset.load(), 1.7**2
    variances = dataset.oracle.variances
    truth = 0.5 * (variances.sum() / s2 - 3 - (variances / s2).log().sum()).item()
    flow = Continuous(Gradient(GaussianOT(3, 1.7)))
    kl = evaluate(flow, data, metrics=[KL()])["kl"]
    other = GaussianOracle(torch.zeros(3, dtype=F64), torch.eye(3, dtype=F64), s2 * torch.ones(3))
    gap = data.log_prob(data.test) - other.log_prob(data.test)
    assert kl.value == pytest.approx(gap.mean().item(), abs=2e-5)
    assert kl.parts["sampling"] == pytest.approx(gap.std().item() / 4000**0.5, rel=1e-3)
    assert abs(kl.value - truth) < kl.error < 0.06 * truth


def test_kl_needs_the_true_density(places):
    assert evaluate(Scale(3), Rows(places(20)), metrics=[KL()]) == {}


# --- the certificate -----------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3])
def test_the_solver_error_covers_a_coarse_judge(tolerance):
    dataset = Mixture(2, 4, scale=0.3, train=10, val=10, test=1000)
    data = dataset.load()
    measures = evaluate(matching(dataset), data, metrics=[NLL(), KL()], tolerance=tolerance)
    truth, nll = -data.log_prob(data.test).mean().item(), measures["nll"]
    wrong = abs(nll.value - truth)
    assert 1e-4 < wrong < nll.parts["solver"]
    assert measures["kl"].parts["solver"] == nll.parts["solver"] < 40 * wrong
    assert f"{tolerance:g}" in nll.note
    assert abs(measures["kl"].value) < measures["kl"].error


def test_the_certificate_shrinks_with_the_tolerance():
    dataset = Mixture(2, 4, scale=0.3, train=10, val=10, test=500)
    data = dataset.load()
    errors = [
        evaluate(matching(dataset), data, metrics=[NLL()], tolerance=tol)["nll"].parts["solver"]
        for tol in (1e-2, 1e-4, 1e-6)
    ]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_the_error_is_half_of_a_99_percent_interval():
    """Random errors add in squares, a bias adds as it is; the quantiles are those of tables."""
    assert quantile(10**6) == pytest.approx(2.5758, abs=1e-4)
    assert [quantile(n) for n in (2, 11)] == pytest.approx([63.657, 3.169], abs=1e-3)
    values, change = torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([0.2, 0.4, 0.2, 0.4])
    measure = mean(values, change, trace=2.0)
    assert measure.parts["sampling"] == pytest.approx((14 / 3 / 4) ** 0.5)
    assert measure.parts["trace"] == 2.0
    assert measure.parts["solver"] == pytest.approx(0.3)
    assert measure.error == pytest.approx(5.8409 * (14 / 12 + 4) ** 0.5 + 0.3, rel=1e-4)
    assert mean(values[:1], change[:1]).error is None


def test_changes_that_cancel_on_the_subsample_are_not_taken_for_none():
    values, change = torch.zeros(1000, dtype=F64), torch.tensor([1.0, -1.0] * 50, dtype=F64)
    solver = mean(values, change).parts["solver"]
    assert solver == pytest.approx(quantile(100) * change.std().item() * (0.9 / 100) ** 0.5)
    everything = torch.tensor([1.0, -0.5] * 500)  # nothing is left out: the mean change is known
    assert mean(values, everything).parts["solver"] == pytest.approx(0.25)


def test_the_solver_error_bounds_the_bias_as_often_as_it_says(seeded):
    """Over many subsamples of heavy-tailed changes; the mean alone does so every second time."""
    generator = seeded(4)
    change = torch.randn(2000, generator=generator, dtype=F64) ** 3 + 0.1
    bias, values = change.mean().abs().item(), torch.zeros(2000, dtype=F64)
    bounds, means = [], []
    for _ in range(500):
        part = change[torch.randperm(2000, generator=generator)[:200]]
        bounds.append(mean(values, part).parts["solver"] >= bias)
        means.append(part.mean().abs().item() >= bias)
    assert sum(bounds) > 0.98 * 500
    assert sum(means) < 0.75 * 500
