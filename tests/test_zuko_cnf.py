"""The CNF of zuko: the judge's numerics on the same velocity, counts, and a solver that ends."""

from __future__ import annotations

import pytest
import torch
from judge_subjects import Rows
from oracles import gap

from flowzoo.continuous import Continuous
from flowzoo.errors import Diverged
from flowzoo.integrators import RK4
from flowzoo.judge import evaluate
from flowzoo.judge.effort import NFE
from flowzoo.judge.likelihood import NLL
from flowzoo.odeint import Dopri5
from flowzoo.regularizers import Transport
from flowzoo.traces import Hutchinson

zuko = pytest.importorskip("zuko")
from flowzoo_zuko import velocity  # noqa: E402
from flowzoo_zuko.adopted import Adopted  # noqa: E402
from flowzoo_zuko.flow import Zuko  # noqa: E402


def made(context_dim=0, **options):
    torch.manual_seed(0)
    flow = Zuko(2, "cnf", hidden=[16], context_dim=context_dim, **options)
    # The divergence of zuko's ELU has kinks, which solvers stumble over.
    flow.flow.net.transform.ode[1] = torch.nn.Tanh()
    return flow.double()


@pytest.mark.parametrize("context_dim", [0, 3])
def test_our_solver_finds_the_same_flow(context_dim, places):
    flow, x = made(context_dim, tolerance=1e-10), places(6, 2)
    context = places(6, 3, 1) if context_dim else None
    ours = flow.with_numerics(Dopri5(1e-10, 1e-10))
    there, here = flow.encode(x, context=context), ours.encode(x, context=context)
    assert gap(there.z, here.z) < 1e-8
    assert gap(there.ladj, here.ladj) < 1e-6
    assert gap(flow.decode(x, context), ours.decode(x, context)) < 1e-8
    assert there.ladj.abs().min() > 1e-3  # nothing that is zero was compared


def test_other_numerics_share_the_weights_and_leave_the_flow(places):
    flow, x = made().eval(), places(6, 2)
    before = flow.log_prob(x)
    ours = flow.with_numerics(RK4(3), Hutchinson())
    assert isinstance(ours, Continuous)
    assert isinstance(ours.integrator, RK4)
    assert isinstance(ours.trace, Hutchinson)
    assert ours.training is flow.training is False
    assert [*map(id, ours.parameters())] == [*map(id, flow.parameters())]
    # So that the weights stay in its gradients.
    assert all(part.training for part in flow.flow.net.modules())
    assert torch.equal(flow.log_prob(x), before)
    assert flow.with_numerics() is flow
    exact = flow.with_numerics(trace=Hutchinson())
    assert isinstance(exact, Continuous)
    assert isinstance(exact.integrator, Dopri5)
    closed = Zuko(2, "maf")
    assert closed.with_numerics(RK4()) is closed


def test_it_has_trajectories_under_our_numerics(places):
    flow = made().with_numerics(Dopri5(1e-9, 1e-9))
    x = places(6, 2)
    fine = flow.encode(x, (Transport(),)).costs[:, 0]
    points, step = x, 1e-3  # Euler on the same velocity
    total = torch.zeros(6, dtype=x.dtype)
    with torch.no_grad():
        for k in range(1000):
            v = flow.velocity(torch.tensor(k * step, dtype=x.dtype), points)
            total += 0.5 * step * v.square().sum(-1)
            points = points + step * v
    assert gap(fine, total) < 2e-3
    assert fine.min() > 1e-3


def test_the_judge_solves_it_by_its_own_solver(places):
    flow, data = made(tolerance=0.3), Rows(places(100, 2))
    found = evaluate(flow, data, metrics=[NLL(), NFE()])
    assert "dopri5" in found["nll"].note
    precise = made(tolerance=1e-8).log_prob(data.test).mean().item()
    assert found["nll"].value == pytest.approx(-precise, abs=1e-4)
    own = -flow.log_prob(data.test).mean().item()
    assert found["nll-own"].value == pytest.approx(own, rel=1e-6)
    assert abs(own + precise) > 10 * abs(found["nll"].value + precise)  # coarse, and shown so
    assert found["nfe"].parts["own"] == 7  # one step


def test_evaluations_are_counted_forward_and_backward(places):
    flow = made()
    calls = []
    flow.flow.net.transform.ode.register_forward_hook(lambda *_: calls.append(1))
    encoded = flow.encode(places(5, 2))
    (count,) = encoded.nfe
    forward = count.forward
    assert forward == len(calls) > 7
    assert count.backward == 0
    (encoded.z.sum() + encoded.ladj.sum()).backward()
    assert count.forward == forward
    assert count.backward == len(calls) - forward > 0


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_a_velocity_that_is_not_finite_ends_the_solve(way, places):
    flow = made()
    with torch.no_grad():
        next(flow.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged, match="velocity of zuko's CNF is not finite"):
        getattr(flow, way)(places(3, 2))


def test_a_solve_that_does_not_arrive_ends(places, monkeypatch):
    monkeypatch.setattr(velocity, "MOST", 20)
    with pytest.raises(Diverged, match="not arrived after 20 evaluations"):
        made(tolerance=1e-9).encode(places(3, 2))


def test_an_adopted_cnf_keeps_its_mode(places):
    net = zuko.flows.CNF(2).double().eval()
    flow = Adopted(net)
    evaluate(flow, Rows(places(20, 2)), metrics=[NLL()])
    assert not any(part.training for part in net.modules())
