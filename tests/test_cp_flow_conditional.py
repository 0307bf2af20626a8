"""A conditional convex flow learns p(x | context)."""

from __future__ import annotations

import math

import pytest
import torch
from cp_flow_fits import F64, trained
from oracles import gap

from flowzoo.errors import Incompatible
from flowzoo_cp_flow.flow import ConvexFlow
from flowzoo_cp_flow.picnn import PICNN

STD = math.exp(-0.5)
GRID = torch.linspace(-8, 8, 801, dtype=F64)[:, None]
STEP = 16 / 800


def true_density(x, share):
    """Return that of share N(2, 1/e) + (1 - share) N(-2, 1/e) at x (n, 1)."""
    bump = torch.distributions.Normal(0.0, STD)
    at = x[:, 0]
    return share * bump.log_prob(at - 2).exp() + (1 - share) * bump.log_prob(at + 2).exp()


def mixture(n=128):
    """Return a source of batches (x, context) with a random share in (0, 1) as the context."""
    generator = torch.Generator().manual_seed(0)

    def draw():
        share = torch.rand(n, 1, generator=generator, dtype=F64)
        side = 2 * (torch.rand(n, 1, generator=generator, dtype=F64) < share).to(F64) - 1
        return 2 * side + STD * torch.randn(n, 1, generator=generator, dtype=F64), share

    return draw


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    start = ConvexFlow(PICNN(1, 32, 2, context_dim=1)).to(F64)
    return trained(start, mixture(), steps=600, lr=0.03)


def density(flow, share):
    with torch.no_grad():
        return flow.log_prob(GRID, torch.full_like(GRID, share)).exp()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_the_conditional_density_is_that_of_the_mixture(flow, share):
    """In total variation; that of no context at all is 0.4 off at the ends."""
    off = (density(flow, share) - true_density(GRID, share)).abs().sum() * STEP / 2
    assert off < 0.12


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_every_conditional_density_has_mass_one(flow, share):
    assert abs(density(flow, share).sum() * STEP - 1) < 1e-3


def test_samples_follow_their_own_context(flow, seeded):
    shares = torch.tensor([[0.1], [0.9]], dtype=F64).repeat_interleave(2000, 0)
    with torch.no_grad():
        x = flow.sample(4000, shares, seeded())
        z = flow.encode(x, context=shares).z
    right = (x[:, 0] > 0).double().view(2, -1).mean(1)
    assert abs(right[0] - 0.1) < 0.06
    assert abs(right[1] - 0.9) < 0.06
    assert gap(flow.decode(z, shares), x) < 1e-7


def test_decoding_is_differentiable_in_the_context(flow):
    context = torch.tensor([[0.3], [0.6]], dtype=F64, requires_grad=True)
    z, h = torch.tensor([[0.2], [-0.4]], dtype=F64), 1e-5
    (slope,) = torch.autograd.grad(flow.decode(z, context).sum(), context)
    with torch.no_grad():
        change = flow.decode(z, context + h) - flow.decode(z, context - h)
    assert gap(slope, change / (2 * h)) < 1e-5


def test_a_missing_context_is_refused(flow):
    for call in (flow.log_prob, flow.encode, flow.decode):
        with pytest.raises(Incompatible, match="context"):
            call(GRID)
    with pytest.raises(Incompatible, match="context"):
        flow.log_prob(GRID, torch.zeros(len(GRID), 2, dtype=F64))
