"""The potential of OT-Flow: a residual network plus a quadratic form, in space and time at once.

With s = [x, t, context], M + 1 layers, h = 1 / M and sig(q) = log(e^q + e^-q), so sig' = tanh:

    Phi(s) = w^T u_M + 1/2 |A s|^2 + b^T s + c
    q_0 = K_0 s + b_0,    u_0 = sig(q_0),    q_i = K_i u_{i-1} + b_i,    u_i = u_{i-1} + h sig(q_i)

and backwards, from z_{M+1} = w:

    z_i = z_{i+1} + h K_i^T (tanh(q_i) z_{i+1}),    grad Phi = K_0^T (tanh(q_0) z_1) + A^T A s + b
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from flowzoo.errors import Incompatible
from flowzoo.field import Potential, PotentialPoint
from flowzoo.networks import Inputs
from flowzoo_ot_flow.hessian import Hessian


class ResNetPotential(Potential):
    """Phi(t, x) = w^T u_M(s) + |A s|^2 / 2 + b^T s + c with a residual network u_M.

    Its input is s = [x, t, context]. All hidden layers start as copies of one. No density depends
    on c, so it is a buffer.

    Arguments:
        dim: Dimension d of x.
        width: Width m of the network.
        layers: Number M + 1 of layers, the opening one counted; the published settings have 2.
        rank: Rows r of A; min(10, d + 1) when left out.
        context_dim: Width of the context.

    Raises:
        Incompatible: Fewer than two layers, or a width or rank below 1.

    References:
        OT-Flow (Onken, Wu Fung, Li & Ruthotto, AAAI 2021), https://arxiv.org/abs/2006.00104
    """

    c: Tensor
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"layers": 4, "width": 5})

    def __init__(
        self,
        dim: int,
        width: int = 32,
        layers: int = 2,
        rank: int | None = None,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        rank = min(10, dim + 1) if rank is None else rank
        for name, value, least in (("layers", layers, 2), ("width", width, 1), ("rank", rank, 1)):
            if value < least:
                raise Incompatible(f"ot-flow: {name} must be at least {least}, got {value}")
        self.dim, self.context_dim, self.step = dim, context_dim, 1 / (layers - 1)
        self.inputs = Inputs(dim, context_dim=context_dim)
        self.opening = nn.Linear(self.inputs.width, width)
        first = nn.Linear(width, width)
        self.hidden = nn.ModuleList(copy.deepcopy(first) for _ in range(layers - 1))
        self.w = nn.Parameter(torch.ones(width))
        self.A = nn.Parameter(torch.empty(rank, self.inputs.width))
        nn.init.xavier_uniform_(self.A)
        self.b = nn.Parameter(torch.zeros(self.inputs.width))
        self.register_buffer("c", torch.zeros(()))

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return Phi(t, x) as (n,), for t () or (n,), x (n, d) and context (n, c) or None."""
        s = self.inputs(t, x, context)
        u, before = self._hidden(s)
        u = torch.add(u, log_2cosh(before[-1]), alpha=self.step)
        return u @ self.w + 0.5 * (s @ self.A.T).square().sum(-1) + s @ self.b + self.c

    def gradient(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return grad_x Phi as (n, d), and nothing else: all that sampling needs."""
        s = self.inputs(t, x, context)
        pulled, _ = self._backwards([q.tanh() for q in self._hidden(s)[1]])
        return self._first(s, pulled[0], self.dim)

    def at(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> PotentialPoint:
        """Return gradient, time derivative and Hessian at (t, x), from one set of activations."""
        d, s = self.dim, self.inputs(t, x, context)
        slopes = [q.tanh() for q in self._hidden(s)[1]]
        pulled, sensitivities = self._backwards(slopes)
        first = self._first(s, pulled[0], d + 1)
        hessian = Hessian(
            self.opening.weight[:, :d],
            self._weights(),
            self.A[:, :d],
            slopes,
            # sig''(q_i) z_{i+1} with sig'' = 1 - tanh^2.
            [
                torch.addcmul(z, p, slope, value=-1)
                for z, p, slope in zip(sensitivities, pulled, slopes, strict=True)
            ],
        )
        return PotentialPoint(first[:, :d], first[:, d], hessian)

    def _hidden(self, s: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return u_{M-1} and q_0, ..., q_M; no derivative needs sig(q_M)."""
        before = [self.opening(s)]
        u = log_2cosh(before[0])
        for layer in self.hidden[:-1]:
            before.append(layer(u))
            u = torch.add(u, log_2cosh(before[-1]), alpha=self.step)
        before.append(self.hidden[-1](u))
        return u, before

    def _backwards(self, slopes: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return tanh(q_i) z_{i+1} and z_{i+1} for i = 0, ..., M; the last z is w."""
        z: Tensor = self.w
        pulled: list[Tensor] = [slopes[-1] * z]
        sensitivities: list[Tensor] = [z]
        for slope, weight in zip(slopes[-2::-1], self._weights()[::-1], strict=True):
            z = torch.addmm(z, pulled[-1], weight, alpha=self.step)
            pulled.append(slope * z)
            sensitivities.append(z)
        return pulled[::-1], sensitivities[::-1]

    def _first(self, s: Tensor, pulled: Tensor, columns: int) -> Tensor:
        """Return the first columns of grad_s Phi."""
        quadratic = torch.addmm(self.b[:columns], s @ self.A.T, self.A[:, :columns])
        return torch.addmm(quadratic, pulled, self.opening.weight[:, :columns])

    def _weights(self) -> list[Tensor]:
        return [layer.weight for layer in self.hidden]  # pyright: ignore[reportReturnType]


def log_2cosh(q: Tensor) -> Tensor:
    """Return log(e^q + e^-q) = 2 softplus_2(q) - q, elementwise.

    Written as |q| + log(1 + e^(-2 |q|)), automatic differentiation would find no curvature at 0.
    """
    return torch.add(-q, softplus(q, beta=2, threshold=40), alpha=2)
