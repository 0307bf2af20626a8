"""Flows and data of which the judge must find a known number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from oracles import F64, make, names
from torch import nn

from flowzoo.continuous import Continuous
from flowzoo.data.synthetic import Gaussian
from flowzoo.errors import Incompatible
from flowzoo.field import Velocity
from flowzoo.flow import Encoded, Flow, log_normal


@dataclass(frozen=True)
class Rows:
    """Test points and what is known of them: all that the judge asks of a data set."""

    test: torch.Tensor
    test_context: torch.Tensor | None = None
    log_prob: object = None
    transport_cost: float | None = None
    oracle: object = None
    bits_per_dim: object = None


class Field(Velocity):
    """A closed-form velocity, with one weight that says in which precision to compute."""

    def __init__(self, fn, dim, dtype=F64):
        super().__init__()
        self.fn, self.dim, self.one = fn, dim, nn.Parameter(torch.ones((), dtype=dtype))
        self.calls = 0

    def forward(self, t, x, context=None):
        self.calls += 1
        return self.one * self.fn(t, x)


class Scale(Flow):
    """z = x / s, closed form, without trajectories; `s` is a buffer, so there are no weights."""

    def __init__(self, dim, s=2.0, dtype=F64):
        super().__init__()
        self.dim = dim
        self.register_buffer("s", torch.tensor(s, dtype=dtype))

    def encode(self, x, running=(), context=None, generator=None):
        ladj = (-self.dim * self.s.log()).expand(x.shape[0])
        return Encoded(x / self.s, ladj, x.new_zeros(x.shape[0], 0))

    def decode(self, z, context=None):
        return z * self.s


class NotANumber(Scale):
    """A density that is lost at points with a positive first coordinate."""

    def __init__(self, dim, wrong):
        super().__init__(dim)
        self.wrong = wrong

    def encode(self, x, running=(), context=None, generator=None):
        encoded = super().encode(x)
        ladj = torch.where(x[:, 0] > 0, self.wrong, encoded.ladj)
        return Encoded(encoded.z, ladj, encoded.costs)


class Density(Flow):
    """N(0, s^2 I) as an adapter gives it: a density that sends no point to noise."""

    latent = False

    def __init__(self, dim, s=2.0):
        super().__init__()
        self.dim, self.s = dim, s

    def encode(self, x, running=(), context=None, generator=None):
        raise Incompatible("it only knows its density")

    def decode(self, z, context=None):
        raise Incompatible("it only knows its density")

    def log_prob(self, x, context=None, generator=None):
        return log_normal(x / self.s) - self.dim * math.log(self.s)

    def sample(self, n, context=None, generator=None):
        return self.s * torch.randn(n, self.dim, generator=generator, dtype=F64)


def gaussian(dim=3, test=400, condition=5.0, mean=0.4, **options):
    options = {"condition": condition if dim > 1 else 1.0, "mean": mean, **options}
    return Gaussian(dim, train=500, val=10, test=test, **options)


def optimal(dataset, dtype=F64, **numerics):
    """Return the optimal flow of a Gaussian data set: straight lines at constant speed."""
    return Continuous(Field(dataset.oracle.velocity, dataset.dim, dtype), **numerics)


def matching(dataset, **numerics):
    """Return the exact flow along the marginal velocity of linear paths, which is curved."""
    return Continuous(Field(dataset.oracle.matching_velocity, dataset.dim), **numerics)


SMALL = {"samples": 100, "projections": 20, "permutations": 20, "points": 20, "repeats": 2}


def all_metrics():
    """Return every registered metric, those that draw samples or take times with few of them."""
    return [make("metric", name, **SMALL) for name in names("metric")]


def reproducible(measures):
    """Return the measures that do not depend on the clock."""
    return {name: found for name, found in measures.items() if found.unit != "points/s"}
