"""The mixture oracle against torch, quadrature and the continuity equation."""

from __future__ import annotations

import math

import pytest
import torch

from flowzoo.data.oracles import MixtureOracle
from flowzoo.data.synthetic import Mixture
from flowzoo.data.toys import EightGaussians


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def grid(half=6.0, n=150):
    """Midpoints of n x n cells on [-half, half]^2 and the area of a cell."""
    line = (torch.arange(n, dtype=torch.float64) + 0.5) * (2 * half / n) - half
    return torch.cartesian_prod(line, line), (2 * half / n) ** 2


def mixture():
    means = torch.tensor([[2.0, 1.0], [-1.0, 0.5], [0.0, -2.0]], dtype=torch.float64)
    return MixtureOracle(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), means, 0.6)


def test_mixture_density_score_and_entropy():
    oracle = mixture()
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(oracle.weights),
        torch.distributions.Independent(torch.distributions.Normal(oracle.means, 0.6), 1),
    )
    x = oracle.sample(40, generator()).requires_grad_()
    log_p = law.log_prob(x)
    torch.testing.assert_close(oracle.log_prob(x), log_p)
    torch.testing.assert_close(oracle.score(x), torch.autograd.grad(log_p.sum(), x)[0])
    places, area = grid()
    p = oracle.log_prob(places).exp()
    exact = -float(torch.special.xlogy(p, p).sum() * area)
    entropy, error = oracle.estimate_entropy()
    assert abs(entropy - exact) < 4 * error
    assert error < 2e-3


def test_mixture_dataset_in_high_dimension_has_an_entropy_without_error():
    data = Mixture(dim=300, components=5, train=20, val=20, test=400).load()
    assert data.log_prob is not None
    nll = -data.log_prob(data.test)
    assert data.entropy_error < 1e-6
    assert abs(float(nll.mean()) - data.entropy) < 4 * float(nll.std()) / 20
    flat = Mixture(dim=2, components=4, radius=0.0, scale=2.0, train=20, val=20, test=20).load()
    assert flat.entropy == pytest.approx(1 + math.log(2 * math.pi * 4), abs=1e-12)


def test_mixture_velocity_solves_the_continuity_equation():
    oracle = mixture()
    x = oracle.sample(6, generator()).requires_grad_()
    t = torch.linspace(0.0, 1.0, 6, dtype=torch.float64).requires_grad_()
    velocity = oracle.matching_velocity(t, x)
    log_p = oracle.matching_log_prob(t, x)
    log_p_t, score = torch.autograd.grad(log_p.sum(), (t, x), retain_graph=True)
    torch.testing.assert_close(oracle.matching_score(t, x), score)
    divergence = oracle.matching_divergence(t, x)
    torch.testing.assert_close(log_p_t, -divergence - (score * velocity).sum(1))
    parts = [torch.autograd.grad(velocity[:, i].sum(), x, retain_graph=True)[0] for i in (0, 1)]
    torch.testing.assert_close(divergence, parts[0][:, 0] + parts[1][:, 1])


@pytest.mark.parametrize("dataset", [Mixture(dim=3, components=4, scale=0.8), EightGaussians()])
def test_modes_are_the_components_of_the_density(dataset):
    modes, x = dataset.oracle.modes, dataset.sample(30, generator())
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(modes.weights),
        torch.distributions.Independent(torch.distributions.Normal(modes.means, modes.scale), 1),
    )
    torch.testing.assert_close(law.log_prob(x), dataset.oracle.log_prob(x))
    with pytest.raises(AttributeError):
        modes.scale = 1.0
