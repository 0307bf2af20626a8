"""What a residual block is used for: costs of a step, the judge's numerics, options."""

from __future__ import annotations

import pytest
import torch
from judge_subjects import Rows
from oracles import F64
from residual_flows import block, by_autograd

from flowzoo.errors import Incompatible, UserError
from flowzoo.flow import Chain
from flowzoo.judge.likelihood import NLL
from flowzoo.judge.subject import Subject
from flowzoo.regularizers import HJB, JacobianFrobenius, RunningCost, Transport
from flowzoo.traces import Exact
from flowzoo_residual.flow import Residual

# --- costs ---------------------------------------------------------------------------------------


def test_costs_of_a_chain_are_those_of_its_steps(places):
    blocks = [block(3, (5, 4), seed=s, lipschitz=None) for s in range(3)]
    x = places(6, 3)
    found = Chain(blocks).encode(x, [JacobianFrobenius(), Transport()]).costs
    expected, at = torch.zeros(6, 2, dtype=F64), x
    for each in blocks:
        z, j = by_autograd(each, at)
        turn = (j - torch.eye(3, dtype=F64)).square().sum((1, 2))
        expected += torch.stack([turn, 0.5 * (z - at).square().sum(-1)], -1)
        at = z
    assert torch.allclose(found, expected, atol=1e-12)
    back = Chain(blocks).generate(at, [JacobianFrobenius(), Transport()])
    assert torch.allclose(back.costs, expected, atol=1e-9)
    assert torch.allclose(back.x, x, atol=1e-9)


def test_a_cost_that_needs_a_potential_is_refused(places):
    flow = block()
    for call in (flow.requires, lambda costs: flow.encode(places(), costs)):
        with pytest.raises(Incompatible, match="HJB needs phi_t"):
            call([HJB()])


def test_a_detached_cost_does_not_move_the_points(places):
    class Still(RunningCost):
        detached = True

        def rate(self, at, probes):
            return at.kinetic

    first, second = (block(3, (5, 4), seed=s) for s in range(2))
    for cost, moves in ((Still(), False), (Transport(), True)):
        costs = second.encode(first.encode(places()).z, [cost]).costs
        (grad,) = torch.autograd.grad(
            costs.sum(), first.network.layers[0].linear.weight, allow_unused=True
        )
        assert (grad is not None and bool(grad.any())) == moves
        assert costs.grad_fn is not None


# --- the judge -----------------------------------------------------------------------------------


@pytest.mark.parametrize("log_det", ["exact", "series", "neumann"])
def test_the_judge_scores_by_the_exact_log_determinant(places, log_det):
    flow = Chain([block(2, (8,), s, log_det=log_det, terms=1) for s in range(2)]).eval()
    x = places(50, 2)
    with torch.no_grad():
        expected = -flow.log_prob(x).mean().item()
    judged = NLL().measure(Subject(flow, Rows(x)))["nll"]
    assert judged.value == pytest.approx(expected, abs=1e-9)
    assert "exact log-determinant" in judged.note


def test_other_numerics_are_exact_and_leave_the_flow_as_it_was(places, seeded):
    flow, x = block(3, log_det="series", lipschitz=None).train(), places(4, 3)
    exact = flow.with_numerics(trace=Exact())
    assert torch.equal(exact.encode(x, generator=seeded(1)).ladj, exact.encode(x).ladj)
    assert not torch.equal(
        flow.encode(x, generator=seeded(1)).ladj, flow.encode(x, generator=seeded(2)).ladj
    )
    assert flow.log_det == "series"
    assert exact.network is flow.network


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lipschitz": 1.0}, "lipschitz must lie between 0 and 1"),
        ({"lipschitz": 0.0}, "lipschitz must lie between 0 and 1"),
        ({"hidden": []}, "hidden must name widths"),
        ({"hidden": [4, 0]}, "hidden must name widths"),
        ({"terms": 0}, "terms must be positive"),
        ({"samples": 0}, "samples must be positive"),
        ({"rate": 0.0}, "rate must be positive"),
        ({"scale": -1.0}, "scale must be positive"),
        ({"iterations": 0}, "iterations must be positive"),
        ({"power_iterations": 0}, "power_iterations must be positive"),
    ],
)
def test_numbers_out_of_range_are_refused(options, said):
    with pytest.raises(Incompatible, match=said):
        Residual(2, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"activation": "elus"}, "unknown activation 'elus'.*elu"),
        ({"log_det": "serie"}, "unknown log_det 'serie'.*series"),
    ],
)
def test_unknown_names_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        Residual(2, **options)
