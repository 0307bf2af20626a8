"""The Monge-Ampere potential: closed forms against autograd, symmetry, start, refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from oracles import F64, SavedBytes, gap, gradients

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible
from flowzoo.field import Gradient, Potential
from flowzoo.integrators import RK4
from flowzoo.regularizers import HJB, Transport
from flowzoo.traces import Hutchinson
from flowzoo_monge_ampere.potential import MongeAmpere, log_cosh

SHAPES = [(2, 6), (4, 4), (9, 3), (1, 5)]  # of 7 points: more, and fewer, than dimensions
T = torch.tensor(0.3, dtype=F64)
both = pytest.mark.parametrize("symmetric", [False, True], ids=["softplus", "log cosh"])
shapes = pytest.mark.parametrize(("dim", "width"), SHAPES)


def potential(dim, width, symmetric=False, seed=0, size=0.7):
    generator = torch.Generator().manual_seed(seed)
    phi = MongeAmpere(dim, width, symmetric).to(F64)
    with torch.no_grad():
        for p in phi.parameters():
            p.copy_(size * torch.randn(p.shape, generator=generator, dtype=F64))
    return phi


def flow(phi, steps=8, end_time=1.0):
    return Continuous(Gradient(phi), RK4(steps), end_time=end_time)


def summed(hessian):
    """Return the trace of a dense Hessian."""
    return hessian.dense().diagonal(dim1=1, dim2=2).sum(-1)


class Trace(torch.nn.Module):
    def __init__(self, phi):
        super().__init__()
        self.phi = phi

    def forward(self, x):
        return self.phi.at(T, x).hessian.trace()


# --- closed forms --------------------------------------------------------------------------------


@both
@shapes
def test_the_potential_is_the_formula(dim, width, symmetric, places):
    phi, x = potential(dim, width, symmetric), places(7, dim)
    q = torch.einsum("kj,nj->nk", phi.opening.weight, x)
    s = torch.log(torch.cosh(q)) if symmetric else torch.log1p(torch.exp(q + phi.opening.bias))
    assert gap(phi(T, x), (phi.a * s).sum(-1)) < 1e-14


@both
@shapes
def test_closed_forms_agree_with_autograd(dim, width, symmetric, places):
    phi, x, p = potential(dim, width, symmetric), places(7, dim), places(21, dim, seed=1)
    p = p.view(3, 7, dim)
    ours, slow = phi.at(T, x), Potential.at(phi, T, x)
    dense = slow.hessian.dense()
    assert gap(ours.gradient, slow.gradient) < 1e-13
    assert gap(phi.gradient(T, x), slow.gradient) < 1e-13
    assert torch.equal(ours.phi_t, torch.zeros(7, dtype=F64))
    assert gap(ours.hessian.dense(), dense) < 1e-13
    assert gap(ours.hessian.trace(), summed(slow.hessian)) < 1e-13
    products = torch.einsum("nij,knj->kni", dense, p)
    for product in (ours.hessian.vjp, ours.hessian.jvp):
        assert gap(product(p), products) < 1e-13
        assert gap(product(p[1]), products[1]) < 1e-13


@both
def test_far_from_the_data_closed_forms_agree_with_autograd_too(symmetric, places):
    phi, x = potential(3, 5, symmetric, size=4.0), 3 * places(40, 3)
    ours, slow = phi.at(T, x), Potential.at(phi, T, x)
    assert phi.opening(x).abs().max() > 40
    assert (ours.gradient - slow.gradient).abs().max() < 1e-13
    assert (ours.hessian.dense() - slow.hessian.dense()).abs().max() < 1e-12


@both
@shapes
def test_parameter_gradients_agree_with_autograd(dim, width, symmetric, places):
    phi, x, p = potential(dim, width, symmetric), places(7, dim), places(7, dim, seed=1)
    weights = places(7, 3, seed=2)

    def value(at, trace):
        parts = trace, at.gradient.square().sum(-1), at.hessian.vjp(p).square().sum(-1)
        return (weights * torch.stack(parts, 1)).sum()

    ours, slow = phi.at(T, x), Potential.at(phi, T, x)
    found = gradients(value(ours, ours.hessian.trace()), phi.parameters())
    expected = gradients(value(slow, summed(slow.hessian)), phi.parameters())
    assert all(g.abs().max() > 0 for g in found)
    assert gap(found, expected) < 1e-12


@both
def test_the_trace_can_be_differentiated_twice(symmetric, places):
    phi, x = potential(3, 4, symmetric), places(5, 3)
    names = [name for name, _ in phi.named_parameters()]

    def trace(y, *values):
        weights = {f"phi.{k}": v for k, v in zip(names, values, strict=True)}
        return torch.func.functional_call(Trace(phi), weights, (y,))

    values = [w.detach().clone().requires_grad_() for w in (x, *phi.parameters())]
    assert torch.autograd.gradcheck(trace, values)
    assert torch.autograd.gradgradcheck(trace, values)


@both
def test_without_gradients_there_is_no_graph_and_the_values_are_the_same(symmetric, places):
    phi, x, p = potential(3, 5, symmetric), places(6, 3), places(6, 3, seed=1)

    def values():
        at = phi.at(T, x)
        hessian = at.hessian.trace(), at.hessian.vjp(p), at.hessian.dense()
        return [at.gradient, *hessian, phi(T, x), phi.gradient(T, x)]

    recorded = values()
    with torch.no_grad():
        bare = values()
    assert all(v.requires_grad for v in recorded)
    assert not any(v.requires_grad for v in bare)
    assert gap(bare, recorded) < 1e-14


@both
@shapes
def test_float32_is_as_accurate_as_float32_can_be(dim, width, symmetric, places):
    phi, x = potential(dim, width, symmetric), places(30, dim)
    exact, rounded = phi.at(T, x), copy.deepcopy(phi).float().at(T.float(), x.float())
    assert gap(rounded.gradient.double(), exact.gradient) < 2e-6
    assert gap(rounded.hessian.trace().double(), exact.hessian.trace()) < 2e-6
    assert rounded.phi_t.dtype == rounded.hessian.dense().dtype == torch.float32


def test_a_product_with_the_same_probes_is_shared(places):
    hessian, p = potential(3, 5).at(T, places(4, 3)).hessian, places(4, 3, seed=1)
    assert hessian.vjp(p) is hessian.jvp(p)
    assert hessian.vjp(p.clone()) is not hessian.vjp(p)


def test_the_trace_keeps_no_column_per_dimension(places):
    """What a graph keeps of the trace is (n, m), not (n, m, d)."""
    n, width, kept = 50, 8, []
    for dim in (2, 64):
        hessian = potential(dim, width).at(T, places(n, dim)).hessian
        saved = SavedBytes()
        with saved:
            hessian.trace()
        kept.append(saved.peak)
    assert kept[1] - kept[0] <= 2 * 8 * width * 64


def test_the_activation_is_log_cosh_everywhere():
    q = torch.tensor([-800.0, -11.0, -3.0, 0.0, 1e-3, 0.5, 10.5, 800.0], dtype=F64)
    expected = torch.where(q.abs() > 300, q.abs() - math.log(2), q.clamp(-300, 300).cosh().log())
    q.requires_grad_()
    assert (log_cosh(q) - expected).abs().max() < 1e-12
    (first,) = torch.autograd.grad(log_cosh(q).sum(), q, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), q)
    assert gap(first, q.tanh()) < 1e-14
    assert gap(second, 1 - q.tanh().square()) < 1e-14


# --- the flow ------------------------------------------------------------------------------------


@both
def test_the_ladj_is_that_of_the_map(symmetric, places):
    along, x = flow(potential(3, 5, symmetric), 24), places(6, 3)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: along.encode(row[None]).z[0]))(x)
    with torch.no_grad():
        assert gap(along.encode(x).ladj, torch.linalg.slogdet(jacobian).logabsdet) < 1e-6


def test_the_density_of_a_symmetric_potential_is_symmetric(places):
    x = places(9, 3)
    for symmetric in (True, False):
        along = flow(potential(3, 5, symmetric))
        with torch.no_grad():
            here, there = along.log_prob(x), along.log_prob(-x)
            z, mirrored = along.encode(x).z, along.encode(-x).z
        if symmetric:
            assert gap(there, here) < 1e-14
            assert gap(mirrored, -z) < 1e-14
        else:
            assert (there - here).abs().min() > 1e-3


def test_in_one_dimension_the_ladj_is_a_ratio_of_velocities():
    """dz/dx = v(z) / v(x) where v does not depend on time: the way from x to z takes the time T."""
    phi = potential(1, 5)
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    with torch.no_grad():
        encoded = flow(phi, 64).encode(x)
        ratio = phi.gradient(T, encoded.z) / phi.gradient(T, x)
    assert ((encoded.z - x).abs() > 0.1).any()
    assert gap(encoded.ladj, ratio[:, 0].log()) < 1e-8


def test_a_longer_time_is_a_larger_potential(places):
    phi, x = potential(3, 5), places(6, 3)
    tripled = copy.deepcopy(phi)
    with torch.no_grad():
        tripled.a.mul_(3)
        assert gap(flow(phi, 9, end_time=3.0).log_prob(x), flow(tripled, 9).log_prob(x)) < 1e-13


def test_hutchinson_with_all_probes_is_exact(places):
    along, x = flow(potential(3, 5)), places(6, 3)
    with torch.no_grad():
        estimate = along.with_numerics(trace=Hutchinson(samples=3)).encode(x)
        assert gap(estimate.ladj, along.encode(x).ladj) < 1e-13


def test_without_time_the_hjb_residual_is_the_kinetic_energy(places):
    with torch.no_grad():
        costs = flow(potential(3, 5)).encode(places(6, 3), (Transport(), HJB())).costs
    assert costs.min() > 0
    assert torch.equal(costs[:, 0], costs[:, 1])


# --- the network ---------------------------------------------------------------------------------


def test_the_initial_weights_are_the_published_ones():
    phi = MongeAmpere(16, 400)
    for weights, bound in ((phi.opening.weight, 0.25), (phi.opening.bias, 0.25), (phi.a, 0.05)):
        assert 0.97 * bound < weights.abs().max() <= bound
        assert abs(weights.std().item() / (bound / math.sqrt(3)) - 1) < 0.1
    assert MongeAmpere(16, 4, symmetric=True).opening.bias is None


def test_the_number_of_parameters_is_the_published_one():
    assert sum(p.numel() for p in MongeAmpere(784, 1024).parameters()) == 804_864


@both
def test_a_width_below_one_and_a_context_are_refused(symmetric, places):
    with pytest.raises(Incompatible, match="width must be at least 1, got 0"):
        MongeAmpere(3, 0, symmetric)
    phi, x = potential(3, 4, symmetric), places(4, 3)
    for method in (phi, phi.gradient, phi.at):
        with pytest.raises(Incompatible, match="takes no context and got one of width 2"):
            method(T, x, places(4, 2))


def test_several_sets_of_weights_train_at_once(places):
    models, x = [potential(3, 4, seed=seed) for seed in range(3)], places(8, 3)
    stacked, _ = torch.func.stack_module_state([Trace(phi) for phi in models])

    def loss(weights):
        return torch.func.functional_call(Trace(models[0]), weights, (x,)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss))(stacked)
    for i, phi in enumerate(models):
        alone = Trace(phi)
        expected = gradients(alone(x).square().sum(), alone.parameters())
        assert gap([found[name][i] for name, _ in alone.named_parameters()], expected) < 1e-12
