"""Velocities and their Jacobians against torch.func and closed forms."""

from __future__ import annotations

import pytest
import torch
from components import make_velocity, velocity_cases
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import F64, Drift, Linear, Matrix, SmallVelocity, gap, row_by_row, small_gradient

from flowzoo.continuous import Continuous
from flowzoo.field import Gradient, Velocity
from flowzoo.integrators import RK4
from flowzoo.maps import Scaled
from flowzoo.regularizers import JacobianFrobenius
from flowzoo.traces import Hutchinson

DIM = 3
OURS = {"small": SmallVelocity, "small-gradient": small_gradient}
CASES = [*OURS, *velocity_cases()]


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def velocity_of(case, dim=DIM, context_dim=0):
    if case in OURS:
        return OURS[case](dim, context_dim)
    velocity = make_velocity(case, dim, context_dim)
    if velocity is None:
        pytest.skip("takes no context")
    return velocity


def arguments(n=4, dim=DIM, context_dim=0, rows=False):
    x = torch.randn(n, dim, dtype=F64)
    t = torch.rand(n, dtype=F64) if rows else torch.tensor(0.3, dtype=F64)
    return t, x, torch.randn(n, context_dim, dtype=F64) if context_dim else None


def reference_jacobian(velocity, t, x, context):
    """Return dv/dx by torch.func, from Phi itself where the velocity is a gradient."""

    def one(t, x, c):
        if isinstance(velocity, Gradient):
            phi = lambda y: velocity.potential(t, y[None], c)[0]  # noqa: E731
            return -torch.func.jacrev(torch.func.jacrev(phi))(x[0])[None] / velocity.scale
        return torch.func.jacrev(lambda y: velocity(t, y[None], c)[0])(x[0])[None]

    return row_by_row(one, t, x, context).detach()


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(("context_dim", "rows"), [(0, False), (0, True), (2, False), (2, True)])
def test_the_jacobian_is_that_of_the_velocity(case, grad, context_dim, rows):
    velocity = velocity_of(case, context_dim=context_dim)
    t, x, context = arguments(context_dim=context_dim, rows=rows)
    reference = reference_jacobian(velocity, t, x, context)
    p = torch.randn(2, *x.shape, dtype=F64)
    with torch.set_grad_enabled(grad):
        at = velocity.at(t, x, context)
        assert gap(at.v, row_by_row(velocity, t, x, context)) < 1e-12
        assert gap(at.jacobian.dense(), reference) < 1e-11
        assert gap(at.jacobian.vjp(p), torch.einsum("nij,kni->knj", reference, p)) < 1e-11
        assert gap(at.jacobian.jvp(p), torch.einsum("nij,knj->kni", reference, p)) < 1e-11
        trace = at.jacobian.trace()
        if trace is not None:
            assert gap(trace, reference.diagonal(dim1=1, dim2=2).sum(-1)) < 1e-11


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("product", ["vjp", "jvp"])
def test_batched_probes_equal_looped_ones(case, product, grad):
    t, x, _ = arguments()
    p = torch.randn(5, *x.shape, dtype=F64)
    with torch.set_grad_enabled(grad):
        jacobian = velocity_of(case).at(t, x).jacobian
        apply = getattr(jacobian, product)
        looped = torch.stack([apply(q) for q in p])
        assert looped.shape == p.shape
        assert gap(apply(p), looped) < 1e-13
        assert gap(apply(p[:1]), looped[:1]) < 1e-13


def test_a_product_made_without_gradients_is_not_taken_for_a_recorded_one(case):
    t, x, _ = arguments()
    jacobian, p = velocity_of(case).at(t, x).jacobian, torch.randn_like(x)
    with torch.no_grad():
        bare = jacobian.vjp(p)
    recorded = jacobian.vjp(p)
    assert not bare.requires_grad
    assert recorded.requires_grad
    assert gap(bare, recorded) < 1e-13


def test_symmetric_is_claimed_where_the_jacobian_is(case):
    velocity = velocity_of(case)
    jacobian = velocity.at(*arguments()[:2]).jacobian
    dense = jacobian.dense()
    assert jacobian.symmetric == ("symmetric" in velocity.provides)
    assert (gap(dense, dense.mT) < 1e-12) == jacobian.symmetric


def test_no_graph_is_left_without_gradients(case):
    t, x, _ = arguments()
    p = torch.randn_like(x)
    with torch.no_grad():
        at = velocity_of(case).at(t, x)
        found = [at.v, at.jacobian.vjp(p), at.jacobian.jvp(p), at.jacobian.dense()]
        found += [y for y in (at.phi_t, at.jacobian.trace()) if y is not None]
    assert [y.requires_grad for y in found] == [False] * len(found)


def test_products_carry_gradients_to_the_weights(case):
    velocity = velocity_of(case)
    t, x, _ = arguments()
    p = torch.randn_like(x)

    def values():
        at = velocity.at(t, x)
        return torch.stack(
            [at.v.sum(), *((g(p) * p).sum() for g in (at.jacobian.vjp, at.jacobian.jvp)),
             at.jacobian.dense().square().sum()]
        )  # fmt: skip

    parameter = max(velocity.parameters(), key=lambda w: w.dim())
    direction = torch.randn_like(parameter)
    exact = torch.stack(
        [(torch.autograd.grad(value, parameter, retain_graph=True)[0] * direction).sum()
         for value in values()]
    )  # fmt: skip
    with torch.no_grad():
        parameter.add_(1e-5 * direction)
        above = values()
        parameter.sub_(2e-5 * direction)
        below = values()
    assert gap(exact, (above - below) / 2e-5) < 1e-7


def test_arguments_are_left_as_they_were(case):
    for requires in (False, True):
        t, x, _ = arguments()
        x.requires_grad_(requires)
        kept, version = x.detach().clone(), x._version
        velocity_of(case).at(t, x).jacobian.dense()
        assert torch.equal(x.detach(), kept)
        assert (x.requires_grad, x._version, x.grad) == (requires, version, None)
        assert not t.requires_grad


@pytest.mark.parametrize("n", [1, 0])
@pytest.mark.parametrize("grad", [True, False])
def test_batches_of_one_and_of_none(case, n, grad):
    t, x, _ = arguments(n)
    with torch.set_grad_enabled(grad):
        at = velocity_of(case).at(t, x)
        assert at.v.shape == (n, DIM)
        assert at.jacobian.dense().shape == (n, DIM, DIM)
        assert at.jacobian.vjp(x.new_ones(2, n, DIM)).shape == (2, n, DIM)


@pytest.mark.parametrize("grad", [True, False])
def test_one_dimension(case, grad):
    t, x, _ = arguments(dim=1)
    velocity = velocity_of(case, dim=1)
    with torch.set_grad_enabled(grad):
        jacobian = velocity.at(t, x).jacobian
        assert gap(jacobian.dense(), reference_jacobian(velocity, t, x, None)) < 1e-11
        assert gap(jacobian.jvp(x), jacobian.dense()[:, 0] * x) < 1e-12


def test_a_registered_velocity_starts_in_the_default_precision():
    for case in velocity_cases():
        velocity = make_velocity(case, 2, dtype=None)
        assert velocity.at(torch.tensor(0.5), torch.randn(3, 2)).v.dtype == torch.float32


# --- special fields ------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [True, False])
def test_a_velocity_that_ignores_x_has_a_jacobian_of_zeros(grad, places):
    x = places(4, 3)
    p = torch.ones(2, 4, 3, dtype=F64)
    with torch.set_grad_enabled(grad):
        jacobian = Drift(3).at(torch.tensor(0.0, dtype=F64), x).jacobian
        for found, shape in [
            (jacobian.dense(), (4, 3, 3)),
            (jacobian.vjp(p), (2, 4, 3)),
            (jacobian.vjp(p[0]), (4, 3)),
            (jacobian.jvp(p), (2, 4, 3)),
            (jacobian.jvp(p[0]), (4, 3)),
        ]:
            assert found.shape == shape
            assert not found.any()


def test_a_scaled_map_scales_everything():
    a = torch.randn(3, 4, 4, dtype=F64)
    p = torch.randn(2, 3, 4, dtype=F64)
    scaled, full = Scaled(Matrix(a), -1.5), -1.5 * a
    assert gap(scaled.dense(), full) < 1e-15
    assert gap(scaled.vjp(p), torch.einsum("nji,knj->kni", full, p)) < 1e-14
    assert gap(scaled.jvp(p), torch.einsum("nij,knj->kni", full, p)) < 1e-14
    assert scaled.trace() is None


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.booleans())
def test_a_linear_field_of_any_shape(n, d, k, grad):
    a, x = torch.randn(d, d, dtype=F64), torch.randn(n, d, dtype=F64)
    p = torch.randn(k, n, d, dtype=F64)
    with torch.set_grad_enabled(grad):
        jacobian = Linear(a).at(torch.tensor(0.0, dtype=F64), x).jacobian
        assert gap(jacobian.dense(), a.expand(n, d, d)) < 1e-14
        assert gap(jacobian.vjp(p), p @ a) < 1e-13
        assert gap(jacobian.jvp(p), p @ a.T) < 1e-13


# --- shared work ---------------------------------------------------------------------------------


class _Observed(torch.autograd.Function):
    """The identity; counts its backward passes."""

    passes = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        _Observed.passes += 1
        return g


class ObservedVelocity(Velocity):
    dim = 3

    def __init__(self):
        super().__init__()
        self.inner = SmallVelocity(3)

    def forward(self, t, x, context=None):
        return self.inner(t, _Observed.apply(x), context)


def test_the_same_probes_give_the_same_product(places):
    x = places(4, 3)
    jacobian = SmallVelocity(3).at(torch.tensor(0.0, dtype=F64), x).jacobian
    p, q = torch.randn_like(x), torch.randn_like(x)
    first = jacobian.vjp(p)
    assert jacobian.vjp(p) is first
    assert not torch.equal(jacobian.vjp(q), first)
    assert torch.equal(jacobian.vjp(p), first)


def test_a_jacobian_penalty_uses_the_products_of_the_trace(places):
    flow = Continuous(ObservedVelocity(), RK4(3), Hutchinson())
    passes = []
    for running in ([], [JacobianFrobenius()]):
        _Observed.passes = 0
        with torch.no_grad():
            flow.encode(places(4, 3), running)
        passes.append(_Observed.passes)
    assert passes == [12, 12]


@pytest.mark.parametrize("maker", [SmallVelocity, small_gradient])
def test_the_density_knows_itself_without_grad_mode(maker, places):
    flow, x = Continuous(maker(3), RK4(2)), places(3, 3)
    expected = flow.log_prob(x).detach()
    with torch.no_grad():
        assert gap(flow.log_prob(x), expected) < 1e-13
    with torch.inference_mode():
        assert gap(flow.log_prob(x), expected) < 1e-13
        assert gap(flow.decode(flow.encode(x).z), x) < 1e-3
