"""Krylov log-determinants of CP-Flow's Hessians: published values, exact gradients, bias, noise."""

from __future__ import annotations

import math

import pytest
import torch
from cp_flow_oracles import GOLDEN, flow, golden
from oracles import F64, gap

from flowzoo.krylov import lanczos, quadrature, solve
from flowzoo.logdet import CG, SLQ, Surrogate, brackets
from flowzoo.traces import Exact
from flowzoo_cp_flow.official import our_names

pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason="the published values are not here")
NAMES = ["icnn_d2", "icnn2_gauss_symm_d8", "icnn3_gauss_symm_d43", "icnn3_cauchy_d4"]
EXACT = {
    "slq": lambda d: SLQ(steps=d),
    "cg": lambda d: CG(atol=1e-13, cap=4 * d),
    "preconditioned": lambda d: CG(atol=1e-13, cap=4 * d, precondition=4),
    "surrogate": lambda d: Surrogate(Exact(), CG(atol=1e-13, cap=4 * d)),
}


def basis(x):
    n, d = x.shape
    return (math.sqrt(d) * torch.eye(d, dtype=F64))[:, None].expand(d, n, d)


def gradients(flow, value):
    """Return the gradient in each weight, by name; zeros where there is none."""
    named = {n: w for n, w in flow.named_parameters() if w.requires_grad}
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {n: torch.zeros_like(w) if g is None else g
            for (n, w), g in zip(named.items(), found, strict=True)}  # fmt: skip


def distance(found, right):
    """Return the distance of two gradients, relative to the second."""
    off = sum((found[n] - right[n]).square().sum() for n in right)
    return float((off / sum(g.square().sum() for g in right.values())).sqrt())


def stiff(name):
    """Return a flow with a floor of 0.1 that is scaled along random directions, and its points."""
    made, x = flow(name), golden(name)["x"]
    d = x.shape[1]
    turn = torch.linalg.qr(torch.randn(d, d, dtype=F64, generator=torch.Generator().manual_seed(0)))
    scaling = (turn.Q * torch.logspace(-0.5, 1, d, dtype=F64)) @ turn.Q.T
    with torch.no_grad():
        made.raw_quadratic.fill_(math.log(math.expm1(0.1)))
        for w in made.parameters():
            if w.dim() == 2 and w.shape[1] == d:
                w.copy_(w @ scaling)
    return made, x @ torch.linalg.inv(scaling)


# --- published values ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_lanczos_gives_the_published_matrices_and_values(name):
    """Their value adds 1e-8 to every eigenvalue."""
    given = golden(name)
    a, d = flow(name).at(given["x"]).hessian, given["x"].shape[1]
    for m in [int(key[5:]) for key in given if key.startswith("slq_m")]:
        t, _ = lanczos(a, given["probe_rademacher"][None], m)
        links = t.coupling[0, ..., :-1]
        found = torch.diag_embed(t.diagonal[0]) + torch.diag_embed(links, 1)
        assert gap(found + torch.diag_embed(links, -1), given[f"lanczos_T_m{m}"]) < 1e-9
        value = d * quadrature(lambda x: torch.log(x + 1e-8), *t.gauss())[0]
        assert gap(value, given[f"slq_m{m}"]) < 1e-10
        # Its derivative d tr A^-1 1e-8 is what ours differs by.
        ours = SLQ(steps=m)(a, given["probe_rademacher"][None], torch.log)
        assert gap(ours, given[f"slq_m{m}"]) < 1e-7


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("atol", [0.1, 0.001])
def test_solutions_are_the_published_ones_within_the_tolerance(name, atol):
    """They start from the probe and go on until the last sample of the batch is done."""
    given = golden(name)
    a, p = flow(name).at(given["x"]).hessian, given["probe_rademacher"][None]
    exact = torch.linalg.solve(given["hessian"], p[0][..., None])[..., 0]
    found = solve(a, p, atol)
    allowed = atol * math.sqrt(p.shape[-1]) / torch.linalg.eigvalsh(given["hessian"])[:, 0]
    assert found.converged.all()
    assert ((found.x[0] - exact).norm(dim=-1) <= allowed).all()
    theirs = given[f"cg_solution_atol{atol}"]
    assert ((found.x[0] - theirs).norm(dim=-1) <= 2 * allowed).all()
    tight = solve(a, p, 1e-12, cap=4 * p.shape[-1])
    assert gap(tight.x[0], exact) < 1e-11


@pytest.mark.parametrize("name", NAMES)
def test_the_surrogates_gradient_is_the_published_one(name):
    given, made = golden(name), flow(name, trace=CG(1, 1e-13, cap=200))
    start = "surrogate_grad/"
    official = {k.removeprefix(start): v for k, v in given.items() if k.startswith(start)}
    names = our_names(list(official))
    a = made.at(given["x"]).hessian
    value = made.trace(a, given["probe_rademacher"][None], torch.log).mean()
    found = gradients(made, value)
    right = {names[k]: v.reshape(found[names[k]].shape) for k, v in official.items()}
    # They stop at 1e-3: the solution, and so the gradient, is off by about as much.
    assert distance(found, right) < 3e-3
    assert distance(right, {n: found[n] for n in right}) < 3e-3


# --- exact with a basis of probes ----------------------------------------------------------------


@pytest.mark.parametrize("trace", EXACT)
@pytest.mark.parametrize("name", ["icnn2_gauss_symm_d8", "icnn3_cauchy_d4"])
def test_with_a_basis_of_probes_the_gradient_is_that_of_slogdet(name, trace):
    """In the weights, and in the points, which is what flows stacked on one another need."""
    made, x = flow(name), golden(name)["x"].clone().requires_grad_()
    estimate = EXACT[trace](x.shape[1])
    probes, weights = basis(x), torch.linspace(0.5, 2, len(x), dtype=F64)
    slopes = []
    for how in (lambda a: torch.linalg.slogdet(a.dense())[1],
                lambda a: estimate(a, probes, torch.log)):  # fmt: skip
        value = how(made.at(x).hessian)
        total = (weights * value).sum()
        (in_x,) = torch.autograd.grad(total, x, retain_graph=True)
        slopes.append((value, in_x, gradients(made, total)))
    (right, right_x, right_w), (found, found_x, found_w) = slopes
    assert gap(found, right) < 1e-10
    assert gap(found_x, right_x) < 1e-12 * (1 + right_x.abs().max())
    assert distance(found_w, right_w) < 1e-12


def test_exact_has_the_published_value_and_gradient():
    given, made = golden("icnn3_gauss_symm_d43"), flow("icnn3_gauss_symm_d43")
    value = made.trace(made.at(given["x"]).hessian, None, torch.log)
    assert gap(value, given["logdet"]) < 1e-12
    start = "logdet_grad/"
    official = {k.removeprefix(start): v for k, v in given.items() if k.startswith(start)}
    names, found = our_names(list(official)), gradients(made, value.mean())
    right = {names[k]: v.reshape(found[names[k]].shape) for k, v in official.items()}
    assert distance(found, right) < 1e-12


# --- bias, noise, cost ---------------------------------------------------------------------------


@pytest.mark.parametrize("harder", [False, True])
@pytest.mark.parametrize("name", ["icnn2_gauss_symm_d8", "icnn3_gauss_symm_d43"])
def test_the_gradients_bias_falls_with_the_tolerance(name, harder):
    """Against exact solutions for the same probes, relative to the exact gradient."""
    made, x = stiff(name) if harder else (flow(name), golden(name)["x"])
    x, d = x[:6], x.shape[1]
    probes = CG(64).probes(x, torch.Generator().manual_seed(0))

    def slope(trace, p=probes):
        return gradients(made, trace(made.at(x).hessian, p, torch.log).mean())

    whole, right = slope(Exact(), None), slope(SLQ(steps=d))
    size = torch.cat([g.flatten() for g in whole.values()]).norm()
    biases = []
    for atol in (3, 1, 0.1, 1e-3):
        found = slope(CG(atol=atol, cap=4 * d))
        biases.append(float(torch.cat([(found[n] - right[n]).flatten() for n in right]).norm()))
    assert biases[0] >= biases[1] > biases[2] > biases[3]
    for bias, most in zip(biases, (2.0, 0.5, 0.03, 1e-3), strict=True):
        assert bias < most * size, (biases, size)


def test_truncation_is_bracketed_with_its_sign():
    made, x = stiff("icnn3_gauss_symm_d43")
    with torch.no_grad():
        a = made.at(x).hessian
        p = SLQ(4).probes(x, torch.Generator().manual_seed(0))
        values, vectors = torch.linalg.eigh(a.dense())
        truth = ((vectors.mT @ p[..., None])[..., 0].square() * values.log()).sum(-1)
        for steps in (3, 5, 10):
            lower, upper = brackets(a, p, steps)
            assert (lower < truth).all()
            assert (truth < upper).all()


def test_the_preconditioner_halves_the_noise_on_a_stiff_hessian():
    made, x = stiff("icnn3_gauss_symm_d43")
    x = x[:8]
    truth = torch.linalg.slogdet(made.at(x).hessian.dense())[1]
    again = x.repeat(100, 1)
    spread = []
    with torch.no_grad():
        a = made.at(again).hessian
        for m in (0, 16):
            trace = SLQ(1, 43, precondition=m)
            p = trace.probes(again, torch.Generator().manual_seed(0))
            off = (trace(a, p, torch.log) - truth.repeat(100)).view(100, 8)
            spread.append(off.std(0).mean())
            assert (off.mean(0).abs() < 5 * off.std(0) / 10).all()
    assert spread[1] < 0.6 * spread[0], spread


def test_training_by_a_surrogate_shows_the_likelihood():
    made, x = flow("icnn2_gauss_symm_d8"), golden("icnn2_gauss_symm_d8")["x"]
    right = made.log_prob(x)
    made.trace = Surrogate()
    found = made.log_prob(x, generator=torch.Generator().manual_seed(0))
    assert gap(found, right) < 1e-13
    assert all(g.isfinite().all() for g in gradients(made, found.mean()).values())
