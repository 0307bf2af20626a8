"""Flows of every sort in float64, and their scores by automatic differentiation."""

from __future__ import annotations

import torch
from oracles import Drift, SmallVelocity, small_gradient

from flowzoo.continuous import Continuous
from flowzoo.field import Gradient
from flowzoo.flow import Chain
from flowzoo.integrators import RK4
from flowzoo.odeint import Dopri5
from flowzoo_cp_flow.flow import ConvexFlow
from flowzoo_cp_flow.icnn import ICNN
from flowzoo_cp_flow.triangular import Triangular
from flowzoo_ffjord.batchnorm import MovingBatchNorm
from flowzoo_ffjord.velocity import ODENet
from flowzoo_ot_flow.potential import ResNetPotential
from flowzoo_zuko.flow import Zuko

FINE = {"rtol": 1e-7, "atol": 1e-7}


def off_start(flow):
    """Return a flow in float64 whose parameters and averages are away from where they start."""
    flow = flow.double()
    with torch.no_grad():
        for y in (*flow.parameters(), *flow.buffers()):
            if y.is_floating_point():
                y.add_(0.1 + 0.1 * torch.rand_like(y))
    return flow


def batch_norm():
    return off_start(MovingBatchNorm(3))


FLOWS = {
    "velocity": lambda: Continuous(SmallVelocity(3), RK4(10)),
    "gradient": lambda: Continuous(small_gradient(3), RK4(10)),
    "layers": lambda: Continuous(off_start(ODENet(3, (6, 5))), RK4(10)),
    "ot-flow": lambda: Continuous(Gradient(off_start(ResNetPotential(3, 6))), RK4(24)),
    "learned-end": lambda: Continuous(
        SmallVelocity(3), RK4(10), end_time=0.7, train_end_time=True
    ).double(),
    "adaptive": lambda: Continuous(SmallVelocity(3), Dopri5(**FINE)),
    "drift": lambda: Continuous(Drift(3), RK4(2)),
    "batch-norm": batch_norm,
    "chain": lambda: Chain(
        [batch_norm(), FLOWS["velocity"](), Chain([batch_norm(), FLOWS["gradient"]()])]
    ),
    "convex": lambda: off_start(ConvexFlow(ICNN(3, 8, 2))),
    "triangular": lambda: off_start(Triangular(3)),
    "zuko": lambda: Zuko(3, "maf", 2, [8]).double(),
    "zuko-cnf": lambda: Zuko(3, "cnf", hidden=[8], tolerance=1e-7).double(),
}


def by_autograd(flow, x, context=None):
    """Return grad log p, through the flow's own log_prob."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(flow.log_prob(x, context).sum(), x)[0]
