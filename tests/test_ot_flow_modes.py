"""OT-Flow's hand-written derivative in the other modes of autograd, against the plain formulas."""

from __future__ import annotations

import itertools

import pytest
import torch
from oracles import F64, gap
from torch.autograd import forward_ad

from flowzoo_ot_flow.potential import ResNetPotential

METHODS = ["columns", "folded"]


def potential(method, frozen=(), dtype=F64, dim=3):
    made = ResNetPotential(dim, 5, context_dim=2, method=method)
    for i, (name, parameter) in enumerate(made.named_parameters()):
        torch.nn.init.normal_(parameter, 0, 0.4, torch.Generator().manual_seed(i))
        parameter.requires_grad_(name not in frozen)
    return made.to(dtype)


def inputs(dim=3, dtype=F64, **wants):
    draw = torch.Generator().manual_seed(3)
    made = {"t": torch.rand(6, generator=draw, dtype=F64)}
    made["x"] = torch.randn(6, dim, generator=draw, dtype=F64)
    made["context"] = torch.randn(6, 2, generator=draw, dtype=F64)
    return {name: y.to(dtype).requires_grad_(wants.get(name, False)) for name, y in made.items()}


def total(phi, given):
    at = phi.with_laplacian(**given)
    weights = torch.linspace(-1, 2, 6, dtype=given["x"].dtype)
    return at.gradient.square().sum() + (at.phi_t**3).sum() + (weights * at.hessian.trace()).sum()


def assert_equal(found, expected, bound=1e-12):
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or gap(a, b) < bound


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dim", [3, 7])
@pytest.mark.parametrize("frozen", [(), ("opening.weight",), ("hidden.0.weight", "w", "A")])
def test_gradients_that_carry_a_graph(method, dim, frozen):
    # With and without gradients of the inputs: a graph must not count K_0 twice, nor need them all.
    for t, x, context in itertools.product((False, True), repeat=3):
        found = []
        for each in (method, "autograd"):
            phi, given = potential(each, frozen, dim=dim), inputs(dim, t=t, x=x, context=context)
            wanted = [y for y in (*given.values(), *phi.parameters()) if y.requires_grad]
            first = torch.autograd.grad(total(phi, given), wanted, create_graph=True)
            value = sum(y.square().sum() for y in first)
            found.append([*first, *torch.autograd.grad(value, wanted)])
        assert_equal(*found, bound=1e-11)


def test_gradients_that_carry_a_graph_where_one_weight_learns():
    # The Laplacian does not depend on b.
    names = {name for name, _ in potential("auto").named_parameters()}
    found = []
    for each in ("auto", "autograd"):
        phi = potential(each, names - {"b"})
        found.append(torch.autograd.grad(total(phi, inputs()), [phi.b], create_graph=True))
    assert_equal(*found)


@pytest.mark.parametrize("method", METHODS)
def test_many_cotangents_at_once(method):
    found = []
    for each in (method, "autograd"):
        phi, given = potential(each), inputs(x=True)
        wanted = [given["x"], phi.opening.weight, phi.A]
        value, basis = phi.with_laplacian(**given).hessian.trace(), torch.eye(6, dtype=F64)
        found.append(torch.autograd.grad(value, wanted, basis, is_grads_batched=True))
    assert_equal(*found)
    assert not any(y.requires_grad for y in found[0])


@pytest.mark.parametrize("method", METHODS)
def test_forward_mode(method):
    found = []
    for each in (method, "autograd"):
        given = inputs()
        with forward_ad.dual_level():
            given["x"] = forward_ad.make_dual(given["x"], torch.ones_like(given["x"]))
            trace = potential(each).with_laplacian(**given).hessian.trace()
            found.append([forward_ad.unpack_dual(trace).tangent])
    assert found[0][0] is not None
    assert_equal(*found)


@pytest.mark.parametrize("method", METHODS)
def test_autocast(method):
    found = []
    for each in (method, "autograd"):
        phi = potential(each, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            value = total(phi, inputs(dtype=torch.float32))
        found.append(torch.autograd.grad(value, list(phi.parameters())))
    assert_equal(*found)
