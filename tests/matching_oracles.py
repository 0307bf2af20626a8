"""Stored values of the matching family, and Gaussian data, of which everything is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from flowzoo.field import Velocity
from flowzoo_matching.schedule import OT, VP, Cosine, LinearVP, Polynomial

F64 = torch.float64
GOLDEN = Path(__file__).parent / "golden" / "matching"
MEMBERS = {
    "condot": OT(),
    "poly2": Polynomial(2),
    "poly3": Polynomial(3),
    "vp": VP(),
    "linvp": LinearVP(),
    "cosine": Cosine(),
}


def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}


def member(paths, key):
    """Return what is stored of one schedule, by its last name."""
    prefix = f"fbfm/{key}/"
    return {k.removeprefix(prefix): v for k, v in paths.items() if k.startswith(prefix)}


def close(got, want, atol=1e-12, rtol=0.0):
    torch.testing.assert_close(got, want, atol=atol, rtol=rtol)


class GaussianVelocity(Velocity):
    """(1 + a) u + b, with u the exact marginal velocity of data N(mean, std^2) on a schedule.

    Before the schedule's range the velocity is held, as a network trained on the range might do.
    """

    def __init__(self, schedule, mean, std):
        super().__init__()
        self.schedule, self.mean, self.std, self.dim = schedule, mean, std, len(mean)
        self.a = nn.Parameter(torch.zeros(self.dim, dtype=F64))
        self.b = nn.Parameter(torch.zeros(self.dim, dtype=F64))

    def forward(self, t, x, context=None):
        at = self.schedule.at(t.clamp(min=self.schedule.t_range[0]).reshape(-1, 1))
        variance = (at.alpha * self.std).square() + at.sigma.square()
        slope = (at.alpha * at.d_alpha * self.std.square() + at.sigma * at.d_sigma) / variance
        u = at.d_alpha * self.mean + slope * (x - at.alpha * self.mean)
        return (1 + self.a) * u + self.b


def divergence(velocity, t, x):
    return velocity.at(t, x).jacobian.dense().diagonal(dim1=1, dim2=2).sum(-1)


def gauss_hermite(dim, order=8):
    """Return nodes (k, d) and weights (k,) of the expectation over N(0, I)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    nodes, weights = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    return torch.cartesian_prod(*[nodes] * dim), torch.cartesian_prod(*[weights] * dim).prod(-1)


def mean_cost(pairs, x, z):
    """Return the mean squared distance of pairs."""
    return (pairs.of_data(x) - pairs.of_noise(z)).square().sum(-1).mean()


def least(x, z):
    """Return the least mean squared distance that pairs of these points can have."""
    cost = torch.cdist(x.double(), z.double()).square().numpy()
    return cost[linear_sum_assignment(cost)].mean()
