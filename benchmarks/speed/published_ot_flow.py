"""OT-Flow as published: a plain transcription of the formulas, in the order its code has them.

With s = [x, t] of width d + 1, E its first d columns, M + 1 layers, h = 1 / M, sig' = tanh and
z_{M+1} = w:

    q_0 = K_0 s + b_0,  u_0 = sig(q_0),  q_i = K_i u_{i-1} + b_i,  u_i = u_{i-1} + h sig(q_i)
    z_i = z_{i+1} + h K_i^T (tanh(q_i) z_{i+1}),  z_0 = K_0^T (tanh(q_0) z_1)
    grad Phi = z_0 + A^T A s + b
    J_0 = diag(tanh q_0) K_0 E,  Y_i = K_i J_{i-1},  J_i = J_{i-1} + h diag(tanh q_i) Y_i
    tr = sum sig''(q_0) z_1 (K_0 E)^2 + h sum_i sum sig''(q_i) z_{i+1} Y_i^2 + tr E^T A^T A E

What the published code does at a cost is done here at that cost: Jacobians are m x d x n and one
matrix product acts on them as m x (d n); the first term of the trace is a sum over m x d x n
numbers; q_i, i > 0, is computed three times (for u, for z, for the trace); u_M and J_M are computed
and not used; A^T A is formed; gradients come from automatic differentiation through all the steps;
generation solves the same equation backwards, traces and costs included. Nothing is slower than
that: tanh(q_i) serves both the trace and J_i.

References:
    OT-Flow (Onken, Wu Fung, Li & Ruthotto, AAAI 2021), https://arxiv.org/abs/2006.00104, and its
    code, https://github.com/EmoryMLIP/OT-Flow
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from flowzoo_ot_flow.potential import ResNetPotential


class PublishedOTFlow:
    """The published algorithm, on the weights of a `ResNetPotential`.

    Arguments:
        potential: What has the weights; nothing of it is called but its layers.
    """

    def __init__(self, potential: ResNetPotential) -> None:
        self.dim, self.opening = potential.dim, potential.opening
        self.hidden: list[Any] = list(potential.hidden)
        self.step = 1 / len(self.hidden)
        self.w, self.a, self.b = potential.w, potential.A, potential.b

    def objective(self, x: Tensor, likelihood: float, hjb: float, steps: int) -> Tensor:
        """Return mean(L) + likelihood * mean(C) + hjb * mean(R), in nats."""
        end, d = self.encode(x, steps), self.dim
        z, ladj, transport, residual = end[:, :d], end[:, d], end[:, d + 1], end[:, d + 2]
        nll = 0.5 * z.square().sum(1) + 0.5 * d * math.log(2 * math.pi) - ladj
        return transport.mean() + likelihood * nll.mean() + hjb * residual.mean()

    def encode(self, x: Tensor, steps: int) -> Tensor:
        """Return [z, ladj, L, R] as (n, d + 3)."""
        return self.solve(pad(x, (0, 3)), 0.0, 1.0, steps)

    def generate(self, z: Tensor, steps: int) -> Tensor:
        """Return data (n, d), the rest of the state thrown away."""
        return self.solve(pad(z, (0, 3)), 1.0, 0.0, steps)[:, : self.dim]

    def solve(self, state: Tensor, t0: float, t1: float, steps: int) -> Tensor:
        """Return the state at t1, by the classic Runge-Kutta method."""
        h = (t1 - t0) / steps
        for i in range(steps):
            t = t0 + i * h
            k1 = h * self.derivative(t, state)
            k2 = h * self.derivative(t + h / 2, state + k1 / 2)
            k3 = h * self.derivative(t + h / 2, state + k2 / 2)
            k4 = h * self.derivative(t + h, state + k3)
            state = state + k1 / 6 + k2 / 3 + k3 / 3 + k4 / 6
        return state

    def derivative(self, t: float, state: Tensor) -> Tensor:
        """Return d/dt [x, ladj, L, R] = [-grad Phi, -tr, |v|^2 / 2, |-dPhi/dt + |v|^2 / 2|]."""
        gradient, trace = self.gradient_and_trace(pad(state[:, : self.dim], (0, 1), value=t))
        v = -gradient[:, : self.dim]
        cost = 0.5 * v.square().sum(1, keepdim=True)
        residual = (cost - gradient[:, self.dim :]).abs()
        return torch.cat((v, -trace[:, None], cost, residual), 1)

    def gradient_and_trace(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return grad_s Phi (n, d + 1) and the trace of the Hessian over space (n,)."""
        h, before = self.step, self.opening(s)
        u = [sig(before)]
        for layer in self.hidden:
            u.append(u[-1] + h * sig(layer(u[-1])))
        z = [self.w[:, None]]
        for layer, inputs in zip(self.hidden[::-1], u[-2::-1], strict=True):
            z.insert(0, z[0] + h * layer.weight.T @ (torch.tanh(layer(inputs)).T * z[0]))
        slope, square = torch.tanh(before).T, self.a.T @ self.a
        gradient = self.opening.weight.T @ (slope * z[0]) + square @ s.T + self.b[:, None]
        trace = self.trace(slope, u, z) + square[: self.dim, : self.dim].trace()
        return gradient.T, trace

    def trace(self, slope: Tensor, u: list[Tensor], z: list[Tensor]) -> Tensor:
        """Return the network's part of the trace (n,), for tanh(q_0) (m, n), u_0 ... and z_1 ..."""
        (m, n), h = slope.shape, self.step
        space = self.opening.weight[:, : self.dim, None]
        bend = (1 - slope**2) * z[0]
        total = (bend.reshape(m, 1, n) * space**2).sum((0, 1))
        jacobian = space * slope[:, None, :]
        for layer, inputs, after in zip(self.hidden, u[:-1], z[1:], strict=True):
            rows = (layer.weight @ jacobian.reshape(m, -1)).reshape(m, -1, n)
            slope = torch.tanh(layer(inputs)).T
            bend = (1 - slope**2) * after
            total = total + h * (bend.reshape(m, 1, n) * rows**2).sum((0, 1))
            jacobian = jacobian + h * slope.reshape(m, 1, n) * rows
        return total


def sig(q: Tensor) -> Tensor:
    """Return log(e^q + e^-q), as the published code computes it."""
    return q.abs() + torch.log(1 + torch.exp(-2 * q.abs()))
