"""What the judge says of trajectories: their cost, their detours, the way back."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from judge_subjects import Field, Rows, Scale, gaussian, matching, optimal
from oracles import F64, Drift, Linear

from flowzoo.continuous import Continuous
from flowzoo.data.oracles import GaussianOracle
from flowzoo.data.synthetic import Mixture
from flowzoo.flow import Chain
from flowzoo.integrators import RK1, RK4
from flowzoo.judge import evaluate
from flowzoo.judge.inverse import InverseError
from flowzoo.judge.likelihood import KL, NLL
from flowzoo.judge.measure import quantile
from flowzoo.judge.solves import Elapsed
from flowzoo.judge.trajectories import PathEnergy, Straightness, TransportCost
from flowzoo.odeint import Dopri5

ALL = [TransportCost(), PathEnergy(), Straightness()]
GOLDEN = Path(__file__).parent / "golden" / "matching" / "gaussian_flow.npz"

# --- cost --------------------------------------------------------------------------------


def test_the_optimal_flow_is_optimal_and_straight():
    dataset = gaussian(3, test=2000)
    data = dataset.load()
    measures = evaluate(optimal(dataset), data, metrics=[TransportCost()])
    true_cost = 0.5 * (data.test - dataset.oracle.transport(data.test)).square().sum(-1)
    assert measures["transport"].value == pytest.approx(true_cost.mean().item(), abs=1e-5)
    expected = true_cost.std().item() / 2000**0.5
    assert measures["transport"].parts["sampling"] == pytest.approx(expected, rel=1e-3)
    assert measures["detour"].value == pytest.approx(1, abs=1e-5)
    assert measures["detour"].error < 1e-5  # both costs are the same at every point
    assert abs(measures["optimality"].value - 1) < measures["optimality"].error
    error = quantile(2000) * expected / data.transport_cost
    assert measures["optimality"].error == pytest.approx(error, rel=1e-2)


def test_a_curved_flow_makes_a_detour():
    dataset = gaussian(3, condition=30.0)
    measures = evaluate(matching(dataset), dataset.load(), metrics=[TransportCost(), KL()])
    assert abs(measures["kl"].value) < 1e-4  # it arrives where the optimal one does
    assert measures["detour"].value > 1.02 + 2 * measures["detour"].error
    assert measures["optimality"].value > 1.02


def test_the_error_of_the_detour_is_that_of_a_ratio():
    """Against the spread over independent test sets of the ratio itself."""
    flow, ratios, errors = None, [], []
    for seed in range(20):
        dataset = gaussian(2, test=200, condition=30.0, correlated=False, seed=seed)
        flow = flow or matching(dataset)
        detour = evaluate(flow, dataset.load(), metrics=[TransportCost()], tolerance=1e-4)["detour"]
        ratios.append(detour.value)
        errors.append(detour.error / quantile(200))
    spread, error = torch.tensor(ratios).std().item(), sum(errors) / 20
    assert 0.6 * spread < error < 1.6 * spread


@pytest.mark.parametrize("end_time", [0.5, 3.0])
def test_the_cost_does_not_depend_on_the_duration(end_time):
    """v(t / T) / T from 0 to T moves the points along the same lines, at another speed."""
    dataset = gaussian(2)
    slow = Field(lambda t, x: dataset.oracle.velocity(t / end_time, x) / end_time, 2)
    data = dataset.load()
    once = evaluate(optimal(dataset), data, metrics=ALL)
    again = evaluate(Continuous(slow, end_time=end_time), data, metrics=ALL)
    for name, measure in once.items():
        assert again[name].value == pytest.approx(measure.value, rel=1e-4, abs=1e-9)


def test_a_chain_along_straight_lines_is_straight():
    dataset = gaussian(2)
    data, velocity = dataset.load(), dataset.oracle.velocity
    halves = [Field(lambda t, x, k=k: velocity((t + k) / 2, x) / 2, 2) for k in range(2)]
    chain = Chain([Continuous(half, RK4(4)) for half in halves])
    measures = evaluate(chain, data, metrics=[NLL(), *ALL])
    whole = evaluate(optimal(dataset), data, metrics=[NLL(), *ALL])
    assert measures["detour"].value == pytest.approx(1, abs=1e-4)
    assert measures["straightness"].value == pytest.approx(0, abs=1e-4)
    for name in ("nll", "transport", "optimality", "path-energy", "npe"):
        assert measures[name].value == pytest.approx(whole[name].value, abs=1e-4)
    elapsed = chain.encode(data.test, [Elapsed()]).costs
    assert elapsed == pytest.approx(2 * torch.ones_like(elapsed))


def test_points_that_stay_where_they_are_have_no_ratios():
    """The standard normal is optimally carried to itself: 0 / 0 is not a divergence."""
    dataset = gaussian(2, condition=1.0, mean=0.0)
    measures = evaluate(Continuous(Drift(2)), dataset.load(), metrics=ALL)
    assert measures.keys() == {"transport", "detour", "path-energy", "straightness"}
    for still in (lambda t, x: 0 * x, lambda t, x: 1e-9 * x):
        flow = Continuous(Field(still, 2))
        data = replace(dataset.load(), transport_cost=1e-16)
        measures = evaluate(flow, data, metrics=ALL)
        assert measures.keys() == {"transport", "path-energy", "straightness"}
        assert measures["transport"].value == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("flow", [Scale(3), Chain([Scale(3), Continuous(Drift(3))])])
def test_flows_without_trajectories_have_no_cost(flow, places):
    assert evaluate(flow, Rows(places(20)), metrics=ALL) == {}


# --- energy and straightness ---------------------------------------------------------------------


def quadrature(dataset, nodes=24):
    """Return E |v|^2 and E |z - x|^2 of the exact matching flow of a Gaussian, by its closed form.

    A trajectory of N(m, diag s^2) is (1 - t) m + sigma(t) u, u = (x - m) / s fixed, with sigma^2 =
    (1 - t)^2 s^2 + t^2; so v = -m + sigma' u, and z - x = -m + (1 - s) u.
    """
    m, s = dataset.oracle.mean, dataset.oracle.variances.sqrt()
    t, weights = np.polynomial.legendre.leggauss(nodes)
    t, weights = torch.from_numpy((t + 1) / 2)[:, None], torch.from_numpy(weights / 2)
    slope = (t - (1 - t) * s.square()) / ((1 - t).square() * s.square() + t.square()).sqrt()
    energy = m.square().sum() + (weights @ slope.square()).sum()
    return energy.item(), (m.square().sum() + (1 - s).square().sum()).item()


def test_the_optimal_flow_has_the_least_energy_and_straight_lines():
    dataset = gaussian(3, test=2000)
    measures = evaluate(optimal(dataset), dataset.load(), metrics=[PathEnergy(), Straightness()])
    npe = measures["npe"]
    assert npe.value == abs(npe.parts["difference"]) < npe.error < 0.1
    assert measures["straightness"].value == pytest.approx(0, abs=1e-9)
    assert measures["straightness"].error < 3e-7  # what the finer solve is trusted to
    energy, direct = measures["path-energy"], 2 * dataset.oracle.transport_cost
    assert abs(energy.value - direct) < energy.error
    assert npe.parts["difference"] == pytest.approx(energy.value / direct - 1, rel=1e-9)
    assert npe.error == pytest.approx(energy.error / direct, rel=1e-9)


SIGNS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=F64)


def exactly(mean, deviations, transport_cost):
    """Return four points with the moments of N(mean, diag deviations^2).

    Along linear fields costs are quadratic in the point, so their mean over these is the expected.
    """
    return Rows(mean + deviations * SIGNS, transport_cost=transport_cost)


def test_energy_and_straightness_of_a_matching_flow_are_those_of_quadrature():
    dataset = gaussian(2, condition=30.0, correlated=False)
    oracle = dataset.oracle
    rows = exactly(oracle.mean, oracle.variances.sqrt(), oracle.transport_cost)
    measures = evaluate(matching(dataset), rows, metrics=ALL, tolerance=1e-8)
    energy, direct = quadrature(dataset)
    assert direct == pytest.approx(oracle.w2_squared)
    assert measures["path-energy"].value == pytest.approx(energy, rel=1e-6)
    assert measures["straightness"].value == pytest.approx(energy - direct, rel=1e-6)
    assert measures["npe"].value == pytest.approx(energy / direct - 1, rel=1e-6)
    assert measures["npe"].parts["difference"] > 0
    assert measures["path-energy"].value == pytest.approx(2 * measures["transport"].value)
    sample = evaluate(matching(dataset), dataset.load(), metrics=[PathEnergy()])["path-energy"]
    assert abs(sample.value - energy) < sample.error < 0.3 * energy


def test_energy_and_straightness_agree_with_golden_values():
    with np.load(GOLDEN) as stored:
        g = {name: torch.from_numpy(stored[name]) for name in stored.files}
    oracle = GaussianOracle(g["m"], torch.eye(2, dtype=F64), g["s"].square())
    flow = Continuous(Field(oracle.matching_velocity, 2))
    rows = exactly(g["m"], g["s"], oracle.transport_cost)
    measures = evaluate(flow, rows, metrics=ALL, tolerance=1e-9)
    assert measures["path-energy"].value == pytest.approx(g["path_energy"].item(), abs=1e-7)
    assert measures["straightness"].value == pytest.approx(g["straightness"].item(), abs=1e-7)
    assert measures["npe"].value == pytest.approx(g["npe"].item(), abs=1e-7)


def test_an_energy_below_the_optimum_counts_as_a_distance_from_it():
    """A flow that does not arrive is cheap: the ratio would reward it."""
    rows = Rows(2 * SIGNS, transport_cost=1.0)
    half = Continuous(Field(lambda t, x: -0.5 * x / (1 - 0.5 * t), 2))  # straight, to x / 2
    npe = evaluate(half, rows, metrics=[PathEnergy()])["npe"]
    assert npe.parts["difference"] == pytest.approx(0, abs=1e-9)  # E |x / 2|^2 = 2 = W2^2
    less = Continuous(Field(lambda t, x: -0.25 * x / (1 - 0.25 * t), 2))
    npe = evaluate(less, rows, metrics=[PathEnergy()])["npe"]
    assert npe.value == pytest.approx(0.75)
    assert npe.parts["difference"] == pytest.approx(-0.75)


@functools.cache
def many_modes():
    dataset = Mixture(2, 4, scale=0.3, train=10, val=10, test=500)
    return matching(dataset), dataset.load()


@functools.cache
def finely():
    flow, data = many_modes()
    return evaluate(flow, data, metrics=ALL, tolerance=1e-7)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3])
def test_the_solver_error_covers_a_coarse_judge(tolerance):
    flow, data = many_modes()
    coarse, fine = evaluate(flow, data, metrics=ALL, tolerance=tolerance), finely()
    for name in ("transport", "detour", "path-energy", "straightness"):
        wrong = abs(coarse[name].value - fine[name].value)
        assert 0 < wrong < coarse[name].parts["solver"] < 40 * wrong


# --- there and back ------------------------------------------------------------------------------


def test_the_inverse_error_of_a_coarse_solver():
    """Euler there and back multiplies by (1 + a h)(1 - a h): off by a^2 h^2 |x| at each step."""
    data, flow = gaussian(3).load(), Continuous(Linear(torch.eye(3, dtype=F64)), RK1(4))
    trip = evaluate(flow, data, metrics=[InverseError()])["inverse-error"]
    distance = (1 - (1 - 1 / 16) ** 4) * data.test.norm(dim=-1)
    assert trip.value == pytest.approx(distance.mean().item())
    assert trip.parts["largest"] == pytest.approx(distance.max().item())
    assert trip.error == pytest.approx(quantile(400) * distance.std().item() / 20)
    assert 0 < trip.parts["judge"] < trip.parts["judge_largest"] < 1e-3 * trip.value
    assert evaluate(Scale(3), data, metrics=[InverseError()])["inverse-error"].value < 1e-15


def test_the_judge_sees_the_inverse_error_that_its_nll_reports():
    """With the judge's numerics for its own, both are one number; the NLL's is on fewer points."""
    dataset = gaussian(2, condition=30.0)
    flow = matching(dataset, integrator=Dopri5(1e-5, 1e-5))
    measures = evaluate(flow, dataset.load(), metrics=[NLL(400), InverseError(400)])
    found = measures["inverse-error"]
    assert found.value == pytest.approx(found.parts["judge"], rel=0.1)
    assert found.parts["judge"] == measures["nll"].parts["inverse"]
    assert found.parts["largest"] > found.value > 1e-7
