"""The Gaussian oracle against torch, numpy, derivatives and the equations that define its parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import cholesky, solve_triangular, sqrtm

from flowzoo.data.synthetic import Gaussian


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(dim=3, condition=30.0, mean=0.7):
    return Gaussian(dim=dim, condition=condition, mean=mean, seed=3).oracle


def test_gaussian_density_agrees_with_torch():
    oracle = gaussian()
    law = torch.distributions.MultivariateNormal(oracle.mean, oracle.covariance)
    x = law.sample((50,)) * 1.5
    torch.testing.assert_close(oracle.log_prob(x), law.log_prob(x))
    assert oracle.entropy == pytest.approx(law.entropy().item())
    x.requires_grad_()
    (score,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    torch.testing.assert_close(oracle.score(x.detach()), score)
    eigenvalues = torch.linalg.eigvalsh(oracle.covariance)
    assert float(eigenvalues[-1] / eigenvalues[0]) == pytest.approx(30)
    assert (oracle.covariance - torch.diag(oracle.covariance.diagonal())).abs().max() > 0.1
    assert gaussian().fit(oracle.sample(200_000, generator())).entropy == pytest.approx(
        oracle.entropy, abs=0.02
    )


def test_gaussian_map_pushes_to_the_standard_normal():
    oracle = gaussian()
    x = oracle.sample(5, generator())
    jacobian = torch.autograd.functional.jacobian(lambda y: oracle.transport(y).sum(0), x)[:, 0]
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(jacobian @ oracle.covariance @ jacobian.mT, eye)
    torch.testing.assert_close(jacobian, jacobian.mT)  # the gradient of a convex function: optimal
    assert torch.linalg.eigvalsh(jacobian)[0] > 0
    zero = torch.zeros(1, 3, dtype=torch.float64)
    torch.testing.assert_close(oracle.transport(oracle.mean[None]), zero, rtol=0, atol=1e-14)
    torch.testing.assert_close(oracle.inverse_transport(oracle.transport(x)), x)
    standard = torch.distributions.Normal(0.0, 1.0)
    log_p = standard.log_prob(oracle.transport(x)).sum(1) + oracle.ladj
    torch.testing.assert_close(oracle.log_prob(x), log_p)


def test_gaussian_velocity_moves_points_straight_along_the_map():
    oracle = gaussian()
    x = oracle.sample(7, generator())
    z = oracle.transport(x)
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    place = x + t[:, None] * (z - x)
    torch.testing.assert_close(oracle.velocity(t, place), z - x)
    torch.testing.assert_close(oracle.velocity(0.0, x), z - x)
    torch.testing.assert_close(oracle.velocity(torch.tensor(1.0), z), z - x)


def test_gaussian_potential_gives_the_velocity_and_solves_hjb():
    oracle = gaussian()
    x = (oracle.sample(6, generator()) * 1.3).requires_grad_()
    t = torch.linspace(0.05, 0.95, 6, dtype=torch.float64).requires_grad_()
    phi = oracle.potential(t, x)
    phi_t, gradient = torch.autograd.grad(phi.sum(), (t, x), create_graph=True)
    torch.testing.assert_close(-gradient, oracle.velocity(t, x))
    torch.testing.assert_close(phi_t, 0.5 * gradient.square().sum(1))
    rows = [torch.autograd.grad(gradient[:, i].sum(), x, retain_graph=True)[0] for i in range(3)]
    divergence = -sum(row[:, i] for i, row in enumerate(rows))
    torch.testing.assert_close(oracle.divergence(t, x), divergence)


def test_gaussian_cost_is_the_mean_squared_way():
    oracle = gaussian()
    x = oracle.sample(200_000, generator())
    cost = 0.5 * (x - oracle.transport(x)).square().sum(1)
    assert abs(float(cost.mean()) - oracle.transport_cost) < 4 * float(cost.std()) / 200_000**0.5
    sigma = oracle.covariance
    root = torch.linalg.eigh(sigma)
    bures = sigma.trace() + 3 - 2 * root.eigenvalues.sqrt().sum()
    assert oracle.w2_squared == pytest.approx(float(bures + oracle.mean.square().sum()))
    data = Gaussian(dim=3, condition=30.0, mean=0.7, seed=3, train=20, val=20, test=20).load()
    assert data.transport_cost == pytest.approx(oracle.transport_cost)


def test_gaussian_works_in_a_thousand_dimensions():
    data = Gaussian(dim=1000, condition=100.0, train=20, val=20, test=500).load()
    assert data.log_prob is not None
    nll = -data.log_prob(data.test)
    assert abs(float(nll.mean()) - data.entropy) < 4 * float(nll.std()) / 500**0.5
    assert data.entropy == pytest.approx(500 * (1 + math.log(2 * math.pi)), abs=1e-9)


# a condition number of a million


def stiff(dim=6):
    return Gaussian(dim=dim, condition=1e6, mean=0.7, seed=1).oracle


def test_gaussian_map_of_a_large_condition_number_agrees_with_numpy():
    oracle = stiff()
    x = oracle.sample(50, generator()).numpy()
    sigma, mean = oracle.covariance.numpy(), oracle.mean.numpy()
    root = np.asarray(sqrtm(sigma)).real
    z = np.linalg.solve(root, (x - mean).T).T
    np.testing.assert_allclose(oracle.transport(torch.from_numpy(x)), z, rtol=0, atol=1e-9)
    back = oracle.inverse_transport(torch.from_numpy(z))
    np.testing.assert_allclose(back, x, rtol=0, atol=1e-9 * np.abs(x).max())
    assert oracle.transport_cost == pytest.approx(
        0.5 * (sigma.trace() + 6 - 2 * root.trace() + mean @ mean), rel=1e-10
    )
    assert oracle.ladj == pytest.approx(-0.5 * np.linalg.slogdet(sigma)[1], abs=1e-9)


def test_gaussian_density_in_a_thousand_dimensions_agrees_with_cholesky():
    oracle = stiff(1000)
    x = oracle.sample(20, generator())
    factor = cholesky(oracle.covariance.numpy(), lower=True)
    w = solve_triangular(factor, (x - oracle.mean).numpy().T, lower=True)
    log_det = 2 * np.log(factor.diagonal()).sum()
    expected = -0.5 * ((w**2).sum(0) + 1000 * math.log(2 * math.pi) + log_det)
    np.testing.assert_allclose(oracle.log_prob(x), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(oracle.inverse_transport(oracle.transport(x)), x)


@pytest.mark.parametrize("dim", [6, 1000])
def test_gaussian_potential_of_a_large_condition_number_solves_hjb(dim):
    oracle = stiff(dim)
    t = torch.tensor([0.0, 1e-3, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    place = oracle.interpolate(t, 1.3 * oracle.sample(6, generator())).requires_grad_()
    phi = oracle.potential(t.requires_grad_(), place)
    phi_t, gradient = torch.autograd.grad(phi.sum(), (t, place))
    torch.testing.assert_close(-gradient, oracle.velocity(t, place), rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(phi_t, 0.5 * gradient.square().sum(1), rtol=1e-11, atol=1e-9)


def test_gaussian_interpolation_solves_the_ode_of_its_velocity():
    oracle = stiff(4)
    x = oracle.sample(3, generator())

    def velocity(t, flat):
        return oracle.velocity(t, torch.from_numpy(flat).reshape(3, 4)).numpy().ravel()

    times = [0.0, 0.2, 0.7, 1.0]
    way = solve_ivp(velocity, (0, 1), x.numpy().ravel(), "DOP853", times, rtol=1e-10, atol=1e-10)
    for t, place in zip(times, way.y.T, strict=True):
        expected = oracle.interpolate(t, x)
        np.testing.assert_allclose(place.reshape(3, 4), expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(oracle.interpolate(1.0, x), oracle.transport(x))


def test_gaussian_oracle_follows_dtype_and_shape_of_times():
    oracle = stiff(3)
    x = oracle.sample(5, generator())
    whole = torch.full((5,), 0.3, dtype=torch.float64)
    for name in ("interpolate", "velocity", "potential", "matching_velocity"):
        ask = getattr(oracle, name)
        exact = ask(0.3, x)
        assert torch.equal(ask(whole, x), exact)
        assert torch.equal(ask(whole[0], x), exact)
        single = ask(torch.tensor(0.3), x.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), exact, rtol=2e-3, atol=2e-2)
        assert ask(0.3, x[:0]).shape[0] == 0
