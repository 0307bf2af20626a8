"""The Gaussians of CP-Flow's section 5.2 against their definition and arbitrary precision."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from flowzoo.data.wishart import WishartGaussian
from flowzoo.errors import UserError


def law(dim, seed=0):
    return WishartGaussian(dim, train=10, val=2, test=2, seed=seed).oracle


def test_the_plane_has_the_published_law_whatever_the_seed():
    oracle = law(2)
    mean = torch.tensor([1.5, 1.0], dtype=torch.float64)
    covariance = torch.tensor([[0.9, -0.75], [-0.75, 0.9]], dtype=torch.float64)
    x = oracle.sample(20, torch.Generator().manual_seed(0))
    published = torch.distributions.MultivariateNormal(mean, covariance)
    torch.testing.assert_close(oracle.log_prob(x), published.log_prob(x))
    assert oracle.entropy == pytest.approx(published.entropy().item())
    # 1.5^2 + 1 and the eigenvalues 0.9 +- 0.75
    expected = 3.25 + (1.65**0.5 - 1) ** 2 + (0.15**0.5 - 1) ** 2
    assert 2 * oracle.transport_cost == pytest.approx(expected, rel=1e-14)
    assert torch.equal(law(2, seed=5).covariance, oracle.covariance)


def test_mean_and_covariance_are_standard_normal_and_wishart():
    """E C = (d + 1) I and Var C_ij = (d + 1) (1 + [i = j]), within 5 standard errors."""
    d, n = 3, 800
    laws = [law(d, seed) for seed in range(n)]
    means = torch.stack([each.mean for each in laws])
    covariances = torch.stack([each.covariance for each in laws])
    eye = torch.eye(d, dtype=torch.float64)
    assert float(means.mean(0).abs().max()) < 5 / n**0.5
    assert float((means.var(0) - 1).abs().max()) < 5 * (2 / n) ** 0.5
    off = (covariances.mean(0) - (d + 1) * eye).abs()
    assert bool((off < 5 * ((d + 1) * (1 + eye) / n).sqrt()).all())
    spread = covariances.var(0) / ((d + 1) * (1 + eye))
    assert float((spread - 1).abs().max()) < 0.5


def test_cost_is_that_of_the_closed_form_with_matrix_roots():
    oracle = law(8)
    sigma = oracle.covariance.numpy()
    closed = np.trace(sigma + np.eye(8) - 2 * sqrtm(sigma).real)
    expected = float(oracle.mean.square().sum()) + closed
    assert oracle.w2_squared == pytest.approx(expected, rel=1e-10)


def test_small_eigenvalues_are_exact_where_the_covariance_loses_them():
    """d = 32, condition number 258,000, against 40 digits."""
    from flowzoo.data.dataset import split_generator
    from flowzoo.data.synthetic import SHAPE

    oracle, generator = law(32), split_generator(0, SHAPE)
    assert float(oracle.variances.max() / oracle.variances.min()) > 1e5
    assert torch.equal(oracle.mean, torch.randn(32, generator=generator, dtype=torch.float64))
    rows = torch.randn(33, 32, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(oracle.covariance, rows.mT @ rows)
    with mpmath.workdps(40):
        g = mpmath.matrix(rows.tolist())
        exact = mpmath.eigsy(g.T * g, eigvals_only=True)
        smallest, log_det = min(exact), sum(mpmath.log(value) for value in exact)
    assert oracle.variances.min().item() == pytest.approx(float(smallest), rel=1e-12)
    assert -2 * oracle.ladj == pytest.approx(float(log_det), rel=1e-13)
    x = oracle.sample(2000, torch.Generator().manual_seed(1))
    z = oracle.transport(x)
    torch.testing.assert_close(oracle.inverse_transport(z), x, rtol=0, atol=1e-11)
    off = torch.cov(z.mT) - torch.eye(32, dtype=torch.float64)
    assert float(off.abs().max()) < 6 * (2 / 2000) ** 0.5


def test_rows_come_with_all_that_is_known_and_keep_their_coordinates():
    dataset = WishartGaussian(5, train=4000, val=20, test=4000, seed=2)
    data = dataset.load()
    assert not dataset.standardise
    assert (len(data.train), len(data.val), data.dim) == (4000, 20, 5)
    assert data.oracle is dataset.oracle
    assert data.transport_cost == dataset.oracle.transport_cost
    nll = -data.log_prob(data.test)
    assert abs(float(nll.mean()) - data.entropy) < 5 * float(nll.std()) / 4000**0.5
    assert "not standardised" in data.notes
    other = WishartGaussian(5, train=4000, val=20, test=4000, seed=3).load()
    assert abs(other.entropy - data.entropy) > 1e-3
    with pytest.raises(UserError, match="dim of wishart-gaussian is 0"):
        WishartGaussian(0)
