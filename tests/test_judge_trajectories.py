"""What the judge says of trajectories: their cost, their detours, the way back."""

from __future__ import annotations

import pytest
import torch
from judge_subjects import Field, Rows, Scale, all_metrics, gaussian, matching, optimal
from oracles import F64, Drift, Linear

from flowzoo.continuous import Continuous
from flowzoo.flow import Chain
from flowzoo.integrators import RK1, RK4
from flowzoo.judge import evaluate
from flowzoo.judge.metrics import KL, RoundTrip, TransportCost
from flowzoo.judge.subject import Elapsed

# --- trajectories --------------------------------------------------------------------------------


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
    assert abs(measures["optimality"].value - 1) < 4 * measures["optimality"].error
    assert measures["optimality"].error == pytest.approx(expected / data.transport_cost, rel=1e-2)


def test_a_curved_flow_makes_a_detour():
    dataset = gaussian(3, condition=30.0)
    measures = evaluate(matching(dataset), dataset.load(), metrics=[TransportCost(), KL()])
    assert abs(measures["kl"].value) < 1e-4  # it arrives where the optimal one does
    assert measures["detour"].value > 1.02 + 5 * measures["detour"].error
    assert measures["optimality"].value > 1.02


def test_the_error_of_the_detour_is_that_of_a_ratio():
    """Against the spread over independent test sets of the ratio itself."""
    flow, ratios, errors = None, [], []
    for seed in range(20):
        dataset = gaussian(2, test=200, condition=30.0, correlated=False, seed=seed)
        flow = flow or matching(dataset)
        detour = evaluate(flow, dataset.load(), metrics=[TransportCost()], tolerance=1e-4)["detour"]
        ratios.append(detour.value)
        errors.append(detour.error)
    spread, error = torch.tensor(ratios).std().item(), sum(errors) / 20
    assert 0.6 * spread < error < 1.6 * spread


@pytest.mark.parametrize("end_time", [0.5, 3.0])
def test_the_cost_does_not_depend_on_the_duration(end_time):
    """v(t / T) / T from 0 to T moves the points along the same lines, at another speed."""
    dataset = gaussian(2)
    slow = Field(lambda t, x: dataset.oracle.velocity(t / end_time, x) / end_time, 2)
    data = dataset.load()
    metrics = [TransportCost()]
    once = evaluate(optimal(dataset), data, metrics=metrics)
    again = evaluate(Continuous(slow, end_time=end_time), data, metrics=metrics)
    for name, measure in once.items():
        assert again[name].value == pytest.approx(measure.value, rel=1e-4)


def test_a_chain_along_straight_lines_is_straight():
    dataset = gaussian(2)
    data, velocity = dataset.load(), dataset.oracle.velocity
    halves = [Field(lambda t, x, k=k: velocity((t + k) / 2, x) / 2, 2) for k in range(2)]
    chain = Chain([Continuous(half, RK4(4)) for half in halves])
    measures = evaluate(chain, data, metrics=all_metrics())
    whole = evaluate(optimal(dataset), data, metrics=all_metrics())
    assert measures["detour"].value == pytest.approx(1, abs=1e-4)
    for name in ("nll", "transport", "optimality"):
        assert measures[name].value == pytest.approx(whole[name].value, abs=1e-4)
    elapsed = chain.encode(data.test, [Elapsed()]).costs
    assert elapsed == pytest.approx(2 * torch.ones_like(elapsed))


def test_points_that_stay_where_they_are_have_no_ratios():
    """The standard normal is optimally carried to itself: 0 / 0 is not a divergence."""
    dataset = gaussian(2, condition=1.0, mean=0.0)
    measures = evaluate(Continuous(Drift(2)), dataset.load(), metrics=[TransportCost()])
    assert measures.keys() == {"transport", "detour"}
    for still in (lambda t, x: 0 * x, lambda t, x: 1e-9 * x):
        flow = Continuous(Field(still, 2))
        measures = evaluate(flow, dataset.load(), metrics=[TransportCost()])
        assert measures.keys() == {"transport"}
        assert measures["transport"].value == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("flow", [Scale(3), Chain([Scale(3), Continuous(Drift(3))])])
def test_flows_without_trajectories_have_no_cost(flow, places):
    assert evaluate(flow, Rows(places(20)), metrics=[TransportCost()]) == {}


# --- there and back ------------------------------------------------------------------------------


def test_the_round_trip_of_a_coarse_solver():
    """Euler there and back multiplies by (1 + a h)(1 - a h): off by a^2 h^2 |x| at each step."""
    data, flow = gaussian(3).load(), Continuous(Linear(torch.eye(3, dtype=F64)), RK1(4))
    trip = evaluate(flow, data, metrics=[RoundTrip()])["round-trip"]
    distance = (1 - (1 - 1 / 16) ** 4) * data.test.norm(dim=-1)
    assert trip.value == pytest.approx(distance.mean().item())
    assert trip.parts["largest"] == pytest.approx(distance.max().item())
    assert trip.error == pytest.approx(distance.std().item() / 20)
    assert evaluate(Scale(3), data, metrics=[RoundTrip()])["round-trip"].value < 1e-15
