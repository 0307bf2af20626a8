"""Decoding through a residual block: contractions, other bijections, folds, and gradients."""

from __future__ import annotations

import pytest
import torch
from oracles import F64
from residual_flows import block, filled, monotone

from flowzoo.errors import Diverged, Incompatible
from flowzoo.flow import Chain
from flowzoo_residual.inversion import fixed_point, newton

ONES = torch.ones(6, dtype=F64)


@pytest.mark.parametrize("lipschitz", [0.5, 0.9, 0.99])
def test_contractions_are_inverted(places, lipschitz):
    flow = Chain([block(3, (16, 16), s, size=5.0, lipschitz=lipschitz) for s in range(3)])
    x = 5 * places(50, 3)
    assert torch.allclose(flow.decode(flow.encode(x).z), x, atol=1e-9)
    assert torch.allclose(flow.encode(flow.decode(x)).z, x, atol=1e-9)


@pytest.mark.parametrize("size", [1.2, 3.0, 30.0])
def test_bijections_that_do_not_contract_are_inverted(places, size):
    """x + A^T s(A x), whose Jacobian is never smaller than I; the fixed point alone fails."""
    flow, x = monotone(3, size), places(6, 3)
    z = flow.encode(x).z.detach()
    _, left = fixed_point(flow.network(), z, 1e-9 * ONES, 200)
    assert not (left <= 1).all()
    assert torch.allclose(flow.decode(z), x, atol=1e-9)


def test_newton_needs_few_steps_and_halves_them_where_they_overshoot(places):
    """Far out, where the slope of the activation jumps, full steps would go back and forth."""
    flow = filled(
        block(1, (1,), lipschitz=None, activation="tanh"), ([[1.0]], [[-0.999]]), ([0.0], [0.0])
    )  # x - 0.999 tanh x is nearly flat at 0
    x = torch.tensor([[1e-3], [0.3], [-0.7], [2.0], [5.0], [0.0]], dtype=F64)
    z = flow.encode(x).z.detach()
    found, left = newton(flow.network(), z, 1e-14 * ONES, 100)
    assert (left <= 1).all()
    assert torch.allclose(found, x, atol=1e-6)
    _, left = fixed_point(flow.network(), z, 1e-14 * ONES, 100)
    assert not (left <= 1).all()


def test_what_cannot_be_inverted_is_reported():
    """x - 4 s(x) is nowhere above its maximum, and the points are counted that are."""
    flow = monotone(1, 2.0, sign=-1.0)
    z = torch.tensor([[-9.0], [50.0], [60.0]], dtype=F64)
    with pytest.raises(Diverged, match=r"residual: 2 of 3 samples were not inverted.* bijection"):
        flow.decode(z)
    assert flow.decode(z[:1]).isfinite().all()


def test_points_that_are_none_are_named():
    z = torch.zeros(4, 3, dtype=F64)
    z[2, 1] = torch.nan
    with pytest.raises(Diverged, match=r"1 of 4 .* 1 hold nan or inf, the first is number 2"):
        block().decode(z)


def steep():
    """Return x + 3 tanh 3 x, on which Newton's full steps overshoot."""
    flow = block(1, (1,), lipschitz=None, activation="tanh")
    return filled(flow, ([[3.0]], [[3.0]]), ([0.0], [0.0]))


@pytest.mark.parametrize("flow", [block(1, size=5.0), steep()], ids=["bounded", "steep"])
def test_hard_points_do_not_disturb_the_others(flow):
    """Each stops by itself: the same bits among its like, and beside points that take longer."""
    z = torch.linspace(-6, 6, 20, dtype=F64)[:, None] ** 3
    together = flow.decode(z)
    for i in range(20):
        assert torch.equal(flow.decode(z[i : i + 1].expand(20, 1))[0], together[i])


def test_single_precision(places):
    """Also where rounding alone leaves more than the residual that is aimed at."""
    for flow in (block(3, (64, 64), size=5.0), monotone(3, 30.0), monotone(3, 300.0)):
        z = places(200, 3).float()
        there = flow.float().encode(flow.decode(z)).z
        assert torch.allclose(there, z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [lambda: block(3, (5, 4), context_dim=2), lambda: monotone(3)])
@pytest.mark.parametrize("hidden", [(5, 4), (2, 6)])
def test_gradients_by_the_implicit_function_theorem(places, make, hidden):
    """In noise, context and weights, against those of encode: dx = -(dz/dx)^-1 df."""
    flow = make()
    if flow.context_dim:
        flow = block(3, hidden, context_dim=2)
    z = places(4, 3).requires_grad_()
    c = places(4, 2, seed=1).requires_grad_() if flow.context_dim else None
    leaves = [z, *flow.parameters(), *([] if c is None else [c])]
    x, w = flow.decode(z, c), places(4, 3, seed=2)
    found = torch.autograd.grad((x * w).sum(), leaves)
    there = x.detach().requires_grad_()
    f = flow.encode(there, context=c).z
    rows = [torch.autograd.grad(f[:, i].sum(), there, retain_graph=True)[0] for i in range(3)]
    u = torch.linalg.solve(torch.stack(rows, 1).mT, w)
    expected = [u, *torch.autograd.grad(-(f * u).sum(), leaves[1:])]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-9)


def test_a_second_derivative_of_decode_is_refused(places):
    z = places(4, 3).requires_grad_()
    x = block().decode(z)
    (grad,) = torch.autograd.grad(x.square().sum(), z, retain_graph=True)
    assert not grad.requires_grad
    with pytest.raises(Incompatible, match="first derivatives only"):
        torch.autograd.grad(x.square().sum(), z, create_graph=True)


def test_nothing_of_the_way_is_recorded(places):
    flow = block()
    with torch.no_grad():
        assert not flow.decode(places()).requires_grad
    for weight in flow.parameters():
        weight.requires_grad_(False)
    assert not flow.decode(places()).requires_grad
