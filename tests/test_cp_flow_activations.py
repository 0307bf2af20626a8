"""Smoothed ReLUs: their derivatives to all orders, far out, under transforms; their noise."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from oracles import F64, gap

from flowzoo.errors import Incompatible
from flowzoo_cp_flow.activations import Softplus

KINDS = ["logistic", "gaussian", "gaussian2", "laplace", "cauchy"]
# s'(-inf), s'(inf), s''(0): the noise's mass and its density at 0.
RANGES = {
    "logistic": (1.0, 0.25),
    "gaussian": (1.0, 1 / math.sqrt(2 * math.pi)),
    "gaussian2": (2.0, 2 / math.sqrt(2 * math.pi)),
    "laplace": (1.0, 0.5),
    "cauchy": (1.0, 1 / math.pi),
}
# Away from 0, where the third derivative of the Laplace one jumps.
POINTS = torch.tensor([-30.0, -6.0, -1.3, -0.4, 0.2, 0.9, 3.0, 12.0, 40.0], dtype=F64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_derivatives_are_those_of_finite_differences_to_third_order(kind, symmetric):
    s = Softplus(kind, centred=True, symmetric=symmetric)
    a = POINTS[1:-1].clone().requires_grad_()
    assert torch.autograd.gradcheck(s.derivatives, a)
    assert torch.autograd.gradgradcheck(s.derivatives, a)


@pytest.mark.parametrize("kind", KINDS)
def test_each_derivative_is_the_automatic_one_of_the_last(kind):
    a = POINTS.clone().requires_grad_()
    found = Softplus(kind).derivatives(a)
    for lower, higher in itertools.pairwise(found):
        (slope,) = torch.autograd.grad(lower.sum(), a, create_graph=True)
        assert gap(slope, higher) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_stay_differentiable_under_transforms(kind):
    s, a = Softplus(kind), POINTS.view(3, 3)
    _, slope, curvature = s.derivatives(a)
    once = torch.func.grad(lambda t: s(t).sum())
    assert gap(once(a), slope) < 1e-13
    twice = torch.func.vmap(torch.func.hessian(lambda t: s(t).sum()))(a)
    assert gap(twice, torch.diag_embed(curvature)) < 1e-13
    _, pushed = torch.func.jvp(s.derivatives, (a,), (torch.ones_like(a),))
    assert gap(pushed[:2], (slope, curvature)) < 1e-13
    third = torch.func.grad(lambda t: s.derivatives(t)[2].sum())(a)
    assert gap(pushed[2], third) < 1e-13
    through = torch.func.jacfwd(torch.func.jacrev(s))(a[0])
    assert gap(through, torch.func.jacrev(torch.func.jacrev(s))(a[0])) < 1e-13


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_nothing_breaks_far_out(kind, dtype):
    high, _ = RANGES[kind]
    far = torch.logspace(-3, 4, 200, dtype=F64)
    a = torch.cat([-far.flip(0), torch.zeros(1, dtype=F64), far]).to(dtype).requires_grad_()
    s, slope, curvature = Softplus(kind).derivatives(a)
    assert all(t.dtype == dtype for t in (s, slope, curvature))
    (third,) = torch.autograd.grad(curvature.sum(), a)
    assert all(t.isfinite().all() for t in (s, slope, curvature, third))
    assert (curvature >= 0).all()
    assert (slope >= 0).all()
    assert (slope <= high).all()
    assert (slope.diff() >= -4 * torch.finfo(dtype).eps).all(), "convex"
    # Cauchy's noise has tails: 1e4 is not far for it.
    near = 1e-4 if kind == "cauchy" else 1e-12
    assert abs(slope[0].item()) <= near
    assert abs(slope[-1].item() - high) <= near
    relu = high * torch.relu(a.detach())
    rest = (s.detach() - relu).abs()
    assert (rest[[0, -1]] <= (5.0 if kind == "cauchy" else 1e-6 * 1e4)).all()


def test_the_softplus_is_smooth_beyond_20():
    """Where torch's, and with it the published one, is the identity."""
    a = torch.arange(15.0, 45.0, 0.5, dtype=F64)
    rest = torch.log1p(torch.exp(-a))
    assert (Softplus()(a) - (a + rest)).abs().max() < 1e-14


@pytest.mark.parametrize("kind", KINDS)
def test_curvature_at_zero_is_the_density_there(kind):
    """A wrong one makes Hessians indefinite where arguments vanish."""
    zero = torch.zeros(1, dtype=F64)
    high, expected = RANGES[kind]
    _, slope, curvature = Softplus(kind).derivatives(zero)
    assert curvature.item() == pytest.approx(expected, rel=1e-14)
    assert slope.item() == pytest.approx(high / 2, rel=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_centred_ones_vanish_at_zero(kind):
    a = POINTS
    plain, centred = Softplus(kind), Softplus(kind, centred=True)
    assert abs(centred(torch.zeros(1, dtype=F64)).item()) < 1e-15
    assert (plain(a) - centred(a)).std() < 1e-14
    assert gap(centred.derivatives(a)[1:], plain.derivatives(a)[1:]) == 0


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "gaussian2"])
def test_symmetric_ones_are_even(kind):
    s = Softplus(kind, symmetric=True)
    assert gap(s(-POINTS), s(POINTS)) < 1e-14


def test_the_doubled_one_stays_uneven_as_published():
    s = Softplus("gaussian2", symmetric=True)
    assert gap(s.derivatives(torch.tensor([-30.0, 30.0], dtype=F64))[1],
               torch.tensor([-0.5, 1.5], dtype=F64)) < 1e-14  # fmt: skip


@pytest.mark.parametrize("kind", ["logistic", "gaussian", "laplace"])
def test_it_is_the_relu_smoothed_by_its_noise(kind):
    noise = {
        "logistic": lambda u: torch.log(u) - torch.log1p(-u),
        "gaussian": lambda u: torch.special.ndtri(u),
        "laplace": lambda u: -torch.sign(u - 0.5) * torch.log1p(-2 * (u - 0.5).abs()),
    }[kind]
    u = (torch.arange(200_000, dtype=F64) + 0.5) / 200_000
    for a in (-2.0, 0.0, 0.7):
        expected = torch.relu(a + noise(u)).mean()
        found = Softplus(kind)(torch.tensor([a], dtype=F64))
        assert abs((found - expected).item()) < 1e-4


def test_an_unknown_smoothing_is_refused():
    with pytest.raises(Incompatible, match="no smoothing is called 'relu': one of logistic"):
        Softplus("relu")
