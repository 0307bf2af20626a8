"""Growing chains that are small enough for many tests, and fits of them."""

from __future__ import annotations

import torch
from oracles import F64, SmallVelocity, small_gradient
from tiny_flows import Shift, points, same_weights

from flowzoo.continuous import Continuous
from flowzoo.integrators import RK438
from flowzoo.objective import Batch
from flowzoo.odeint import TorchDiffEq
from flowzoo.settings import Budget, Optimizer, Training
from flowzoo.training import fit
from flowzoo_jko_iflow.growing import Growing
from flowzoo_jko_iflow.objective import JKO

TIGHT = TorchDiffEq("dopri8", rtol=1e-11, atol=1e-11)
QUICK = Training(batch_size=32, optimizer=Optimizer(lr=0.05), validate_every=0, precision="float64")


def velocity(kind="free", context_dim=0, seed=0):
    """Return a small velocity in the plane: a free one, or the gradient of a potential."""
    make = small_gradient if kind == "gradient" else SmallVelocity
    return make(2, context_dim, seed)


def grown(n=3, kind="free", steps=3, context_dim=0, trace=None, **more):
    """Return a chain of n different continuous blocks on steps of the 3/8 rule, in float64."""
    blocks = [
        Continuous(velocity(kind, context_dim, seed), RK438(steps), trace, **more)
        for seed in range(n)
    ]
    return Growing(blocks).double()


def shifts(n=3):
    """Return a chain of n affine blocks, the first of which already does something."""
    flow = Growing([Shift() for _ in range(n)]).double()
    for k, block in enumerate(flow.held()):
        torch.nn.init.constant_(block.mu, 0.1 * k)
    return flow


def cloud(n=200, seed=0):
    """Return n points of N(mean, diag(4, 1/4)), float64."""
    x = points(n, 0.0, seed=seed).x.to(F64)
    return Batch(x * torch.tensor([2.0, 0.5], dtype=F64) + torch.tensor([3.0, -1.0], dtype=F64))


def trained(flow, objective=None, steps=30, training=QUICK, **more):
    """Fit a chain to the cloud."""
    train = more.pop("train", cloud())
    held = more.pop("validation", None)
    objective = JKO() if objective is None else objective
    return fit(flow, objective, train, held, budget=Budget(steps=steps), training=training, **more)


def steps_of(result):
    """Return the steps that every stage took, by its name."""
    return {row["stage"]: row["steps"] for row in result.stages}


__all__ = [
    "F64",
    "QUICK",
    "TIGHT",
    "cloud",
    "grown",
    "same_weights",
    "shifts",
    "steps_of",
    "trained",
    "velocity",
]
