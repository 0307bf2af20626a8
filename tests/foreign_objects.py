"""Densities that know no flowzoo."""

from __future__ import annotations

import torch
from oracles import F64
from torch import distributions as d
from torch import nn


class Scaled:
    """z = x / s, as an object that knows no flowzoo; `wrong` is added to the ladj of encode."""

    def __init__(self, s=2.0, dim=2, dtype=F64, wrong=0.0):
        self.dim, self.wrong, self.s = dim, wrong, torch.tensor(s, dtype=dtype)

    def encode(self, x):
        return x / self.s, (-self.dim * self.s.log() + self.wrong).expand(len(x))

    def decode(self, z):
        return z * self.s

    def log_prob(self, x):
        return d.Normal(0, self.s).log_prob(x).sum(-1)

    def sample(self, n):
        return self.s * torch.randn(n, self.dim, dtype=self.s.dtype)


class Learned(nn.Module):
    """The same with a weight."""

    dim = 2

    def __init__(self):
        super().__init__()
        self.log_s = nn.Parameter(torch.tensor(0.3))

    def encode(self, x):
        return x * torch.exp(-self.log_s), (-2 * self.log_s).expand(len(x))

    def decode(self, z):
        return z * self.log_s.exp()

    def log_prob(self, x):
        return d.Normal(0, self.log_s.exp()).log_prob(x).sum(-1)

    def sample(self, n):
        return self.decode(torch.randn(n, 2, dtype=self.log_s.dtype))


class Only:
    """A density made of functions."""

    def __init__(self, log_prob, sample=None, **more):
        self.log_prob = log_prob
        self.sample = sample or (lambda n: torch.zeros(n, 2, dtype=F64))
        vars(self).update(more)
