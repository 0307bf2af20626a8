"""The exact log-determinant: derivatives of all orders, transformations, what has none."""

from __future__ import annotations

import pytest
import torch
from oracles import F64, Matrix, gap, with_spectrum
from torch.autograd import forward_ad

from flowzoo.traces import Exact


def definite(n=3):
    return with_spectrum([0.5, 1.0, 2.0, 5.0], n=n)


def log_det(a):
    return Exact()(Matrix(0.5 * (a + a.mT), True), None, torch.log)


def test_it_has_derivatives_of_all_orders():
    a = definite().requires_grad_()
    assert torch.autograd.gradcheck(log_det, a)
    assert torch.autograd.gradgradcheck(log_det, a)
    third = torch.autograd.functional.hessian
    b = definite(1)[0, :2, :2].clone()
    step = torch.tensor([[0.3, 0.1], [0.1, -0.2]], dtype=F64)

    def along(t):
        return log_det((b + t * step)[None])[0]

    inverse_step = torch.linalg.solve(b, step)
    t = torch.zeros((), dtype=F64)
    second = torch.autograd.functional.jvp(lambda t: third(along, t, create_graph=True), t,
                                           torch.ones_like(t))[1]  # fmt: skip
    cube = inverse_step @ inverse_step @ inverse_step
    assert second.item() == pytest.approx(2 * cube.trace().item(), rel=1e-10)


def test_it_under_transformations():
    a = definite()
    inverse = torch.linalg.inv(a)
    slopes = torch.func.vmap(torch.func.grad(lambda h: log_det(h[None])[0]))(a)
    assert gap(slopes, inverse) < 1e-12
    tangent = torch.randn(a.shape, dtype=F64)
    tangent = tangent + tangent.mT
    _, change = torch.func.jvp(log_det, (a,), (tangent,))
    assert gap(change, (inverse * tangent).sum((-2, -1))) < 1e-12
    with forward_ad.dual_level():
        leaf = a.clone().requires_grad_()
        value = log_det(forward_ad.make_dual(leaf, tangent))
        (slope,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
        changes = [forward_ad.unpack_dual(y).tangent for y in (value, slope)]
    assert gap(changes[0], change) < 1e-12
    assert gap(changes[1], -inverse @ tangent @ inverse) < 1e-12


def test_it_of_an_indefinite_map_is_no_number_and_the_others_are():
    one, last = definite(1)[0], torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=F64))
    a = torch.stack([one, -one, last, torch.zeros_like(one)]).requires_grad_()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert log_det(a).isnan().tolist() == [False, True, True, True]
    (slope,) = torch.autograd.grad(log_det(a).sum(), a)
    assert gap(slope[0], torch.linalg.inv(a[0])) < 1e-12
    assert slope[1:].isnan().all()


def test_it_saves_one_matrix_for_each_map():
    saved = []
    a = definite().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        Exact()(Matrix(a, True), None, torch.log)
    assert [tuple(t.shape) for t in saved] == [(3, 4, 4)]


def test_its_value_and_its_gradient():
    a = with_spectrum([0.5, 1.0, 2.0, 5.0], n=3).requires_grad_()
    value = Exact()(Matrix(a, True), None, torch.log)
    assert gap(value, torch.linalg.slogdet(a)[1]) < 1e-12
    (gradient,) = torch.autograd.grad(value.sum(), a)
    assert gap(0.5 * (gradient + gradient.mT), torch.linalg.inv(a)) < 1e-12
