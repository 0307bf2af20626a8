"""Samples and subjects for the metrics that compare samples of a flow with test points."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from oracles import F64


def normal(n, dim, seed=0, shift=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=F64) * scale + shift


class Given:
    """A subject whose flow has drawn given samples."""

    def __init__(self, x, y, oracle=None):
        self.x, self.y, self.data = x, y, SimpleNamespace(oracle=oracle)
        self.asked = []

    def rows(self, n):
        return torch.randperm(len(self.x), generator=torch.Generator().manual_seed(1))[:n]

    def places(self, rows):
        return self.x[rows].double()

    def samples(self, n, draw=0):
        self.asked.append((n, draw))
        return self.y[:n].double()

    def generator(self, stream=0):
        return torch.Generator(self.x.device).manual_seed(stream)


def coverage(intervals, truth):
    """Return the share of (value, error) intervals that hold the truth."""
    return sum(abs(value - truth) <= error for value, error in intervals) / len(intervals)
