"""Flows that keep all promises: in closed form, with a latent space and without one."""

from __future__ import annotations

import torch
from torch import nn

from flowzoo.errors import Incompatible
from flowzoo.flow import Encoded, Flow, log_normal


class Right(Flow):
    """z = e^s sinh(x - m - C c), each dimension for itself."""

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__()
        self.dim, self.context_dim = dim, context_dim
        self.m, self.s = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.c = nn.Linear(context_dim, dim, bias=False) if context_dim else None

    def shift(self, context):
        return self.m if context is None or self.c is None else self.m + self.c(context)

    def encode(self, x, running=(), context=None, generator=None):
        self.requires(running)
        y = x - self.shift(context)
        z, ladj = self.s.exp() * y.sinh(), (self.s + y.cosh().log()).sum(-1)
        return Encoded(z, ladj, x.new_zeros(len(x), 0))

    def decode(self, z, context=None):
        return (z * (-self.s).exp()).asinh() + self.shift(context)


class Density(Right):
    """A density without a latent space; right, as far as it goes."""

    latent = False

    def encode(self, x, running=(), context=None, generator=None):
        raise Incompatible("it sends no point to noise")

    def decode(self, z, context=None):
        raise Incompatible("it sends no point to noise")

    def sample(self, n, context=None, generator=None):
        z = torch.randn(n, self.dim, generator=generator, dtype=self.m.dtype, device=self.m.device)
        return Right.decode(self, z, context)

    def log_prob(self, x, context=None, generator=None):
        encoded = Right.encode(self, x, (), context)
        return log_normal(encoded.z) + encoded.ladj


def changed(encoded, z=None, ladj=None):
    """Return what became of points, with z or ladj replaced."""
    z, ladj = (encoded.z if z is None else z), (encoded.ladj if ladj is None else ladj)
    return Encoded(z, ladj, encoded.costs)
