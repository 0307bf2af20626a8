"""Hutch++: the published algorithm, exact on low ranks, less noisy where a spectrum decays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracles import F64, Linear, Matrix, SmallVelocity, gap, with_spectrum

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible
from flowzoo.field import Point
from flowzoo.integrators import RK4
from flowzoo.odeint import Adjoint
from flowzoo.regularizers import JacobianFrobenius
from flowzoo.traces import Hutchinson, HutchPlusPlus

Z = 5.0  # standard errors; a right estimator fails one in 1.7 million comparisons
NOISES = ["rademacher", "gaussian"]


class Counting(Matrix):
    """An explicit map that counts the vectors it is multiplied with."""

    def vjp(self, p):
        self.products += len(p) - 1
        return super().vjp(p)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def of_rank(r, d=12, n=6):
    """Return n matrices (n, d, d), not symmetric, of rank r."""
    return normal(n, d, r) @ normal(n, r, d, seed=1)


def estimates(trace, a, seed=0):
    probes = trace.probes(a.new_zeros(a.shape[:2]), torch.Generator().manual_seed(seed))
    return trace(Matrix(a), probes)


def repeated(trace, a, rows=20_000):
    """Return one independent estimate per row of the trace of a single matrix."""
    return estimates(trace, a.expand(rows, -1, -1))


def assert_mean(values, expected):
    error = (values.mean() - expected).abs().item()
    assert error <= Z * values.std().item() / math.sqrt(len(values)) + 1e-10


def by_the_book(a, s, g):
    """Return tr(Q'BQ) + tr(G'(I - QQ')B(I - QQ')G) / k with B = A', in numpy, for one map."""
    b = a.numpy().T
    u, _, _ = np.linalg.svd(b @ s.numpy().T, full_matrices=False)  # another basis of the range
    left = np.eye(len(b)) - u @ u.T
    rest = left @ g.numpy().T
    return np.trace(u.T @ b @ u) + np.trace(rest.T @ b @ rest) / rest.shape[1]


# --- the estimate --------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("samples", "sketch"), [(3, 1), (5, 1), (6, 2), (11, 3)])
def test_it_is_the_published_algorithm(samples, sketch, noise):
    a, trace = normal(4, 12, 12), HutchPlusPlus(noise, samples)
    probes = trace.probes(a.new_zeros(4, 12), torch.Generator().manual_seed(0))
    s, g = probes[:sketch], probes[sketch:]
    assert len(g) == samples - 2 * sketch
    expected = [by_the_book(a[i], s[:, i], g[:, i]) for i in range(4)]
    assert gap(trace(Matrix(a), probes), torch.tensor(np.array(expected))) < 1e-11


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("samples", [3, 4, 8])
def test_it_is_unbiased_for_maps_that_are_not_symmetric(samples, noise):
    a = normal(10, 10) + 0.3 * torch.eye(10, dtype=F64)
    assert_mean(repeated(HutchPlusPlus(noise, samples), a), a.trace().item())


@pytest.mark.parametrize(("samples", "rank"), [(3, 1), (6, 2), (11, 3)])
def test_ranks_up_to_a_third_of_the_products_are_exact(samples, rank):
    trace = HutchPlusPlus("gaussian", samples)
    for r in range(1, rank + 1):
        a = of_rank(r)
        assert gap(estimates(trace, a), a.diagonal(dim1=1, dim2=2).sum(-1)) < 1e-10
    a = of_rank(rank + 1)
    assert gap(estimates(trace, a), a.diagonal(dim1=1, dim2=2).sum(-1)) > 1e-2


@pytest.mark.parametrize("samples", [3, 5, 7, 8, 20])
def test_it_takes_as_many_products_as_it_says_and_never_more_than_dimensions(samples):
    a, trace = normal(2, 8, 8), HutchPlusPlus(samples=samples)
    counting = Counting(a)
    found = trace(counting, trace.probes(a.new_zeros(2, 8)))
    assert counting.products == min(samples, 8)
    if samples >= 8:
        assert gap(found, a.diagonal(dim1=1, dim2=2).sum(-1)) < 1e-13


@pytest.mark.parametrize("noise", NOISES)
def test_it_is_less_noisy_than_hutchinson_where_the_spectrum_decays(noise):
    """With equal products; where it does not decay, it is the other way round."""
    m, d = 9, 30
    k = torch.arange(1, d + 1)
    spectra, ratios = {"decays": k**-2.0, "does not": (-1.0) ** k}, {}
    for name, values in spectra.items():
        a = with_spectrum(values)[0]
        ours, theirs = (repeated(t(noise, m), a, 4000) for t in (HutchPlusPlus, Hutchinson))
        ratios[name] = (ours.var() / theirs.var()).item()
    assert ratios["decays"] < 0.1
    assert ratios["does not"] > 1.5


# --- the gradient --------------------------------------------------------------------------------


def through_the_basis(a, probes, s):
    """Return the estimate with the derivative of the orthonormal basis left in."""
    sketch, g = (p.permute(1, 2, 0) for p in (probes[:s], probes[s:]))
    q = torch.linalg.qr(a.mT @ sketch)[0]
    rest = g - q @ (q.mT @ g)
    return ((a @ q) * q).sum((1, 2)) + ((a @ rest) * rest).sum((1, 2)) / g.shape[-1]


def gradient(value, a):
    return torch.autograd.grad(value.sum(), a)[0]


def test_the_gradient_is_unbiased_and_less_noisy_than_the_slope_of_the_value():
    """Both have the mean I, which is that of tr A; entries within Z standard errors."""
    d, rows, trace = 8, 4000, HutchPlusPlus("gaussian", 6)
    one = normal(d, d) @ torch.diag(torch.arange(1.0, d + 1, dtype=F64) ** -2)
    a = one.expand(rows, d, d).clone().requires_grad_()
    probes = trace.probes(a.new_zeros(rows, d), torch.Generator().manual_seed(0))
    value, slope = trace(Matrix(a), probes), through_the_basis(a, probes, 2)
    assert gap(value, slope) < 1e-10
    ours, theirs = gradient(value, a), gradient(slope, a)
    for found in (ours, theirs):
        error = (found.mean(0) - torch.eye(d)).abs() / (found.std(0) / rows**0.5)
        assert error.max() < Z
    assert ours.var(0).sum() < 0.5 * theirs.var(0).sum()


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_maps_of_low_rank_have_finite_estimates_and_gradients(rank, noise):
    """Two columns are sketched; where the rank is lower, the rest of Q is arbitrary."""
    a = of_rank(rank).requires_grad_()
    value = estimates(HutchPlusPlus(noise, 8), a)
    assert (value - a.diagonal(dim1=1, dim2=2).sum(-1)).abs().max() < 1e-10
    found = gradient(value, a)
    assert found.isfinite().all()
    assert found.diagonal(dim1=1, dim2=2).sum(-1).min() > 2  # Q Q' alone has the trace 2


def test_a_flow_learns_from_an_unbiased_gradient():
    """ladj = tr(A) T for dx/dt = A x, so that its gradient in A is I, whatever the solver."""
    d, rows = 6, 4000
    flow = Continuous(Linear(0.3 * normal(d, d)), RK4(1), HutchPlusPlus())
    ladj = flow.encode(normal(rows, d, seed=2), generator=torch.Generator().manual_seed(0)).ladj
    (found,) = torch.autograd.grad(ladj.mean(), flow.velocity.a)
    # An entry of Q Q' + G'G'' has a variance of at most that of p p', which is 2 on the diagonal.
    assert (found - torch.eye(d)).abs().max() < Z * math.sqrt(2 / rows)


def test_every_way_to_differentiate_a_solve_gives_the_same_gradient(places):
    x, found = places(5, 6), []
    for integrator in (RK4(60), RK4(60, recompute=True), Adjoint(rtol=1e-10, atol=1e-10)):
        flow = Continuous(SmallVelocity(6), integrator, HutchPlusPlus(samples=4))
        loss = -flow.log_prob(x, generator=torch.Generator().manual_seed(1)).mean()
        found.append(torch.autograd.grad(loss, tuple(flow.parameters())))
    assert gap(found[1], found[0]) < 1e-13
    assert gap(found[2], found[0]) < 1e-6


# --- manners -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e15])
@pytest.mark.parametrize("rest", [0.0, 1e-6])
def test_single_precision_is_stable_where_the_sketch_is_nearly_singular(rest, scale):
    """Three columns are sketched of a map of rank 2: one is made of rounding."""
    a, trace = of_rank(2) + rest * normal(6, 12, 12), HutchPlusPlus("gaussian", 11)
    probes = trace.probes(a.new_zeros(6, 12).float(), torch.Generator().manual_seed(0))
    found = trace(Matrix((scale * a).float()), probes)
    expected = trace(Matrix(scale * a), probes.double())
    assert found.dtype == torch.float32
    size = scale * torch.linalg.matrix_norm(a)
    assert ((found.double() - expected).abs() / size).max() < 1e-5


@pytest.mark.parametrize(("n", "d"), [(0, 5), (1, 5), (0, 1), (1, 1), (3, 1), (3, 4)])
def test_any_number_of_maps_in_any_dimension(n, d):
    a = normal(n, d, d)
    found = estimates(HutchPlusPlus(), a)
    assert found.shape == (n,)
    assert found.isfinite().all()


def test_what_cannot_be_is_refused():
    for samples in (2, 0, -1):
        with pytest.raises(Incompatible, match=f"hutch.*at least 3, got {samples}"):
            HutchPlusPlus(samples=samples)
    with pytest.raises(Incompatible, match=r"hutch\+\+.*slq or exact"):
        HutchPlusPlus()(Matrix(normal(2, 5, 5)), normal(2, 2, 5), torch.log)


def test_its_probes_serve_a_jacobian_penalty():
    """E |J'p|^2 = |J|_F^2 over the probes of the sketch as over the others."""
    a, rows, trace = normal(7, 7), 20_000, HutchPlusPlus(samples=6)
    probes = trace.probes(a.new_zeros(rows, 7), torch.Generator().manual_seed(0))
    x = a.new_zeros(rows, 7)
    at = Point(torch.zeros(()), x, x, Matrix(a.expand(rows, -1, -1)))
    assert_mean(JacobianFrobenius().rate(at, probes), a.square().sum().item())


def test_redrawn_probes_average_out():
    """Stages of RK4 weigh 1:2:2:1, so m steps of new probes divide the variance by 18 m / 5."""
    a, rows, m, spread = normal(5, 5), 3000, 3, {}
    for redraw in ("solve", "stage"):
        flow = Continuous(Linear(a), RK4(m), HutchPlusPlus(redraw=redraw))
        with torch.no_grad():
            ladj = flow.encode(normal(rows, 5), generator=torch.Generator().manual_seed(0)).ladj
        assert_mean(ladj, a.trace().item())
        spread[redraw] = ladj.var().item()
    assert spread["solve"] / spread["stage"] == pytest.approx(18 * m / 5, rel=0.2)
