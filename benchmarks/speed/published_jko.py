"""JKO-iFlow as published: a plain transcription of a block's step, on the weights of a net of ours.

    dx/dt = f(t, x),  f = W_L s(... s(W_1 [t; x] + b_1) ...) + b_L,  s(a) = log(1 + e^(20 a)) / 20

    J = E[|T(x)|^2 / 2 - int_0^1 div f dt + |x - T(x)|^2 / (2 h)],  T(x) = x(1)

  divergence  e . (f(x + sigma e) - f(x)) / sigma, sigma = sigma0 / sqrt(d), e ~ N(0, I)
  training    S solves one after another, each one step of torchdiffeq's rk4 (the 3/8 rule)
  gradient    torchdiffeq's adjoint of each of them
  pushing     one solve by dopri5, rtol and atol 1e-5

What the published code does at a cost is done here at that cost: the state carries a third column,
of zeros; the points and those beside them are two evaluations of f; the divergence is solved for
in pushing too. The noise e is kept on the module and drawn anew by each solve, so that the backward
solves of all but the last find noise that is not their own; `adjoint=False` is the same without
that. Of the networks with time, whose code is not public, t is taken to be an input of every layer.

References:
    Normalizing flow neural networks by JKO scheme (Xu, Cheng & Xie, NeurIPS 2023),
    https://arxiv.org/abs/2212.14424, and its code, https://github.com/hamrel-cxu/JKO-iFlow
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torchdiffeq import odeint, odeint_adjoint

from flowzoo.integrators import Evaluations
from flowzoo_ffjord.activations import SharpSoftplus
from flowzoo_ffjord.layers import Concat, Ignore
from flowzoo_ffjord.velocity import ODENet

State: TypeAlias = tuple[Tensor, ...]  # places (n, d), minus ladj (n,), zeros (n,)
TOLERANCE = 1e-5  # of pushing


class PublishedBlock(nn.Module):
    """d/dt (x, -ladj, 0), on the weights of an `ODENet`.

    Arguments:
        net: What has the weights; nothing of it is called but its linear layers.
        draw: Returns noise (n, d) for places (n, d); Gaussian where it is left out.
        sigma0: sqrt(d) times the step of the difference quotient.
    """

    def __init__(
        self,
        net: ODENet,
        draw: Callable[[Tensor], Tensor] = torch.randn_like,
        sigma0: float = 0.02,
    ) -> None:
        super().__init__()
        layers: list[Any] = list(net.layers)
        assert all(isinstance(layer, Ignore | Concat) for layer in layers)
        assert all(isinstance(bend, SharpSoftplus) for bend in net.activations)
        assert not net.residual
        assert not net.context_dim
        self.timed = isinstance(layers[0], Concat)
        self.linears = nn.ModuleList(layer.linear for layer in layers)
        self.draw, self.sigma = draw, sigma0 / net.dim**0.5
        self.noise: Tensor | None = None
        self.nfe, self.solved = Evaluations(), False

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """Return f(t, x) as (n, d)."""
        last = len(self.linears) - 1
        for i, linear in enumerate(self.linears):
            x = linear(torch.cat((t.expand(len(x), 1), x), 1) if self.timed else x)
            x = x if i == last else softplus(x, beta=20)
        return x

    def forward(self, t: Tensor, state: State) -> State:
        """Return the derivative of the state."""
        x = state[0]
        self.nfe.forward += not self.solved
        self.nfe.backward += self.solved
        if self.noise is None:
            self.noise = self.draw(x)
        v, beside = self.velocity(t, x), self.velocity(t, x + self.sigma * self.noise)
        divergence = (self.noise * (beside - v) / self.sigma).sum(1)
        return v, -divergence, torch.zeros_like(state[2])

    def solve(self, x: Tensor, steps: int, adjoint: bool = True) -> State:
        """Return the state at t = 1 from places (n, d) at t = 0."""
        solver: Any = odeint_adjoint if adjoint else odeint
        state: State = (x, x.new_zeros(len(x)), x.new_zeros(len(x)))
        grid = torch.linspace(0, 1, steps + 1, dtype=x.dtype, device=x.device)
        for i in range(steps):
            self.noise = None
            ends = solver(self, state, grid[i : i + 2], method="rk4")
            state = tuple(end[-1] for end in ends)
        self.solved = True
        return state

    def loss(self, x: Tensor, h: float, steps: int, adjoint: bool = True) -> Tensor:
        """Return J () at places (n, d), for the step size h and so many solver steps."""
        moved, minus_ladj, _ = self.solve(x, steps, adjoint)
        potential = 0.5 * moved.square().sum(1).mean()
        movement = 0.5 * (moved - x).square().sum(1).mean()
        return potential + minus_ladj.mean() + movement / h

    @torch.no_grad()
    def push(self, x: Tensor) -> Tensor:
        """Return T(x) (n, d)."""
        self.noise = None
        start, times = (x, x.new_zeros(len(x)), x.new_zeros(len(x))), x.new_tensor([0.0, 1.0])
        ends: Any = odeint(self, start, times, rtol=TOLERANCE, atol=TOLERANCE, method="dopri5")
        return ends[0][-1]
