"""OT-Flow potentials away from their initial weights, and the same with derivatives by autograd."""

from __future__ import annotations

import torch
from oracles import F64

from flowzoo.field import Potential
from flowzoo_ot_flow.potential import ResNetPotential

# dim, width, layers: narrower and wider than the data, every kind of layer, square.
SHAPES = [(2, 6, 2), (3, 5, 3), (4, 4, 4), (2, 5, 5), (9, 4, 2), (9, 4, 3), (8, 3, 5)]


class Derived(Potential):
    """The same potential, all its derivatives left to the base class."""

    def __init__(self, potential):
        super().__init__()
        self.potential = potential
        self.dim, self.context_dim = potential.dim, potential.context_dim

    def forward(self, t, x, context=None):
        return self.potential(t, x, context)


class Trace(torch.nn.Module):
    def __init__(self, phi):
        super().__init__()
        self.phi = phi

    def forward(self, t, x):
        return self.phi.at(t, x).hessian.trace()


def potential(dim, width, layers, seed=0, **more):
    """Return a potential whose weights are all away from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    made = ResNetPotential(dim, width, layers, **more).to(F64)
    with torch.no_grad():
        for p in (*made.parameters(), made.c):
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=F64))
    return made


def times(n, seed=5):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=F64)


def normal(*shape, seed=6):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
