"""The mixture with contexts, against torch, quadrature, and a flow that is exact."""

from __future__ import annotations

import math

import pytest
import torch
from torch.special import ndtr, ndtri

from flowzoo.data.conditional import WeightedMixture
from flowzoo.data.dataset import standardised
from flowzoo.flow import Encoded, Flow, log_normal
from flowzoo.judge import evaluate
from flowzoo.judge.displacement import Displacement
from flowzoo.judge.likelihood import KL, NLL
from flowzoo.judge.truth import DensityError

SPREAD = math.exp(-0.5)
PLACES = torch.tensor([2.0, -2.0], dtype=torch.float64)


class Quantiles(Flow):
    """z = Phi^-1(F(x | c)), the exact flow, as long as neither tail is lost."""

    def __init__(self):
        super().__init__()
        self.dim = self.context_dim = 1
        self.data = WeightedMixture()

    def encode(self, x, running=(), context=None, generator=None):
        below = context * ndtr((x - 2) / SPREAD) + (1 - context) * ndtr((x + 2) / SPREAD)
        z = ndtri(below)
        return Encoded(z, self.data.log_prob(x, context) - log_normal(z), x.new_zeros(len(x), 0))

    def decode(self, z, context=None):
        low, high = torch.full_like(z, -20), torch.full_like(z, 20)
        for _ in range(60):
            middle = (low + high) / 2
            above = self.encode(middle, context=context).z > z
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2


def mixture(weight):
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([weight, 1 - weight], dtype=torch.float64)),
        torch.distributions.Normal(PLACES, SPREAD),
    )


@pytest.mark.parametrize("weight", [0.0, 1e-9, 0.3, 0.5, 1.0])
def test_density_given_the_context_agrees_with_torch(weight):
    x = torch.linspace(-6, 6, 41, dtype=torch.float64)
    context = torch.full((41, 1), weight, dtype=torch.float64)
    found = WeightedMixture().log_prob(x[:, None], context)
    sides = [torch.distributions.Normal(place, SPREAD).log_prob(x) for place in PLACES]
    share = torch.tensor([weight, 1 - weight], dtype=torch.float64).log()
    expected = torch.logaddexp(share[0] + sides[0], share[1] + sides[1])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.shape == (41,)


def test_entropy_is_the_mean_over_contexts():
    """Gauss-Legendre in the context, trapezoids in x."""
    nodes, weights = torch.from_numpy(_legendre(120))
    x = torch.linspace(-8, 8, 600, dtype=torch.float64)
    total = 0.0
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        log_p = mixture(node).log_prob(x)
        total -= weight * float((log_p.exp() * log_p).sum()) * float(x[1] - x[0])
    assert WeightedMixture(10, 2, 2).load().entropy == pytest.approx(total, abs=2e-5)


def _legendre(n):
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(n)
    return np.stack([(nodes + 1) / 2, weights / 2])


def test_rows_are_drawn_by_their_contexts():
    x, context = WeightedMixture().sample(200_000, torch.Generator().manual_seed(0))
    assert x.shape == context.shape == (200_000, 1)
    order = context[:, 0].sort()[0]
    assert float((order - torch.linspace(0, 1, 200_000, dtype=torch.float64)).abs().max()) < 5e-3
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = ((context >= low) & (context < low + 0.25))[:, 0]
        share = float((x[inside] > 0).double().mean())
        assert share == pytest.approx(low + 0.125, abs=0.01)
    assert float((x - 2 * x.sign()).std()) == pytest.approx(SPREAD, abs=0.01)


def test_every_split_has_its_own_contexts():
    data = WeightedMixture(4000, 1000, 3000, seed=1).load()
    for rows, context in (
        (data.train, data.train_context),
        (data.val, data.val_context),
        (data.test, data.test_context),
    ):
        nll = -WeightedMixture().log_prob(rows, context)
        error = float(nll.std()) / len(nll) ** 0.5
        assert abs(float(nll.mean()) - data.entropy) < 5 * error
        mixed = -WeightedMixture().log_prob(rows, context.flip(0))
        assert float(mixed.mean()) > data.entropy + 0.2  # somebody else's context
    assert not torch.equal(data.train_context[:1000], data.val_context)


def test_the_judge_gives_the_contexts_to_the_flow_and_to_the_true_density():
    data = WeightedMixture(10, 2, 2000).load()
    measures = evaluate(Quantiles(), data, metrics=[NLL(), KL(), DensityError(), Displacement()])
    assert abs(measures["nll"].value - data.entropy) < measures["nll"].error
    assert measures["nll"].parts["inverse"] < 1e-9
    assert measures["kl"].value == pytest.approx(0, abs=1e-12)
    assert measures["density-error"].value == pytest.approx(0, abs=1e-12)
    assert measures["displacement"].value > 0


def test_standardised_rows_keep_their_contexts():
    data = WeightedMixture(1000, 10, 100).load()
    scaled, scaling = standardised(data)
    assert scaled.test_context is data.test_context
    assert scaled.entropy == pytest.approx(data.entropy + scaling.ladj)
    found = scaled.log_prob(scaled.test, scaled.test_context)
    expected = data.log_prob(data.test, data.test_context) - scaling.ladj
    torch.testing.assert_close(found, expected)
