"""Exact scores of noised data, as networks of any parametrisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from flowzoo.field import Velocity
from flowzoo_matching.diffusion import ProbabilityFlow
from flowzoo_matching.schedule import VP

F64 = torch.float64
KINDS = ("sde", "noise", "score")
GOLDEN = Path(__file__).parent / "golden" / "jko" / "score_sde.npz"


def golden():
    with np.load(GOLDEN) as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}


def beta(t):
    return 0.1 + 19.9 * t


def variance(t):
    return -torch.expm1(-0.1 * t - 9.95 * t.square())


class Exact(Velocity):
    """What a parametrisation makes of a score (1 + a) grad log p_t, by formulas of its own."""

    def __init__(self, dim, kind="score"):
        super().__init__()
        self.dim, self.kind, self.a = dim, kind, nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, t, x, context=None):
        t = t.reshape(-1, 1)
        scale = {"sde": beta(t).sqrt(), "noise": -variance(t).sqrt(), "score": torch.ones_like(t)}
        return scale[self.kind] * (1 + self.a) * self.exact(t, x)


class MixtureScore(Exact):
    """The score of a mixture of N(mean_k, std_k^2 I) with weights w_k."""

    def __init__(self, mean, std, weights, kind="score"):
        super().__init__(mean.shape[1], kind)
        self.mean, self.std, self.weights = mean, std, weights

    def exact(self, t, x):
        m = (1 - variance(t)).sqrt()
        v = (m * self.std).square() + variance(t)  # (n, k)
        off = x[:, None] - m[..., None] * self.mean
        log = self.weights.log() - 0.5 * off.square().sum(-1) / v - 0.5 * self.dim * v.log()
        return -(log.softmax(-1)[..., None] * off / v[..., None]).sum(1)


class GaussianScore(Exact):
    """The score of N(mean, diag std^2)."""

    def __init__(self, mean, std, kind="score"):
        super().__init__(len(mean), kind)
        self.mean, self.std = mean, std

    def moments(self, t):
        """Return mean and variance of x_t."""
        m = (1 - variance(t)).sqrt()
        return m * self.mean, (m * self.std).square() + variance(t)

    def exact(self, t, x):
        mean, v = self.moments(t)
        return (mean - x) / v


def gaussian(kind="score", start=0.0, mean=(1.5, -0.5), std=(0.5, 2.0)):
    """Return the probability flow of N(mean, diag std^2) with its exact score."""
    net = GaussianScore(torch.tensor(mean, dtype=F64), torch.tensor(std, dtype=F64), kind)
    return ProbabilityFlow(net, VP(), kind, start)


def mixture(stored, kind, start):
    """Return the probability flow of the stored mixture with its exact score."""
    net = MixtureScore(stored["gm_mu"], stored["gm_sigma"], stored["gm_w"], kind)
    return ProbabilityFlow(net, VP(), kind, start)
