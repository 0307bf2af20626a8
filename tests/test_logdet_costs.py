"""Log-determinants with a preconditioner, in pairs, and what is kept for their gradients."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from logdet_maps import STIFF, Stiff, basis, draws, matrices
from oracles import F64, Matrix, gap, with_spectrum
from torch import nn

from flowzoo.logdet import CG, SLQ, Surrogate
from flowzoo.maps import Jacobian, Scaled
from flowzoo.precondition import preconditioned
from flowzoo.traces import Exact, Hutchinson

Z = 5.0  # standard errors


# --- preconditioning -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SLQ, CG])
def test_a_preconditioner_cuts_noise_and_steps(kind):
    a = matrices(8, 10 * STIFF)
    plain, better = (draws(kind(precondition=m), a) for m in (0, 8))
    truth = torch.linalg.slogdet(a).logabsdet
    assert better.std(1).mean() < 0.5 * plain.std(1).mean()
    error = better.std(1) / math.sqrt(better.shape[1])
    assert ((better.mean(1) - truth).abs() < Z * error).all()


def test_a_preconditioned_gradient_has_the_right_mean():
    a = matrices(4).requires_grad_()
    found = draws(CG(atol=1e-10, cap=40, precondition=4), a, 20_000).mean(1).sum()
    (gradient,) = torch.autograd.grad(found, a)
    plain = torch.autograd.grad(draws(CG(atol=1e-10, cap=40), a, 20_000).mean(1).sum(), a)[0]
    inverse = torch.linalg.inv(a.detach())
    assert gap(0.5 * (gradient + gradient.mT), inverse) < 0.05
    assert (gradient - inverse).norm() < 0.7 * (plain - inverse).norm()


def test_a_preconditioned_radau_rule_is_a_lower_bound():
    a = matrices()
    truth = torch.linalg.slogdet(a).logabsdet
    for m in (2, 6):
        lower, upper = (
            SLQ(steps=2, rule=rule, precondition=m)(Stiff(a, True), basis(a), torch.log)
            for rule in ("radau", "gauss")
        )
        assert (lower < truth).all()
        assert (truth < upper).all()


@pytest.mark.parametrize("m", [1, 3, 6, 20])
def test_a_preconditioned_map_is_the_map_in_other_coordinates(m):
    a = Stiff(10 * matrices(), True)
    a.floor = 0.99 * float(torch.linalg.eigvalsh(a.a).min())
    better, shift = preconditioned(a, 6, m)
    dense = better.dense()
    assert gap(torch.linalg.slogdet(dense)[1] + shift, torch.linalg.slogdet(a.a)[1]) < 1e-12
    assert 0 < better.floor < torch.linalg.eigvalsh(dense).min()
    p = torch.randn(2, 6, 8, dtype=F64)
    assert gap(better.vjp(p), (dense @ p[..., None])[..., 0]) < 1e-12
    assert gap(better.rows(torch.tensor([4, 1])).dense(), dense[[4, 1]]) < 1e-14
    taken = {1: [0], 3: [0, 2, 5], 6: range(6), 20: range(6)}[m]
    assert gap(dense[list(taken)].mean(0), torch.eye(8, dtype=F64)) < 1e-12


@pytest.mark.parametrize("kind", [SLQ, CG])
def test_no_maps_are_preconditioned_by_none(kind):
    trace, none = kind(precondition=4), Stiff(matrices()[:0], True)
    assert trace(none, trace.probes(none.a[..., 0]), torch.log).shape == (0,)


def test_functions_other_than_the_logarithm_are_not_preconditioned():
    a, p = matrices(), basis(matrices())
    found, plain = (SLQ(steps=8, precondition=m)(Stiff(a, True), p, torch.exp) for m in (4, 0))
    assert torch.equal(found, plain)


def test_a_mean_that_is_not_positive_definite_preconditions_nothing():
    a = torch.cat([with_spectrum([-9.0, 1.0, 2.0]), with_spectrum([1.0, 2.0, 3.0])])
    p = basis(a)
    found, plain = (SLQ(steps=3, precondition=m)(Matrix(a, True), p, torch.log) for m in (2, 0))
    assert found[0].isnan()
    assert gap(found[1], plain[1]) < 1e-13


# --- pairs ---------------------------------------------------------------------------------------


def test_a_surrogate_has_the_value_of_one_and_the_gradient_of_the_other():
    a = matrices().requires_grad_()
    value, gradient = SLQ(2, 3), CG(3, noise="gaussian")
    pair = Surrogate(value, gradient)
    x, generators = a[..., 0].detach(), [torch.Generator().manual_seed(3) for _ in range(2)]
    probes = pair.probes(x, generators[0])
    parts = [part.probes(x, generators[1]) for part in (value, gradient)]
    assert torch.equal(probes, torch.cat(parts))
    found = pair(Matrix(a, True), probes, torch.log)
    alone = zip((value, gradient), parts, strict=True)
    expected = [part(Matrix(a, True), p, torch.log) for part, p in alone]
    assert gap(found, expected[0]) < 1e-14
    slopes = [torch.autograd.grad(y.sum(), a)[0] for y in (found, expected[1])]
    assert torch.equal(*slopes)


def test_a_surrogate_of_exact_estimators_draws_nothing():
    pair = Surrogate(Exact(), Exact())
    a = matrices()
    assert pair.probes(a[..., 0]) is None
    assert gap(pair(Matrix(a, True), None, torch.log), torch.linalg.slogdet(a)[1]) < 1e-12
    pair = Surrogate(SLQ(8, 8), Exact())
    assert len(pair.probes(a[..., 0])) == 8
    assert gap(pair(Matrix(a, True), basis(a), torch.log), torch.linalg.slogdet(a)[1]) < 1e-11


def test_a_surrogate_needs_and_redraws_what_its_parts_do():
    assert Surrogate().needs == {"symmetric"}
    assert Surrogate(Exact(), Hutchinson()).needs == frozenset()
    assert Surrogate(Exact(), Hutchinson(redraw="stage")).redraw == "stage"
    assert Surrogate().redraw == "solve"


# --- what it costs -------------------------------------------------------------------------------


class Gradient(nn.Module):
    """grad F of F = |x|^2 / 20 + sum log cosh(W x), whose Hessian is seen through autograd."""

    def __init__(self, dim):
        super().__init__()
        self.w = nn.Parameter(torch.randn(2 * dim, dim, dtype=F64))

    def hessian(self, x):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            v = 0.1 * x + torch.tanh(x @ self.w.T) @ self.w
        return Jacobian(v, x, symmetric=True)


class Packed:
    """A tensor saved for the backward pass, as long as that is to come."""

    def __init__(self, t):
        self.t = t


@pytest.mark.parametrize("make", [lambda m: CG(atol=0.0, cap=m), lambda m: SLQ(steps=m)])
def test_what_is_saved_for_backward_does_not_grow_with_the_steps(make):
    net, x, saved = Gradient(16), torch.randn(10, 16, dtype=F64), {}
    for steps in (1, 3, 15):
        trace, kept = make(steps), weakref.WeakSet()
        p = trace.probes(x)

        def pack(t, kept=kept):
            packed = Packed(t)
            kept.add(packed)
            return packed

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.t):
            value = trace(net.hessian(x), p, torch.log).sum()
        gc.collect()
        saved[steps] = sum(packed.t.numel() for packed in kept)
        (gradient,) = torch.autograd.grad(value, net.w)
        assert gradient.abs().max() > 0
    assert saved[1] == saved[3] == saved[15] > 0


def test_products_under_no_grad_have_no_graph_and_do_not_pass_for_those_with_one():
    a, p = Gradient(16).hessian(torch.randn(10, 16, dtype=F64)), torch.ones(10, 16, dtype=F64)
    with torch.no_grad():
        without = a.vjp(p)
        dense = a.dense()
    assert not without.requires_grad
    assert not dense.requires_grad
    again = a.vjp(p)
    assert again.requires_grad
    assert torch.equal(again, without)
    assert a.vjp(p) is again
    with torch.no_grad():
        assert a.vjp(p) is again


@pytest.mark.parametrize("trace", [CG(cap=5, atol=0.0), SLQ(steps=5)])
def test_no_product_is_taken_for_the_gradient_alone(trace):
    a = Matrix(matrices().requires_grad_(), True)
    trace(a, trace.probes(a.a[..., 0].detach()), torch.log)
    assert a.products == 5


# --- maps ----------------------------------------------------------------------------------------


def test_a_scaled_map_scales_its_floor_and_those_of_some_samples():
    a, index = Stiff(matrices(), True), torch.tensor([4, 1])
    two = torch.tensor(2.0, dtype=F64, requires_grad=True)
    for factor in (2.0, two):
        scaled = Scaled(a, factor, 0.5)
        assert float(torch.as_tensor(scaled.floor).detach()) == pytest.approx(1.1)
        some = scaled.rows(index)
        assert some is not None
        assert gap(some.dense(), (2 * a.a + 0.5 * torch.eye(8, dtype=F64))[index]) < 1e-14
    negative = [Scaled(a, -1.0).floor, Scaled(a, torch.tensor(-1.0)).floor]
    assert negative[0] is None
    assert float(torch.as_tensor(negative[1])) == -math.inf
    assert Scaled(Matrix(a.a, True), 2.0).rows(index) is None
    assert Scaled(Matrix(a.a, True), 2.0).floor is None
