"""The likelihood objective against its formula, written out by hand."""

from __future__ import annotations

import pytest
import torch
from components import load, make, make_velocity, names, velocity_cases
from oracles import F64, SmallPotential, SmallVelocity, standard_normal

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible
from flowzoo.field import Gradient
from flowzoo.flow import Chain
from flowzoo.integrators import RK4
from flowzoo.objective import Batch, Likelihood, Loss, Objective, Stage
from flowzoo.regularizers import HJB, JKOW2, JacobianFrobenius, Regularizer, RunningCost, Transport
from flowzoo.traces import Hutchinson


def potential_flow(steps=3, context_dim=0):
    return Continuous(Gradient(SmallPotential(2, context_dim)), RK4(steps))


def test_the_loss_is_the_weighted_sum(places, seeded):
    flow, x = potential_flow(), places(6, 2)
    parts = [Transport(0.5), HJB(3.0), JKOW2(0.2, weight=0.7), JacobianFrobenius(0.01)]
    loss = Likelihood(2.0, parts).loss(flow, Batch(x), seeded())
    end = flow.encode(x, [parts[0], parts[1], parts[3]])
    nll = -(standard_normal(end.z) + end.ladj).mean()
    transport, hjb, frobenius = end.costs.mean(0)
    proximal = ((x - end.z) ** 2).sum(-1).mean() / 0.4
    total = 2 * nll + 0.5 * transport + 3 * hjb + 0.01 * frobenius + 0.7 * proximal
    assert loss.total.item() == pytest.approx(total.item(), rel=1e-13)
    expected = {"nll": nll, "Transport": transport, "HJB": hjb, "JKOW2": proximal,
                "JacobianFrobenius": frobenius}  # fmt: skip
    assert loss.terms.keys() == expected.keys()
    for name, value in expected.items():
        assert loss.terms[name].item() == pytest.approx(value.item(), rel=1e-13)
        assert loss.terms[name].shape == ()
        assert not loss.terms[name].requires_grad
    assert [n.forward for n in loss.nfe] == [12]


def test_the_bare_loss_is_the_mean_negative_log_likelihood(places):
    flow, x = potential_flow(), places(5, 2)
    loss = Likelihood().loss(flow, Batch(x))
    assert loss.total.item() == pytest.approx(-flow.log_prob(x).mean().item(), rel=1e-14)
    assert list(loss.terms) == ["nll"]


def test_the_context_reaches_the_flow(places, seeded):
    flow, x, context = potential_flow(context_dim=2), places(5, 2), places(5, 2, seed=1)
    loss = Likelihood().loss(flow, Batch(x, context), seeded())
    expected = -flow.log_prob(x, context).mean()
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-14)
    assert loss.total.item() != Likelihood().loss(flow, Batch(x, 0 * context)).total.item()


def test_the_generator_reaches_the_trace(places, seeded):
    flow = Continuous(SmallVelocity(3), RK4(2), Hutchinson())
    values = [
        Likelihood().loss(flow, Batch(places(4, 3)), seeded(s)).total.item() for s in (1, 1, 2)
    ]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("case", velocity_cases())
def test_every_weight_gets_a_gradient(case, places, seeded):
    velocity = make_velocity(case, 2)
    flow = Continuous(velocity, RK4(2), train_end_time=True).double()
    names_ = names("regularizer")
    costs = [make("regularizer", n) for n in names_]
    costs = [c for c in costs if getattr(c, "needs", set()) <= velocity.provides]
    Likelihood(1.0, costs).loss(flow, Batch(places(8, 2)), seeded()).total.backward()
    missing = [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
    # A constant added to a potential moves nothing.
    constants = [n for n, p in flow.named_parameters() if p.numel() == 1 and "potential" in n]
    assert set(missing) <= set(constants)
    assert all(p.grad is None or p.grad.isfinite().all() for p in flow.parameters())


def test_endpoint_costs_of_a_chain_span_it(places):
    chain = Chain([potential_flow(), potential_flow()])
    x = places(4, 2)
    loss = Likelihood(0.0, [JKOW2(1.0)]).loss(chain, Batch(x))
    expected = 0.5 * (chain.encode(x).z - x).square().sum(-1).mean()
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-13)


def test_the_one_stage_trains_all_parameters(places, seeded):
    flow = Continuous(SmallVelocity(2), RK4(2), train_end_time=True).double()
    (stage,) = Likelihood().stages(flow)
    assert {id(p) for p in stage.parameters} == {id(p) for p in flow.parameters()}
    assert stage.share == 1.0
    batch = Batch(places(6, 2))
    assert stage.points(batch) is batch
    assert stage.needed()
    optimizer = torch.optim.Adam(stage.parameters, 0.05)
    values = []
    for _ in range(25):
        loss = stage.loss(batch, seeded())
        assert isinstance(loss, Loss)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        values.append(loss.total.item())
    assert values[-1] < values[0] - 0.3


def test_stages_are_without_effects():
    flow = potential_flow()
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    assert all(isinstance(s, Stage) for s in Likelihood().stages(flow))
    assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())


def test_what_cannot_be_trained_is_refused_before_it_is_tried():
    objective = Likelihood(regularizers=[HJB()])
    with pytest.raises(Incompatible, match=r"HJB needs phi_t .*SmallVelocity"):
        objective.check(Continuous(SmallVelocity(2)))
    with pytest.raises(Incompatible, match="HJB needs phi_t"):
        objective.check(Chain([potential_flow(), Continuous(SmallVelocity(2))]))
    objective.check(potential_flow())


def test_a_regularizer_of_no_known_sort_is_not_dropped():
    class Neither(Regularizer):
        pass

    with pytest.raises(Incompatible, match="Neither"):
        Likelihood(regularizers=[Neither()])


def test_two_costs_of_one_sort_are_both_reported(places):
    costs = [HJB(0.1, "absolute"), HJB(0.2, "squared")]
    loss = Likelihood(regularizers=costs).loss(potential_flow(), Batch(places(4, 2)))
    assert len(loss.terms) == 3


class Speed(RunningCost):
    """A stranger's cost."""

    def rate(self, at, probes):
        return at.v.norm(dim=-1)


def test_a_strangers_cost_is_integrated(places):
    loss = Likelihood(regularizers=[Speed(2.0)]).loss(potential_flow(), Batch(places(4, 2)))
    assert loss.total.item() == pytest.approx((loss.terms["nll"] + 2 * loss.terms["Speed"]).item())
    assert loss.terms["Speed"] > 0


@pytest.mark.parametrize("name", names("objective"))
def test_an_objective_is_one(name):
    assert issubclass(load("objective", name), Objective)
    stages = make("objective", name).stages(Continuous(SmallVelocity(2)).to(F64))
    assert iter(stages) is stages  # lazy
