"""Log-determinants from Krylov spaces: values, gradients from the same space, and costs."""

from __future__ import annotations

import math

import pytest
import torch
from logdet_maps import Stiff, basis, draws, matrices
from oracles import F64, Matrix, gap, with_spectrum

from flowzoo.errors import Incompatible
from flowzoo.logdet import CG, SLQ, Surrogate
from flowzoo.traces import Exact

FULL = {
    "slq": lambda **more: SLQ(steps=8, **more),
    "radau": lambda **more: SLQ(steps=8, rule="radau", **more),
    "cg": lambda **more: CG(atol=1e-12, cap=40, **more),
    "surrogate": lambda **more: Surrogate(Exact(), CG(atol=1e-12, cap=40, **more)),
}


# --- value and gradient --------------------------------------------------------------------------


@pytest.mark.parametrize("precondition", [0, 3, 20])
@pytest.mark.parametrize("name", FULL)
def test_with_a_basis_of_probes_value_and_gradient_are_exact(name, precondition):
    """A family of matrices A(w), with weights per sample: the gradient differs between samples."""
    if name == "surrogate" and precondition:
        pytest.skip("its parts are tested")
    trace = FULL[name](precondition=precondition)
    w = (0.1 * torch.randn(6, 8, 8, dtype=F64)).requires_grad_()
    weights = torch.linspace(0.5, 2, 6, dtype=F64)

    def a():
        return matrices() + w @ w.mT

    value = trace(Stiff(a(), True), basis(w), torch.log)
    expected = torch.linalg.slogdet(a()).logabsdet
    assert gap(value, expected) < 1e-10
    found, right = (torch.autograd.grad((weights * y).sum(), w)[0] for y in (value, expected))
    assert gap(found, right) < 1e-12 * (1 + right.abs().max())


@pytest.mark.parametrize("fn", [torch.exp, torch.sqrt, lambda x: x**3])
def test_slq_differentiates_other_functions(fn):
    a = with_spectrum([0.1, 0.5, 1.0, 2.0, 3.0], n=3).requires_grad_()
    value = SLQ(steps=5)(Matrix(a, True), basis(a), fn)
    (found,) = torch.autograd.grad(value.sum(), a)
    b = a.detach().requires_grad_()
    values, vectors = torch.linalg.eigh(b.detach())
    (slopes,) = torch.autograd.grad(fn(values.requires_grad_()).sum(), values)
    assert gap(value, fn(values).sum(-1)) < 1e-11
    assert gap(0.5 * (found + found.mT), (vectors * slopes[:, None]) @ vectors.mT) < 1e-11


@pytest.mark.parametrize("trace", [SLQ(steps=3), CG(cap=3, atol=0.0), CG(atol=1.0)])
def test_the_gradient_is_that_of_conjugate_gradients(trace):
    """After few steps too: dA -> z' dA p with z of the Krylov space, the best in the A-norm."""
    a = matrices().requires_grad_()
    p = torch.randn(1, 6, 8, dtype=F64, generator=torch.Generator().manual_seed(0))
    value = trace(Matrix(a, True), p, torch.log)
    (found,) = torch.autograd.grad(value.sum(), a)
    steps = 3 if trace.__class__ is SLQ or trace.cap else None
    if steps is None:
        from flowzoo.krylov import solve

        z = solve(Matrix(a.detach(), True), p, 1.0).x[0]
    else:
        space = [p[0]]
        for _ in range(steps - 1):
            space.append((a.detach() @ space[-1][..., None])[..., 0])
        q = torch.linalg.qr(torch.stack(space, -1)).Q
        z = (q @ torch.linalg.solve(q.mT @ a.detach() @ q, q.mT @ p[0][..., None]))[..., 0]
    expected = z[:, :, None] * p[0][:, None]
    found = found + found.mT
    assert gap(found, expected + expected.mT) < 1e-9


@pytest.mark.parametrize("name", FULL)
def test_the_value_is_the_same_with_and_without_gradients(name):
    trace, a = FULL[name](), matrices().requires_grad_()
    p = trace.probes(a[..., 0].detach(), torch.Generator().manual_seed(0))
    value = trace(Stiff(a, True), p, torch.log)
    with torch.no_grad():
        without = trace(Stiff(a, True), p, torch.log)
    assert value.requires_grad
    assert not without.requires_grad
    assert torch.equal(value, without)
    assert not trace(Stiff(a.detach(), True), p, torch.log).requires_grad


@pytest.mark.parametrize("name", ["slq", "cg", "surrogate"])
def test_a_second_derivative_is_refused(name):
    trace, a = FULL[name](), matrices().requires_grad_()
    value = trace(Matrix(a, True), trace.probes(a[..., 0].detach()), torch.log)
    with pytest.raises(Incompatible, match=r"first derivatives .*use the exact trace"):
        torch.autograd.grad(value.sum(), a, create_graph=True)


def test_cg_has_the_value_of_lanczos():
    a, p = matrices(), torch.randn(3, 6, 8, dtype=F64)
    for steps in (1, 2, 5):
        found = CG(atol=0.0, cap=steps)(Matrix(a, True), p, torch.log)
        assert gap(found, SLQ(steps=steps)(Matrix(a, True), p, torch.log)) < 1e-10


def test_cg_knows_the_logarithm_alone():
    with pytest.raises(Incompatible, match="cg knows the logarithm alone"):
        CG()(Matrix(matrices(), True), basis(matrices()), torch.exp)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CG(samples=0), "cg: samples must be at least 1, got 0"),
        (lambda: CG(cap=0), "cg: cap must be at least 1, got 0"),
        (lambda: CG(atol=-1.0), "cg: tolerances must not be negative, got -1 and 0"),
        (lambda: SLQ(precondition=-1), "slq: precondition must be at least 0, got -1"),
    ],
)
def test_impossible_options_are_refused(make, said):
    with pytest.raises(Incompatible, match=said):
        make()


# --- error ---------------------------------------------------------------------------------------


def test_the_error_falls_with_probes_and_with_steps():
    a = matrices(4)
    truth = torch.linalg.slogdet(a).logabsdet[:, None]
    noise = [(draws(SLQ(k, 8), a) - truth).square().mean().sqrt().item() for k in (1, 4, 16)]
    assert noise[0] == pytest.approx(2 * noise[1], rel=0.1)
    assert noise[1] == pytest.approx(2 * noise[2], rel=0.1)
    biases = [
        (SLQ(steps=m)(Matrix(a, True), basis(a), torch.log) - truth[:, 0]).min().item()
        for m in (2, 3, 4, 5)
    ]
    assert biases[0] > 2 * biases[1] > 4 * biases[2] > 8 * biases[3] > 0


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_few_steps_are_too_large_by_gauss_and_too_small_by_radau(steps):
    a = matrices()
    truth = torch.linalg.slogdet(a).logabsdet
    upper, lower = (
        SLQ(steps=steps, rule=rule)(Stiff(a, True), basis(a), torch.log)
        for rule in ("gauss", "radau")
    )
    assert (lower < truth).all()
    assert (truth < upper).all()


@pytest.mark.parametrize("floor", [None, 0.0, -1.0, torch.tensor(0.0)])
def test_radau_needs_a_positive_lower_bound(floor):
    a = Matrix(matrices(), True)
    a.floor = floor
    with pytest.raises(Incompatible, match="radau rule needs a positive lower bound"):
        SLQ(rule="radau")(a, basis(a.a), torch.log)


@pytest.mark.parametrize("trace", [SLQ(steps=43), SLQ(steps=43, rule="radau"), CG(cap=80)])
def test_single_precision_with_large_eigenvalues(trace):
    a = with_spectrum(torch.logspace(0, 4, 43, dtype=F64), n=5)
    single = Matrix(a.float().requires_grad_(), True)
    single.floor = 0.9
    p = basis(a).float()
    value = trace(single, p, torch.log)
    assert (value.to(F64) - torch.linalg.slogdet(single.a.detach().to(F64))[1]).abs().max() < 1e-2
    (gradient,) = torch.autograd.grad(value.sum(), single.a)
    assert gap(gradient.to(F64), torch.linalg.inv(a)) < 5e-2


def test_one_that_is_exactly_solved_beside_a_hard_one_in_single_precision():
    a = torch.stack([2 * torch.eye(8), matrices(1)[0].float()]).requires_grad_()
    value = CG(atol=0.0)(Matrix(a, True), torch.ones(1, 2, 8), torch.log)
    (gradient,) = torch.autograd.grad(value.sum(), a)
    assert value[0].item() == pytest.approx(8 * math.log(2), rel=1e-6)
    assert gradient.isfinite().all()
    assert gap(gradient[0], torch.full((8, 8), 0.5)) < 1e-6
