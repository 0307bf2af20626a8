"""Flows in every variant of differentiation, with a loss that depends on all that a solve gives."""

from __future__ import annotations

import torch
from components import fixed_grids, make_integrator, names
from oracles import SmallVelocity, gradients, small_gradient

from flowzoo.continuous import Continuous
from flowzoo.regularizers import HJB, JacobianFrobenius, Transport
from flowzoo.traces import Exact, Hutchinson

VARIANTS = [*names("integrator"), *(f"{n}, recompute" for n in fixed_grids())]
VELOCITIES = {"velocity": SmallVelocity, "gradient": small_gradient}
TRACES = {"exact": Exact, "hutchinson": Hutchinson}


def integrator_of(variant, steps=6, tol=1e-10):
    name, _, recompute = variant.partition(", ")
    more = {"recompute": True} if recompute else {}
    return make_integrator(name, steps, tol, **more)


def flow_of(variant, kind="velocity", trace="exact", context_dim=2, **more):
    integrator = integrator_of(variant) if isinstance(variant, str) else variant
    velocity = VELOCITIES[kind](2, context_dim)
    return Continuous(velocity, integrator, TRACES[trace](), **more).double()


def loss_of(flow, x, context=None, running=(), seed=0):
    """Return a scalar that depends on the ends, the density and the costs."""
    generator = torch.Generator().manual_seed(seed)
    end = flow.encode(x, running, context, generator)
    weights = torch.linspace(0.5, 1.5, x.shape[0], dtype=x.dtype)
    return (weights * (end.z.square().sum(-1) + end.ladj + 0.1 * end.costs.sum(-1))).sum()


def costs_of(kind):
    return [
        Transport(),
        JacobianFrobenius(),
        *([HJB(power="squared")] if kind == "gradient" else []),
    ]


def all_gradients(flow, x, context, running=(), seed=0):
    """Return gradients with respect to x, the context and every parameter."""
    x, context = x.clone().requires_grad_(), context.clone().requires_grad_()
    loss = loss_of(flow, x, context, running, seed)
    return gradients(loss, [x, context, *flow.parameters()])
