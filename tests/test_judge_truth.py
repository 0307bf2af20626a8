"""The judge against oracles: how far density, map and velocity are from the true ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from judge_subjects import Field, Rows, Scale, gaussian, matching, optimal
from oracles import F64, GaussianOT, SmallVelocity

from flowzoo.continuous import Continuous
from flowzoo.data.synthetic import Mixture
from flowzoo.errors import UserError
from flowzoo.field import Gradient
from flowzoo.flow import Chain
from flowzoo.judge import Subject, evaluate, truth
from flowzoo.judge.measure import quantile
from flowzoo.judge.trajectories import resolution
from flowzoo.judge.truth import DensityError, MapError, VelocityError

ALL = [DensityError(), MapError(), VelocityError()]
NAMES = {"density-error", "map-error", "velocity-error", "matching-velocity-error"}
COARSE = [1e-1, 1e-2, 1e-3]
SIGNS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=F64)


def known(dataset, test=None):
    """Return test points with all that the oracle knows."""
    oracle, x = dataset.oracle, dataset.load().test if test is None else test
    return Rows(x, log_prob=oracle.log_prob, oracle=oracle)


class Silent:
    """An oracle that knows nothing."""


# --- no error ------------------------------------------------------------------------------------


@pytest.mark.parametrize("end_time", [1.0, 0.25, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_optimal_flow_has_the_optimal_map_and_velocity(dtype, end_time):
    dataset = gaussian(3)
    velocity = dataset.oracle.velocity
    field = Field(lambda t, x: velocity(t / end_time, x) / end_time, 3, dtype)
    measures = evaluate(Continuous(field, end_time=end_time), known(dataset), metrics=ALL)
    assert measures.keys() == NAMES
    assert measures["map-error"].value < (1e-5 if dtype == F64 else 1e-4)
    for name in ("map-error", "density-error"):  # zero lies in the interval, but for the finer
        assert measures[name].value - 1e-7 < measures[name].error < 1e-3  # solve's own error
    off = measures["velocity-error"]  # by a float64 copy, whatever the weights were trained in
    assert off.value < 1e-6
    assert off.error < 1e-6
    assert measures["matching-velocity-error"].value > 0.3


def test_the_end_time_may_be_learnt():
    dataset = gaussian(2)
    velocity = dataset.oracle.velocity
    field = Field(lambda t, x: velocity(t / 2, x) / 2, 2)
    flow = Continuous(field, end_time=2.0, train_end_time=True)
    assert evaluate(flow, known(dataset), metrics=ALL)["velocity-error"].value < 1e-6
    with torch.no_grad():
        flow.raw_end_time.mul_(0.5)
    assert evaluate(flow, known(dataset), metrics=ALL)["velocity-error"].value > 0.1


@pytest.mark.parametrize("dataset", [gaussian(2, condition=30.0), Mixture(2, 4, test=300)])
def test_the_matching_flow_has_the_marginal_velocity(dataset):
    measures = evaluate(matching(dataset), known(dataset), metrics=[VelocityError()])
    assert measures["matching-velocity-error"].value < 1e-12
    assert measures["matching-velocity-error"].error < 1e-12


# --- known errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.7, 1.5])
def test_the_error_of_a_scaled_velocity_is_what_it_is_scaled_by(factor):
    dataset = gaussian(3)
    scaled = {
        "velocity-error": dataset.oracle.velocity,
        "matching-velocity-error": dataset.oracle.matching_velocity,
    }
    for name, fn in scaled.items():
        flow = Continuous(Field(lambda t, x, fn=fn: factor * fn(t, x), 3))
        found = evaluate(flow, known(dataset), metrics=[VelocityError(2)])[name]
        assert found.value == pytest.approx(abs(factor - 1), rel=1e-9)
        assert found.error < 1e-7  # the same at every point, so nothing is left to chance


def true_velocity_error(oracle, name):
    """Return the error of one of the two velocities where the other is the true one, by quadrature.

    Both are linear in the place, so four points with the moments of its law stand for it.
    """
    nodes, weights = np.polynomial.legendre.leggauss(40)
    deviations, off, size = oracle.variances.sqrt(), 0.0, 0.0
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        spread = (1 - t) * deviations + t  # of the displacement
        if name == "matching-velocity-error":  # of a sum of independent parts
            spread = ((1 - t) ** 2 * oracle.variances + t**2).sqrt()
        place = (1 - t) * oracle.mean + (SIGNS * spread) @ oracle.basis.mT
        u, v = oracle.velocity(t, place), oracle.matching_velocity(t, place)
        off += weight * (v - u).square().sum(-1).mean().item()
        true = u if name == "velocity-error" else v
        size += weight * true.square().sum(-1).mean().item()
    return (off / size) ** 0.5


@pytest.mark.parametrize("times", [1, 8])
@pytest.mark.parametrize("name", ["velocity-error", "matching-velocity-error"])
def test_the_error_of_the_velocity_holds_the_true_one(name, times):
    """In repeated draws of the test points, and is no wider than they scatter."""
    shape = gaussian(2, condition=30.0, test=300)
    flow = matching(shape) if name == "velocity-error" else optimal(shape)
    expected = true_velocity_error(shape.oracle, name)
    assert expected > 0.3
    values, errors = [], []
    for seed in range(40):
        x = shape.sample(300, torch.Generator().manual_seed(seed))
        rows, metric = known(shape, x), VelocityError(times)
        found = evaluate(flow, rows, metrics=[metric], seed=seed, tolerance=1e-2)[name]
        values.append(found.value)
        errors.append(found.error)
    values, errors = torch.tensor(values), torch.tensor(errors)
    assert ((values - expected).abs() < errors).sum() >= 38
    spread = quantile(300) * values.std()
    assert 0.7 * spread < errors.mean() < 1.4 * spread


def test_more_times_for_each_point_make_it_more_exact():
    dataset = gaussian(2, condition=30.0, test=100)
    flow, rows = matching(dataset), known(dataset)
    once, often = (evaluate(flow, rows, metrics=[VelocityError(times)]) for times in (1, 16))
    assert often["velocity-error"].error < 0.9 * once["velocity-error"].error


def test_the_error_of_the_map_holds_the_true_one():
    """z = x / s against Sigma^{-1/2} (x - m): |m|^2 / s^2 + sum_i (sqrt(var_i) / s - 1)^2."""
    shape, s = gaussian(3, condition=20.0), 1.5
    gaps = shape.oracle.variances.sqrt() / s - 1
    square = (shape.oracle.mean / s).square().sum().item() + gaps.square().sum().item()
    values, errors, explained = [], [], 0
    for seed in range(60):
        x = shape.sample(300, torch.Generator().manual_seed(seed))
        found = evaluate(Scale(3, s), known(shape, x), metrics=[MapError()])["map-error"]
        values.append(found.value)
        errors.append(found.error)
        uvp = found.parts["uvp"]
        assert uvp == pytest.approx(100 * found.value**2 / 3, rel=1e-9)
        explained += abs(uvp - 100 * square / 3) < found.parts["uvp_error"]
    values, errors = torch.tensor(values), torch.tensor(errors)
    assert ((values - square**0.5).abs() < errors).sum() >= 57
    assert explained >= 57
    spread = quantile(300) * values.std()
    assert 0.75 * spread < errors.mean() < 1.33 * spread


def test_the_error_of_the_density_is_the_mean_distance():
    dataset = gaussian(3, test=1000)
    data, flow = known(dataset), Continuous(Gradient(GaussianOT(3, 1.7)))
    found = evaluate(flow, data, metrics=[DensityError()])["density-error"]
    z = data.test / 1.7
    own = (-0.5 * z**2 - 0.5 * np.log(2 * np.pi) - np.log(1.7)).sum(-1)
    gaps = (data.log_prob(data.test) - own).abs()
    assert found.value == pytest.approx(gaps.mean().item(), rel=1e-4)
    assert found.parts["sampling"] == pytest.approx(gaps.std().item() / 1000**0.5, rel=1e-3)
    random = quantile(1000) * found.parts["sampling"]
    assert found.error == pytest.approx(random + found.parts["solver"], rel=1e-9)


def test_a_network_is_asked_in_float64_whatever_it_was_trained_in():
    dataset = gaussian(2)
    flow = Continuous(SmallVelocity(2)).to(torch.float32)
    found = evaluate(flow, known(dataset), metrics=[VelocityError()])
    double = evaluate(flow.double(), known(dataset), metrics=[VelocityError()])
    for name in ("velocity-error", "matching-velocity-error"):
        assert found[name].value == pytest.approx(double[name].value, rel=1e-6)


# --- the certificate -----------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", COARSE)
def test_the_solver_error_covers_a_coarse_judge(tolerance):
    """The matching flow of a centred or shifted Gaussian arrives where the optimal one does."""
    dataset = gaussian(2, condition=30.0, test=1000)
    metrics = [DensityError(), MapError()]
    measures = evaluate(matching(dataset), known(dataset), metrics=metrics, tolerance=tolerance)
    for name in ("density-error", "map-error"):
        found = measures[name]
        assert 1e-6 < found.value <= found.parts["solver"] <= found.error < 40 * found.value


def test_the_solver_error_of_the_density_is_that_of_absolute_values():
    """A truth half way between the two solves is equally far from both, point by point."""
    dataset = gaussian(2, condition=30.0, test=100)
    flow, rows = matching(dataset), known(dataset)
    subject = Subject(flow, rows, tolerance=1e-2)
    order, fine = subject.again(100)
    halfway = 0.5 * (subject.log_prob[order] + fine.log_prob)
    truths = torch.empty_like(halfway).index_copy(0, order, halfway)
    between, above = (
        evaluate(
            flow,
            Rows(rows.test, log_prob=lambda x, at=at: at),
            metrics=[DensityError(100)],
            tolerance=1e-2,
        )["density-error"]
        for at in (truths, truths + 1)
    )
    assert between.value > 1e-4
    assert between.parts["solver"] == pytest.approx(1e-4)  # what the finer solve is trusted to
    change = (subject.log_prob[order] - fine.log_prob).mean().abs().item()
    assert above.parts["solver"] == pytest.approx(change + 1e-4, rel=1e-9)


def test_one_point_has_no_error():
    dataset = gaussian(2)
    rows = known(dataset, dataset.load().test[:1])
    measures = evaluate(matching(dataset), rows, metrics=ALL)
    assert measures.keys() == NAMES
    assert all(found.error is None for found in measures.values())
    assert "uvp_error" not in measures["map-error"].parts


# --- what is known, and of what ------------------------------------------------------------------


@pytest.mark.parametrize("oracle", [None, Silent()])
def test_nothing_is_said_where_nothing_is_known(oracle, places):
    rows = Rows(places(20), oracle=oracle)
    assert evaluate(Continuous(SmallVelocity(3)), rows, metrics=ALL) == {}


def test_a_mixture_has_a_density_and_a_marginal_velocity_but_no_optimal_map():
    measures = evaluate(matching(data := Mixture(2, 4, test=100)), known(data), metrics=ALL)
    assert measures.keys() <= {"density-error", "matching-velocity-error"}
    assert measures["density-error"].value < 1e-3


def test_only_a_single_ode_has_a_velocity():
    dataset = gaussian(2)
    for flow in (Scale(2), Chain([optimal(dataset)])):
        measures = evaluate(flow, known(dataset), metrics=ALL)
        assert measures.keys() == {"density-error", "map-error"}


def test_a_velocity_of_zero_has_no_relative_error():
    """The standard normal is optimally left where it is; linear paths move it all the same."""
    dataset = gaussian(2, condition=1.0, mean=0.0)
    rows = known(dataset)
    measures = evaluate(Continuous(SmallVelocity(2)), rows, metrics=[VelocityError()])
    assert measures.keys() == {"matching-velocity-error"}
    subject = Subject(optimal(dataset), rows, tolerance=1e-3)
    assert resolution(subject) == pytest.approx(1e-6 * rows.test.square().sum(-1).mean().item())


def test_velocities_are_asked_for_in_pieces(monkeypatch):
    dataset = gaussian(2, condition=30.0)
    whole = evaluate(matching(dataset), known(dataset), metrics=[VelocityError()])
    monkeypatch.setattr(truth, "_AT_ONCE", 7)
    pieces = evaluate(matching(dataset), known(dataset), metrics=[VelocityError()])
    for name, found in whole.items():
        assert pieces[name].value == pytest.approx(found.value, rel=1e-12, abs=1e-12)


def test_a_conditional_velocity_is_given_its_context(places):
    class Centred:
        """The law of N(context, I), of which the test points are the only ones known."""

        def transport(self, x):
            return x - context

    x, context = places(60), places(60, seed=1)

    class Asked(Field):
        context_dim = 3

        def forward(self, t, x, context=None):
            return -self.one * context

    rows = Rows(x, context, oracle=Centred())
    measures = evaluate(Continuous(Asked(None, 3)), rows, metrics=[MapError(), VelocityError()])
    assert measures["map-error"].value < 1e-12
    assert measures["velocity-error"].value < 1e-12


def test_wrong_options_are_met_with_a_sentence():
    for metric in (DensityError, MapError):
        with pytest.raises(UserError, match="at least 2 points, got 1"):
            metric(subsample=1)
    with pytest.raises(UserError, match=r"velocity-error needs at least 1 time .* got 0"):
        VelocityError(times=0)
