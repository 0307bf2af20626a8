"""OT-Flow's hand-written derivative against automatic differentiation of the plain formulas."""

from __future__ import annotations

import shutil

import pytest
import torch
from oracles import F64, gap, gradients
from torch.utils._python_dispatch import TorchDispatchMode

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible, UserError
from flowzoo.field import Gradient
from flowzoo.integrators import RK4
from flowzoo.objective import Batch, Likelihood
from flowzoo.regularizers import HJB, JacobianFrobenius, Transport
from flowzoo_ot_flow import fused, laplacian
from flowzoo_ot_flow.potential import ResNetPotential

# d below, at and above the width, one hidden layer and three, with and without a context.
SHAPES = [(2, 8, 2, 0), (5, 7, 4, 0), (5, 7, 4, 2), (12, 8, 2, 1), (12, 8, 3, 0), (8, 8, 2, 0)]
CASES = [
    (method, shape)
    for shape in SHAPES
    for method in ("columns", "folded", "auto")
    if method != "folded" or shape[2] == 2
]


@pytest.fixture
def small_chunks(monkeypatch):
    """Cut ten samples into several chunks, the last one shorter."""
    monkeypatch.setattr(fused.Plan, "rows", lambda self, w: 4)
    monkeypatch.setattr(laplacian, "CHUNK", 1000)


def potential(method, shape, compile=False):
    d, m, layers, context = shape
    made = ResNetPotential(d, m, layers, context_dim=context, method=method, compile=compile)
    for i, parameter in enumerate(made.parameters()):
        torch.nn.init.normal_(parameter, 0, 0.4, torch.Generator().manual_seed(i))
    return made.to(F64)


def inputs(shape, n=10):
    d, _, _, width = shape
    x = torch.randn(n, d, dtype=F64, requires_grad=True)
    context = torch.randn(n, width, dtype=F64, requires_grad=True) if width else None
    return torch.tensor(0.3, dtype=F64, requires_grad=True), x, context


def scalar(phi, t, x, context, weights):
    """A number that depends on all that is known at a point, the Laplacian weighed per sample."""
    at = phi.with_laplacian(t, x, context)
    rest = (at.gradient * torch.linspace(1, 2, x.shape[1], dtype=F64)).square().sum()
    return rest + (at.phi_t**3).sum() + (weights * at.hessian.trace()).sum()


def compared(phi, shape, weights, n=10):
    """Return the gradients of `scalar` by the method and by autograd."""
    t, x, context = inputs(shape, n)
    wanted = [y for y in (t, x, context) if y is not None] + list(phi.parameters())
    found = gradients(scalar(phi, t, x, context, weights), wanted)
    phi.method = "autograd"
    return found, gradients(scalar(phi, t, x, context, weights), wanted)


def assert_equal(found, expected, bound=1e-12):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert not a.numel() or gap(a, b) < bound


@pytest.mark.parametrize(("method", "shape"), CASES)
def test_gradients_of_a_mean(small_chunks, method, shape):
    assert_equal(*compared(potential(method, shape), shape, torch.full((10,), 0.7, dtype=F64)))


@pytest.mark.parametrize(("method", "shape"), CASES)
def test_gradients_where_samples_weigh_differently(small_chunks, method, shape):
    weights = torch.linspace(-1, 2, 10, dtype=F64)
    assert_equal(*compared(potential(method, shape), shape, weights))


@pytest.mark.parametrize("method", ["columns", "folded"])
def test_gradients_left_to_the_backward_pass(monkeypatch, method):
    made = fused.Plan

    def later(*args):
        return made(*args[:3], False, *args[4:])

    monkeypatch.setattr("flowzoo_ot_flow.potential.Plan", later)
    shape = (3, 8, 2, 0)
    assert_equal(*compared(potential(method, shape), shape, torch.ones(10, dtype=F64)))


@pytest.mark.parametrize("n", [0, 1])
def test_gradients_at_no_point_and_at_one(n):
    shape = (3, 8, 2, 0)
    assert_equal(*compared(potential("auto", shape), shape, torch.ones(n, dtype=F64), n))


@pytest.mark.parametrize(("method", "shape"), CASES[:4])
def test_second_derivatives(method, shape):
    phi, weights = potential(method, shape), torch.linspace(1, 2, 10, dtype=F64)
    t, x, context = inputs(shape)
    found = []
    for each in (method, "autograd"):
        phi.method = each
        (slope,) = torch.autograd.grad(scalar(phi, t, x, context, weights), x, create_graph=True)
        found.append(gradients(slope.square().sum(), [x, *phi.parameters()]))
    assert_equal(*found)


@pytest.mark.parametrize("method", ["columns", "folded"])
def test_without_gradients_the_values_are_the_same(method):
    shape = (5, 8, 2, 0)
    phi, (t, x, _) = potential(method, shape), inputs(shape)
    with torch.no_grad():
        found, expected = phi.with_laplacian(t, x), phi.at(t, x)
    assert gap(found.gradient, expected.gradient) < 1e-14
    assert gap(found.phi_t, expected.phi_t) < 1e-13
    assert gap(found.hessian.trace(), expected.hessian.trace()) < 1e-13


@pytest.mark.parametrize("method", ["columns", "folded"])
def test_the_objective_of_a_flow(method):
    shape = (3, 8, 2, 0)
    phi, x = potential(method, shape), torch.randn(20, 3, dtype=F64)
    objective = Likelihood(30, [Transport(), HJB(2), JacobianFrobenius(0.1)])
    found = []
    for each in (method, "autograd"):
        for recompute in (False, True):
            phi.method = each
            flow = Continuous(Gradient(phi, scale=2), RK4(3, recompute))
            total = objective.loss(flow, Batch(x)).total
            found.append(gradients(total, list(phi.parameters())))
    for other in found[1:]:
        assert_equal(found[0], other)


def test_torch_func_goes_the_plain_way():
    shape = (3, 8, 2, 0)
    phi = potential("auto", shape)
    flow, x = Continuous(Gradient(phi), RK4(2)), torch.randn(4, 3, dtype=F64)
    score = torch.func.vmap(torch.func.grad(lambda y: flow.log_prob(y[None])[0]))(x)
    leaf = x.clone().requires_grad_()
    assert gap(score, gradients(flow.log_prob(leaf).sum(), [leaf])[0]) < 1e-12


@pytest.mark.parametrize("method", ["columns", "folded"])
def test_nothing_of_the_size_of_a_jacobian_is_kept(method):
    d, m, n = 6, 16, 40
    phi, x = potential(method, (d, m, 2, 0)), torch.randn(n, d, dtype=F64)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda y: sizes.append(y.numel()) or y, lambda y: y
    ):
        Continuous(Gradient(phi), RK4(2)).encode(x, [Transport(), HJB()])
    assert sizes
    assert max(sizes) <= n * m


class Calls(TorchDispatchMode):
    """Counts the calls of each operation."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layers", [2, 4])
def test_each_activation_is_computed_once(layers):
    phi = potential("auto", (3, 8, layers, 0))
    t, x, _ = inputs((3, 8, layers, 0))
    with Calls() as calls:
        value = scalar(phi, t, x, None, torch.ones(10, dtype=F64))
        value.backward()
    assert calls.counts["tanh"] == layers
    assert calls.counts["log_"] == layers - 1


def test_neither_samples_nor_inverses_compute_a_trace(monkeypatch):
    phi = potential("auto", (3, 8, 2, 0))

    def trace(*args, **options):
        raise AssertionError("a Laplacian was computed")

    monkeypatch.setattr(fused, "sweep", trace)
    flow = Continuous(Gradient(phi), RK4(2))
    assert flow.decode(torch.randn(4, 3, dtype=F64)).isfinite().all()
    assert flow.generate(torch.randn(4, 3, dtype=F64), [Transport(), HJB()]).x.isfinite().all()
    with pytest.raises(AssertionError, match="Laplacian"):
        flow.encode(torch.randn(4, 3, dtype=F64))


def test_the_choice_by_cost():
    narrow, wide = torch.zeros(2, 32), torch.zeros(43, 256)
    assert laplacian.cheapest(4096, narrow, 1) == "folded"
    assert laplacian.cheapest(16, narrow, 1) == "columns"
    assert laplacian.cheapest(4096, narrow, 2) == "columns"
    assert laplacian.cheapest(4096, wide, 1) == "columns"


def test_folding_is_refused_where_it_does_not_fit():
    with pytest.raises(Incompatible, match="layers: 2, got 3"):
        ResNetPotential(2, 8, 3, method="folded")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_code_gives_the_same():
    shape = (2, 8, 2, 0)
    found, expected = compared(
        potential("folded", shape, compile=True), shape, torch.ones(10, dtype=F64)
    )
    assert_equal(found, expected)


def test_without_a_compiler_the_option_is_refused(monkeypatch):
    fused._compiled.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    phi, (t, x, _) = potential("auto", (2, 8, 2, 0), compile=True), inputs((2, 8, 2, 0))
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
        phi.with_laplacian(t, x)
