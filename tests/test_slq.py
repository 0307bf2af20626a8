"""Stochastic Lanczos quadrature against eigenvalues: Gauss exactness, breakdowns, precision."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import F64, Matrix, Quadratic, SmallVelocity, gap, with_spectrum

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible
from flowzoo.field import Gradient
from flowzoo.integrators import RK4
from flowzoo.logdet import SLQ
from flowzoo.traces import Hutchinson

Z = 5.0  # standard errors; a right estimator fails one in 1.7 million comparisons
NOISES = ["rademacher", "gaussian"]


def quadratic_form(a, p, fn):
    """Return p' f(A) p from the eigenvalues, (k, n)."""
    values, vectors = torch.linalg.eigh(a)
    return ((vectors.mT @ p[..., None])[..., 0].square() * fn(values)).sum(-1)


def compare(a, fn, steps, samples=3, noise="gaussian", seed=0):
    trace = SLQ(samples, steps, noise)
    p = trace.probes(a.new_zeros(a.shape[:2]), torch.Generator().manual_seed(seed))
    return trace(Matrix(a, True), p, fn), quadratic_form(a, p, fn).mean(0)


FUNCTIONS = {"log": torch.log, "sqrt": torch.sqrt, "inverse": torch.reciprocal, "exp": torch.exp}


@pytest.mark.parametrize("fn", FUNCTIONS)
@pytest.mark.parametrize("steps", [6, 20])
def test_slq_with_all_steps_is_the_quadratic_form(fn, steps):
    found, expected = compare(
        with_spectrum([0.1, 0.5, 1.0, 2.0, 3.0, 9.0], n=4), FUNCTIONS[fn], steps
    )
    assert gap(found, expected) < 1e-12


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_slq_is_a_gauss_quadrature(steps):
    """m steps are exact for polynomials up to degree 2 m - 1, and not for the next."""
    a = with_spectrum([0.2, 0.7, 1.1, 1.6, 2.0, 2.9], n=3)
    exact = compare(a, lambda x: x ** (2 * steps - 1), steps)
    missed = compare(a, lambda x: x ** (2 * steps), steps)
    assert gap(*exact) < 1e-12
    assert gap(*missed) > 1e-6


@pytest.mark.parametrize("noise", NOISES)
def test_slq_is_unbiased(noise):
    rows, a = 5000, with_spectrum(torch.linspace(0.5, 4, 6))
    trace = SLQ(2, 6, noise)
    probes = trace.probes(a.new_zeros(rows, 6), torch.Generator().manual_seed(0))
    values = trace(Matrix(a.expand(rows, -1, -1), True), probes, torch.log)
    assert (values.mean() - torch.logdet(a[0])).abs() < Z * values.std() / math.sqrt(rows)


BREAKDOWNS = {
    "identity": [1.0] * 6,
    "multiple of the identity": [3.0] * 6,
    "low rank plus identity": [5.0, 2.0, 1.0, 1.0, 1.0, 1.0],
    "repeated": [0.5, 0.5, 2.0, 2.0, 7.0, 7.0],
    "one apart": [1.0, 1.0, 1.0, 1.0, 1.0, 1e4],
    "tiny": [1e-9, 1e-9, 2e-9, 2e-9, 3e-9, 3e-9],
    "huge": [1e9, 1e9, 2e9, 2e9, 3e9, 3e9],
}


@pytest.mark.parametrize("name", BREAKDOWNS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_slq_survives_an_exhausted_krylov_space(name, dtype):
    a = with_spectrum(BREAKDOWNS[name], n=5)
    trace = SLQ(3, 6, "gaussian")
    p = trace.probes(a.new_zeros(5, 6), torch.Generator().manual_seed(0))
    found = trace(Matrix(a.to(dtype), True), p.to(dtype), torch.log)
    error = (found.to(F64) - quadratic_form(a, p, torch.log).mean(0)).abs()
    assert (error / p.square().sum(-1).mean(0)).max() < (1e-9 if dtype == F64 else 2e-3)


def test_slq_of_zero():
    found, expected = compare(torch.zeros(2, 4, 4, dtype=F64), torch.exp, 4)
    assert gap(found, expected) < 1e-14


@pytest.mark.parametrize("probe", [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
def test_slq_from_a_probe_in_an_invariant_space(probe):
    a = torch.diag(torch.tensor([2.0, 3.0, -5.0, 0.0], dtype=F64))[None]
    p = torch.tensor(probe, dtype=F64)[None, None]
    found = SLQ(1, 4)(Matrix(a, True), p, torch.log)  # log is not finite outside that space
    assert found.item() == pytest.approx(math.log(2) + probe[1] * math.log(3), rel=1e-13)


def test_slq_breaks_down_per_sample():
    rows = [with_spectrum(spectrum)[0] for spectrum in list(BREAKDOWNS.values())[:5]]
    a = torch.stack([*rows, with_spectrum([0.1, 0.4, 1.0, 2.0, 4.0, 8.0])[0]])
    trace = SLQ(2, 6)
    p = trace.probes(a.new_zeros(a.shape[:2]), torch.Generator().manual_seed(2))
    together = trace(Matrix(a, True), p, torch.log)
    alone = [trace(Matrix(a[i : i + 1], True), p[:, i : i + 1], torch.log) for i in range(len(a))]
    assert gap(together, torch.cat(alone)) < 1e-12


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_slq_stays_accurate_in_single_precision(condition):
    """A log-determinant in d = 60, all steps, an isolated largest eigenvalue: without
    reorthogonalisation Lanczos finds that eigenvalue again and again."""
    spectrum = torch.cat(
        [torch.logspace(-math.log10(condition), 0, 59, dtype=F64), torch.tensor([10.0])]
    )
    a = with_spectrum(spectrum, n=2)
    a32 = a.to(torch.float32)
    trace = SLQ(4, 60)
    p = trace.probes(a.new_zeros(2, 60), torch.Generator().manual_seed(0))
    single = trace(Matrix(a32, True), p.to(torch.float32), torch.log).to(F64)
    double = trace(Matrix(a32.to(F64), True), p, torch.log)
    assert gap(double, quadratic_form(a32.to(F64), p, torch.log).mean(0)) < 1e-9
    # Rounding moves an eigenvalue by about eps |A|; the smallest one is |A| / (10 condition).
    assert gap(single, double) < max(1e-5, 3e-7 * condition)


def test_slq_of_the_identity_function_is_hutchinson():
    a = with_spectrum([0.5, 1.0, 2.0, -3.0, 4.0], n=6).requires_grad_()
    hutchinson, slq = Hutchinson(samples=3), SLQ(3, 4)
    p = hutchinson.probes(torch.zeros(6, 5, dtype=F64), torch.Generator().manual_seed(0))
    one, two = hutchinson(Matrix(a, True), p), slq(Matrix(a, True), p)
    quadrature = slq(Matrix(a, True), p, lambda x: x)
    assert gap(two, one) < 1e-14
    assert gap(quadrature, one) < 1e-14 * 50
    gradients = [torch.autograd.grad(y.sum(), a)[0] for y in (one, two)]
    assert gap(*gradients) < 1e-14


@pytest.mark.parametrize("steps", [1, 3, 6, 9])
def test_slq_takes_no_more_products_than_it_needs(steps):
    a = Matrix(with_spectrum([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], n=3), True)
    trace = SLQ(2, steps)
    trace(a, trace.probes(torch.zeros(3, 6, dtype=F64)), torch.log)
    assert a.products == min(steps, 6)


def test_slq_refuses_a_velocity_that_is_no_gradient():
    with pytest.raises(Incompatible, match=r"SLQ needs symmetric .* SmallVelocity"):
        Continuous(SmallVelocity(2), trace=SLQ())


def test_slq_gives_the_divergence_of_a_potential_flow(places):
    s = with_spectrum([0.3, -0.5, 1.0])[0]
    flow = Continuous(Gradient(Quadratic(s)), RK4(4), SLQ(400, 1))
    ladj = flow.encode(places(6, 3), generator=torch.Generator().manual_seed(0)).ladj
    deviation = math.sqrt(2 * (s - torch.diag(s.diagonal())).square().sum().item() / 400)
    assert (ladj - s.trace()).abs().max() < Z * deviation
