"""Small convex flows, and fits of them in a second, for the tests of CP-Flow."""

from __future__ import annotations

import torch
from torch.distributions import MultivariateNormal

from flowzoo_cp_flow.flow import ConvexFlow
from flowzoo_cp_flow.icnn import InputAugmented

F64 = torch.float64
MEAN = torch.tensor([1.5, 1.0], dtype=F64)
COVARIANCE = torch.tensor([[0.9, -0.75], [-0.75, 0.9]], dtype=F64)
LAW = MultivariateNormal(MEAN, COVARIANCE)


def convex(dim=2, width=32, layers=3, seed=0, shake=0.0, **options):
    """Return a convex flow in float64, its weights moved by noise of a size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = ConvexFlow(InputAugmented(dim, width, layers), **options).to(F64)
        with torch.no_grad():
            for weight in flow.parameters():
                weight.add_(shake * torch.randn_like(weight))
    return flow


def settled(dim=2, seed=0, **options):
    """Return a convex flow whose normalisations a batch of wide points has set."""
    flow = convex(dim, 16, 3, seed, shake=0.3, weight=3.0, **options)
    flow.train()
    flow.encode(3 * torch.randn(64, dim, generator=torch.Generator().manual_seed(seed), dtype=F64))
    return flow.eval()


def trained(flow, draw, steps=150, lr=0.05):
    """Return a flow after some steps of Adam, at a rate that falls to zero, on fresh points.

    Arguments:
        flow: The flow.
        draw: Gives the next points, and their context where there is one, as a tuple.
        steps: How many.
        lr: The first rate.
    """
    optimizer = torch.optim.Adam(flow.parameters(), lr)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    flow.train()
    for step in range(steps):
        optimizer.zero_grad()
        noise = torch.Generator().manual_seed(step)
        loss = -flow.log_prob(*draw(), generator=noise).mean()
        loss.backward()
        optimizer.step()
        rate.step()
    return flow.eval()


def gaussians(seed=0, n=128):
    """Return a source of batches (x,) from `LAW`."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.linalg.cholesky(COVARIANCE)
    return lambda: (MEAN + torch.randn(n, 2, generator=generator, dtype=F64) @ factor.T,)
