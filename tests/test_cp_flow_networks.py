"""All convex networks: closed forms against automatic differentiation, convexity, precision."""

from __future__ import annotations

import pytest
import torch
from cp_flow_networks import NETWORKS, case, normal
from oracles import F64, gap, gradients


def single(net, context):
    """Return x_i, c_i -> F for one sample, and the axes to map over."""
    if context is None:
        return (lambda x: net(x[None])[0]), (0,)
    return (lambda x, c: net(x[None], c[None])[0]), (0, 0)


@pytest.fixture(params=list(NETWORKS))
def name(request):
    return request.param


def test_value_gradient_and_hessian_are_those_of_automatic_differentiation(name):
    net, x, context = case(name)
    fn, axes = single(net, context)
    given = (x,) if context is None else (x, context)
    point = net.at(x, context)
    assert gap(point.value, net(x, context)) < 1e-14
    assert gap(point.gradient, torch.func.vmap(torch.func.grad(fn), axes)(*given)) < 1e-12
    expected = torch.func.vmap(torch.func.hessian(fn), axes)(*given)
    assert expected.abs().max() > 1e-2, "a Hessian of nothing"
    assert gap(point.hessian.dense(), expected) < 1e-12
    assert gap(point.hessian.trace(), expected.diagonal(dim1=1, dim2=2).sum(-1)) < 1e-12
    reverse = torch.func.vmap(torch.func.jacrev(torch.func.jacrev(fn)), axes)(*given)
    assert gap(reverse, expected) < 1e-12
    closed = torch.func.vmap(torch.func.jacrev(lambda *one: gradient(net, *one)), axes)(*given)
    assert gap(closed, expected) < 1e-12


def gradient(net, x, context=None):
    return net.at(x[None], None if context is None else context[None]).gradient[0]


def test_products_and_rows_of_the_hessian(name):
    net, x, context = case(name)
    hessian = net.at(x, context).hessian
    dense, probes = hessian.dense(), normal(4, 5, 3, seed=9)
    expected = torch.einsum("nij,knj->kni", dense, probes)
    for product in (hessian.vjp, hessian.jvp):
        assert gap(product(probes), expected) < 1e-13
        assert gap(product(probes[1]), expected[1]) < 1e-13
    index = torch.tensor([4, 0, 3])
    some = hessian.rows(index)
    assert gap(some.dense(), dense[index]) < 1e-14
    assert gap(some.trace(), hessian.trace()[index]) < 1e-14
    assert gap(some.vjp(probes[:, index]), expected[:, index]) < 1e-13
    assert gap(some.rows(torch.tensor([1])).dense(), dense[:1]) < 1e-14


def test_gradients_of_log_det_value_and_gradient_in_weights_points_and_context(name):
    net, x, context = case(name, n=3, dim=2)
    x.requires_grad_()
    given = (x,)
    if context is not None:
        given = (x, context.requires_grad_())
    fn, axes = single(net, context)
    one, weights = torch.eye(2, dtype=F64), [p for p in net.parameters() if p.requires_grad]

    def loss(value, gradient, log_det):
        return (
            value * (1 + value) + (gradient * torch.tensor([1.0, -2.0])).sum(-1) + log_det
        ).sum()

    leaves, products = [*given, *weights], torch.tensor([0.3, -0.7], dtype=F64)
    hessian = torch.func.vmap(torch.func.hessian(fn), axes)(*given)
    slopes = torch.func.vmap(torch.func.grad(fn), axes)(*given)
    expected = loss(net(x, context), slopes, torch.logdet(hessian + one))
    expected = gradients(expected + (hessian @ products).square().sum(), leaves)
    point = net.at(x, context)
    found = loss(point.value, point.gradient, torch.logdet(point.hessian.dense() + one))
    product = point.hessian.vjp(products.expand(3, 2))
    assert gap(gradients(found + product.square().sum(), leaves), expected) < 1e-11


@pytest.mark.parametrize(("n", "dim"), [(0, 3), (1, 3), (1, 1), (4, 1), (2, 9)])
def test_sizes_that_are_nothing_special(name, n, dim):
    net, x, context = case(name, n, dim)
    point = net.at(x, context)
    dense = point.hessian.dense()
    assert point.value.shape == (n,)
    assert point.gradient.shape == (n, dim)
    assert dense.shape == (n, dim, dim)
    assert point.hessian.trace().shape == (n,)
    assert point.hessian.vjp(x).shape == (n, dim)
    assert point.hessian.vjp(x.expand(2, n, dim)).shape == (2, n, dim)
    assert torch.allclose(dense @ x[..., None], point.hessian.vjp(x)[..., None], atol=1e-13)
    assert point.hessian.rows(torch.arange(n)).dense().shape == (n, dim, dim)


def test_convex_for_every_context_whatever_the_weights(name):
    net, x, context = case(name, n=60, size=3.0)
    many = 10.0 ** torch.linspace(-2, 3, 60, dtype=F64)[:, None]
    context = None if context is None else 5 * context
    least = torch.linalg.eigvalsh(net.at(many * x, context).hessian.dense())
    assert (least[:, 0] >= -1e-13 * least[:, -1].clamp_min(1)).all()
    towards = normal(60, 3, seed=11) * many
    with torch.no_grad():
        middle = net((many * x + towards) / 2, context)
        ends = (net(many * x, context) + net(towards, context)) / 2
    assert (middle <= ends + 1e-11 * ends.abs().clamp_min(1)).all()


def test_float32_is_float64_rounded(name):
    net, x, context = case(name, dim=2)

    def everything(x, context):
        point = net.at(x, context)
        return point.value, point.gradient, point.hessian.dense(), point.hessian.vjp(x)

    fine = everything(x, context)
    net.float()
    rough = everything(x.float(), None if context is None else context.float())
    for r, f in zip(rough, fine, strict=True):
        assert r.dtype == torch.float32
        assert gap(r.double(), f) < 1e-4
