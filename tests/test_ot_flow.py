"""The OT-Flow network: precision, modes, flows along it, initial weights, refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from oracles import F64, gap, gradients
from ot_flow_oracles import SHAPES, Trace, normal, potential, times

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible
from flowzoo.field import Gradient
from flowzoo.integrators import RK4
from flowzoo.traces import Hutchinson
from flowzoo_ot_flow.network import log_2cosh
from flowzoo_ot_flow.potential import ResNetPotential


@pytest.mark.parametrize("dim", [3, 12])
def test_without_gradients_there_is_no_graph_and_the_values_are_the_same(dim, places):
    phi, x, t, p = potential(dim, 5, 3), places(40, dim), times(40), normal(2, 40, dim)

    def values():
        at = phi.at(t, x)
        h = at.hessian
        return [
            at.gradient,
            at.phi_t,
            h.trace(),
            h.vjp(p),
            h.dense(),
            phi(t, x),
            phi.gradient(t, x),
        ]

    recorded = values()
    with torch.no_grad():
        bare = values()
    assert all(v.requires_grad for v in recorded)
    assert not any(v.requires_grad for v in bare)
    assert gap(bare, recorded) < 1e-14


@pytest.mark.parametrize(("dim", "width", "layers"), SHAPES)
def test_float32_is_as_accurate_as_float32_can_be(dim, width, layers, places):
    phi, x, t = potential(dim, width, layers), places(40, dim), times(1)[0]
    exact = phi.at(t, x)
    single = copy.deepcopy(phi).to(torch.float32).at(t.float(), x.float())
    pairs = [
        (single.gradient, exact.gradient),
        (single.phi_t, exact.phi_t),
        (single.hessian.trace(), exact.hessian.trace()),
        (single.hessian.dense(), exact.hessian.dense()),
    ]
    for ours, expected in pairs:
        assert ours.dtype == torch.float32
        assert gap(ours.double(), expected) < 3e-6


def test_a_product_with_the_same_probes_is_shared(places):
    hessian = potential(3, 5, 2).at(times(1)[0], places(4, 3)).hessian
    p = normal(1, 4, 3)
    assert hessian.vjp(p) is hessian.vjp(p)
    assert hessian.vjp(p.clone()) is not hessian.vjp(p)


def test_hutchinson_with_all_probes_is_exact(places):
    flow = Continuous(Gradient(potential(3, 5, 3)), RK4(4))
    x = places(6, 3)
    with torch.no_grad():
        exact, estimate = flow.encode(x), flow.with_numerics(trace=Hutchinson(samples=3)).encode(x)
    assert gap(estimate.ladj, exact.ladj) < 1e-13


def test_the_ladj_is_that_of_the_map(places):
    flow, x = Continuous(Gradient(potential(5, 3, 3)), RK4(24)), places(20, 5)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: flow.encode(row[None]).z[0]))(x)
    with torch.no_grad():
        assert gap(flow.encode(x).ladj, torch.linalg.slogdet(jacobian).logabsdet) < 1e-5


# --- the network ---------------------------------------------------------------------------------


def test_the_activation_is_log_2cosh_everywhere():
    q = torch.tensor([-800.0, -21.0, -3.0, 0.0, 0.5, 19.0, 22.0, 800.0], dtype=F64).requires_grad_()
    inner = q.detach().clamp(-300, 300)
    expected = torch.where(q.abs() > 300, q.abs(), torch.log(inner.exp() + (-inner).exp()))
    assert gap(log_2cosh(q), expected.detach()) < 1e-15
    (first,) = torch.autograd.grad(log_2cosh(q).sum(), q, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), q)
    assert gap(first, q.tanh()) < 1e-14
    assert gap(second, 1 - q.tanh() ** 2) < 1e-14


def test_the_initial_weights_are_the_published_ones():
    phi = ResNetPotential(3, 7, 4)
    assert phi.A.shape == (4, 4)
    assert ResNetPotential(30).A.shape == (10, 31)
    assert ResNetPotential(30, rank=3).A.shape == (3, 31)
    assert phi.A.abs().max() <= math.sqrt(6 / 8)
    assert phi.A.std() > 0.1
    assert torch.equal(phi.w, torch.ones(7))
    assert not phi.b.any()
    assert phi.c.item() == 0
    for layer in phi.hidden:
        assert torch.equal(layer.weight, phi.hidden[0].weight)
        assert torch.equal(layer.bias, phi.hidden[0].bias)
    assert len({p.data_ptr() for p in phi.parameters()}) == len(list(phi.parameters()))


@pytest.mark.parametrize(
    ("dim", "width", "parameters"),
    [
        (2, 32, 1229),
        (6, 128, 17721),
        (8, 350, 126791),
        (21, 256, 72179),
        (43, 256, 78053),
        (63, 512, 297153),
    ],
)
def test_the_number_of_parameters_is_the_published_one(dim, width, parameters):
    phi = ResNetPotential(dim, width)
    # The published count has the constant c, which no density sees.
    assert sum(p.numel() for p in phi.parameters()) + phi.c.numel() == parameters


@pytest.mark.parametrize("option", [{"layers": 1}, {"width": 0}, {"rank": 0}])
def test_options_out_of_range_are_refused(option):
    (name,) = option
    with pytest.raises(Incompatible, match=f"{name} must be at least"):
        ResNetPotential(3, **option)


def test_a_context_that_does_not_fit_is_refused(places):
    x, t = places(4, 3), times(1)[0]
    for phi, context in (
        (potential(3, 4, 2), places(4, 2)),
        (potential(3, 4, 2, context_dim=2), None),
    ):
        for method in (phi, phi.gradient, phi.at):
            with pytest.raises(Incompatible, match="context"):
                method(t, x, context)


@pytest.mark.parametrize(("dim", "width"), [(2, 4), (9, 3)])
def test_several_sets_of_weights_train_at_once(dim, width, places):
    models = [potential(dim, width, 2, seed=seed) for seed in range(3)]
    x, t = places(30, dim), times(1)[0]
    stacked, _ = torch.func.stack_module_state([Trace(phi) for phi in models])
    buffers = {"phi.c": torch.zeros((), dtype=F64)}

    def loss(weights):
        state = {**weights, **buffers}
        return torch.func.functional_call(Trace(models[0]), state, (t, x)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss))(stacked)
    for i, phi in enumerate(models):
        alone = Trace(phi)
        expected = gradients(alone(t, x).square().sum(), alone.parameters())
        assert gap([found[name][i] for name, _ in alone.named_parameters()], expected) < 1e-12
