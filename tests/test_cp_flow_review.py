"""Derivatives of convex flows that are taken again, batched or forward, and inputs that are bad."""

from __future__ import annotations

import pytest
import torch
from cp_flow_fits import F64, convex, settled
from cp_flow_networks import NETWORKS, case, normal
from oracles import gap
from torch.autograd import forward_ad

from flowzoo.errors import Diverged, Incompatible
from flowzoo.flow import Chain
from flowzoo.logdet import CG, SLQ, Surrogate
from flowzoo_cp_flow.actnorm import ActNorm
from flowzoo_cp_flow.flow import ConvexFlow
from flowzoo_cp_flow.newton import Newton
from flowzoo_cp_flow.picnn import PICNN

PLAIN = [name for name in NETWORKS if "picnn" not in name]


def slow_log_det(flow, x, context):
    """Return log det of the Hessian by automatic differentiation of F."""
    f = flow.at(x, context).value.sum()
    (gradient,) = torch.autograd.grad(f, x, create_graph=True)
    rows = [torch.autograd.grad(g.sum(), x, create_graph=True)[0] for g in gradient.unbind(-1)]
    return torch.linalg.slogdet(torch.stack(rows, 1))[1]


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_that_are_differentiated_again_are_gradients(name):
    """Of log-determinants, where slopes and bends of the units depend on one another."""
    potential, x, context = case(name, n=3, width=4)
    flow = ConvexFlow(potential, least=0.1).to(F64)
    leaves = [x.requires_grad_(), potential.entry.weight] if name in PLAIN else [x.requires_grad_()]
    orders = []
    for value in (flow.encode(x, context=context).ladj, slow_log_det(flow, x, context)):
        first = torch.autograd.grad(value.sum(), leaves, create_graph=True)
        second = torch.autograd.grad(torch.cat([g.flatten() for g in first]).square().sum(), leaves)
        orders.append((*first, *second))
    for one, other in zip(*orders, strict=True):
        assert gap(one, other) < 1e-9 * (1 + float(other.detach().abs().max()))


def test_second_derivatives_in_the_points_need_none_in_the_weights(places):
    x = places(3, 2).requires_grad_()
    found = []
    for frozen in (False, True):
        flow = settled(2).requires_grad_(not frozen)
        (score,) = torch.autograd.grad(flow.log_prob(x).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(score.square().sum(), x)[0])
    assert gap(*found) < 1e-12


def test_batched_gradients_are_those_one_by_one(places):
    flow, x = settled(2), places(3, 2)
    weights = [w for w in flow.parameters() if w.requires_grad]
    value = flow.log_prob(x)
    batched = torch.autograd.grad(
        value, weights, torch.eye(3, dtype=F64), is_grads_batched=True, retain_graph=True
    )
    for i in range(3):
        single = torch.autograd.grad(value[i], weights, retain_graph=True)
        assert all(gap(b[i], s) < 1e-12 for b, s in zip(batched, single, strict=True))


@pytest.mark.parametrize("trace", [CG(), SLQ(), CG(precondition=2), Surrogate()])
@pytest.mark.parametrize("frozen", [False, True])
def test_forward_derivatives_of_estimates_are_refused(places, trace, frozen):
    """The products of a Krylov space with points that move are not those of their quadrature."""
    flow, x = settled(3).with_numerics(trace=trace).requires_grad_(not frozen), places(4, 3)
    with forward_ad.dual_level(), pytest.raises(Incompatible, match="reverse mode only"):
        flow.log_prob(forward_ad.make_dual(x, torch.ones_like(x)))


@pytest.mark.parametrize("grad", [True, False])
def test_forward_derivatives_of_an_inversion_are_refused(places, grad):
    flow, z = settled(3).requires_grad_(False), places(4, 3)
    with forward_ad.dual_level(), torch.set_grad_enabled(grad):
        flow.decode(z)
        with pytest.raises(Incompatible, match="reverse mode only"):
            flow.decode(forward_ad.make_dual(z, torch.ones_like(z)))
    with pytest.raises(Incompatible, match="reverse mode only"):
        torch.func.jvp(flow.decode, (z,), (torch.ones_like(z),))


@pytest.mark.parametrize("wide", [False, True])
def test_a_sample_that_failed_leaves_the_gradients_of_the_others(places, wide, monkeypatch):
    if wide:
        monkeypatch.setattr("flowzoo_cp_flow.implicit.DENSE", 1)
    flow = ConvexFlow(PICNN(2, 8, 2, context_dim=1), inversion=Newton(failed="nan")).to(F64)
    z, context = places(4, 2), normal(4, 1)
    weights = [w for w in flow.parameters() if w.requires_grad]
    good = torch.tensor([0, 2])
    expected = torch.autograd.grad(
        flow.decode(z[good], context[good]).sum(), weights, allow_unused=True
    )
    z[1], context[3] = torch.nan, torch.nan
    x = flow.decode(z, context)
    assert x.isnan().all(-1).tolist() == [False, True, False, True]
    found = torch.autograd.grad(x[good].sum(), weights, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or gap(one, other) < 1e-9


def test_a_first_batch_with_nan_sets_nothing(places):
    x = places(8, 2)
    bad = x.clone()
    bad[3, 1] = torch.nan
    fresh, spoilt = (Chain([ActNorm(2).to(F64), convex()]).train() for _ in range(2))
    with pytest.raises(Diverged, match="first training batch"):
        spoilt.encode(bad)
    assert torch.equal(spoilt.encode(x).z, fresh.encode(x).z)


def test_a_first_batch_with_nan_in_a_context_sets_nothing(places):
    flow, context = ConvexFlow(PICNN(2, 8, 2, context_dim=1)).to(F64).train(), normal(8, 1)
    context[5] = torch.nan
    with pytest.raises(Diverged, match="first training batch"):
        flow.encode(places(8, 2), context=context)
    assert flow.potential.waits


def test_every_point_needs_a_context_of_its_own(places):
    flow = ConvexFlow(PICNN(2, 8, 2, context_dim=1)).to(F64)
    for context in (normal(1, 1), normal(4, 1), normal(1)):
        with pytest.raises(Incompatible, match=r"\(3, c\)"):
            flow.log_prob(places(3, 2), context)


def test_actnorm_does_not_broadcast_a_coordinate(places):
    with pytest.raises(Incompatible, match="1 dimensions, not 3"):
        ActNorm(3).to(F64).log_prob(places(4, 1))
