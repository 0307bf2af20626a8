"""Estimates of a residual block's log-determinant: values, gradients, what is random of them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from oracles import F64
from residual_flows import block

from flowzoo.traces import draw
from flowzoo_residual.logdet import neumann, roulette, series

SIGNS = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=F64)


def every_sign(n):
    """Return all probes of signs (8, n, 3): the mean over them is the expectation."""
    return SIGNS[:, None].expand(8, n, 3)


def gradient(value, flow):
    """Return the gradient of a sum in all weights but the last bias, which moves no volume."""
    weights = list(flow.parameters())[:-1]
    slopes = torch.autograd.grad(value.sum(), weights, retain_graph=True)
    return torch.cat([g.flatten() for g in slopes])


def truncated(j, terms):
    """Return the first terms of the power series of log det(I + J) as (n,)."""
    powers = [torch.linalg.matrix_power(j, k) for k in range(1, terms + 1)]
    return sum(
        (-1) ** (k + 1) * p.diagonal(dim1=1, dim2=2).sum(-1) / k for k, p in enumerate(powers, 1)
    )


@pytest.fixture
def seen(places):
    """A block, the Jacobian that it shows at some places, and the exact log-determinant."""
    flow = block(3, (8, 8), size=2.0)
    jacobian = flow.network().at(places(4, 3))[1]
    assert torch.linalg.matrix_norm(jacobian.dense(), 2).max() > 0.1
    return flow, jacobian, jacobian.log_abs_det()


# --- in the mean ---------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [1, 2, 5])
def test_series_is_in_the_mean_the_truncated_series(seen, terms):
    flow, jacobian, exact = seen
    found, expected = series(jacobian, every_sign(4), terms), truncated(jacobian.dense(), terms)
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(gradient(found, flow), gradient(expected, flow), atol=1e-12)
    assert (found - exact).abs().max() > 1e-6, "it has a bias"


@pytest.mark.parametrize("estimate", ["series", "neumann"])
def test_with_all_terms_value_and_gradient_are_exact(seen, estimate):
    flow, jacobian, exact = seen
    probes = every_sign(4)
    found = series(jacobian, probes, 60) if estimate == "series" else None
    found = neumann(jacobian, probes, [1.0] * 60) if found is None else found
    assert torch.allclose(found, exact, atol=1e-12)
    assert torch.allclose(gradient(found, flow), gradient(exact, flow), atol=1e-12)


def test_the_value_of_neumann_is_not_that_of_its_surrogate(seen):
    """y^T J p with y = (I + J^T)^-1 p, which some codes print, is tr((I + J)^-1 J) in the mean."""
    _, jacobian, exact = seen
    j = jacobian.dense()
    wrong = torch.linalg.solve(torch.eye(3, dtype=F64) + j, j).diagonal(dim1=1, dim2=2).sum(-1)
    assert ((wrong - exact).abs() > 1e-3).all()
    assert torch.allclose(neumann(jacobian, every_sign(4), [1.0] * 60), exact, atol=1e-12)


@pytest.mark.parametrize(("exact", "rate"), [(2, 2.0), (1, 0.5), (3, 4.0)])
def test_roulette_has_no_bias(seeded, exact, rate):
    """A term that is taken with probability q weighs 1 / q."""
    generator, draws, terms = seeded(), 5000, exact + 3
    total = torch.zeros(terms, dtype=F64)
    for _ in range(draws):
        weights = roulette(exact, rate, generator)[:terms]
        total[: len(weights)] += torch.tensor(weights, dtype=F64)
    poisson = [math.exp(-rate) * rate**k / math.factorial(k) for k in range(3)]
    taken = torch.tensor([1.0] * exact + [1 - sum(poisson[: k + 1]) for k in range(3)], dtype=F64)
    error = ((1 / taken - 1) / draws).sqrt()
    assert (abs(total / draws - 1) <= 4 * error + 1e-12).all()
    assert (total[:exact] == draws).all()


def test_neumann_in_training_has_no_bias(places, seeded):
    """Value and gradient, over probes and numbers of terms, against the exact ones."""
    flow = block(3, (8, 8), size=2.0, log_det="neumann", terms=1, rate=1.0)
    x = places(1, 3).expand(64, 3)
    exact = flow.encode(x[:1]).ladj
    expected = torch.cat([exact.detach(), gradient(exact, flow)])
    flow.train()
    found = []
    for seed in range(200):
        ladj = flow.encode(x, generator=seeded(seed)).ladj.mean(0, keepdim=True)
        found.append(torch.cat([ladj.detach(), gradient(ladj, flow)]))
    found = torch.stack(found)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - expected).abs() <= 5 * error + 1e-9).all()
    assert error.norm() < 0.07 * expected.norm()


# --- in a block ----------------------------------------------------------------------------------


@pytest.mark.parametrize("log_det", ["series", "neumann"])
def test_estimates_are_of_training_alone(places, seeded, log_det):
    flow, x = block(3, (8, 8), log_det=log_det, lipschitz=None), places(4, 3)
    exact = flow.encode(x, generator=seeded()).ladj
    assert torch.equal(exact, flow.network().at(x)[1].log_abs_det())
    one, same, other = (flow.train().encode(x, generator=seeded(k)).ladj for k in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert (one - exact).abs().max() < 1


@pytest.mark.parametrize("log_det", ["series", "neumann"])
def test_a_block_estimates_with_its_own_options(places, seeded, log_det):
    options = {"terms": 3, "rate": 6.0, "samples": 2, "noise": "gaussian"}
    flow, x = block(3, log_det=log_det, lipschitz=None, **options).train(), places(4, 3)
    found, noise = flow.encode(x, generator=seeded()).ladj, seeded()
    probes, jacobian = draw("gaussian", (2, 4, 3), x, noise), flow.network().at(x)[1]
    expected = series(jacobian, probes, 3) if log_det == "series" else None
    expected = neumann(jacobian, probes, roulette(3, 6.0, noise)) if expected is None else expected
    assert torch.equal(found, expected)
    assert not torch.allclose(found, series(jacobian, probes, 2), atol=1e-9)


@pytest.mark.parametrize("log_det", ["series", "neumann"])
def test_more_probes_are_less_noisy(places, seeded, log_det):
    x, spread = places(1, 3).expand(2000, 3), []
    for samples in (1, 16):
        flow = block(3, (8, 8), size=2.0, log_det=log_det, samples=samples).train()
        spread.append(flow.encode(x, generator=seeded()).ladj.std().item())
    assert 3 < spread[0] / spread[1] < 5.3


def test_gaussian_probes_are_noisier_than_signs(places, seeded):
    x, spread = places(1, 3).expand(4000, 3), []
    for noise in ("rademacher", "gaussian"):
        flow = block(3, (8, 8), size=2.0, log_det="series", terms=1, noise=noise).train()
        spread.append(flow.encode(x, generator=seeded()).ladj)
    assert spread[1].std() > 1.05 * spread[0].std()
    assert abs(spread[1].mean() - spread[0].mean()) < 5 * spread[1].std() / 4000**0.5


def test_without_gradients_neumann_has_the_same_value(seen):
    _, jacobian, _ = seen
    probes = every_sign(4)[:1]
    value = neumann(jacobian, probes, [1.0, 1.0, 2.0])
    assert value.requires_grad
    with torch.no_grad():
        assert torch.equal(neumann(jacobian, probes, [1.0, 1.0, 2.0]), value)
