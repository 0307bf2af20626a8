"""The residual potential's formulas, on plain tensors.

With s = [x, t, context], M + 1 layers, h = 1 / M and sig(q) = log(e^q + e^-q), so sig' = tanh:

    Phi(s) = w^T u_M + 1/2 |A s|^2 + b^T s + c
    q_0 = K_0 s + b_0,    u_0 = sig(q_0),    q_i = K_i u_{i-1} + b_i,    u_i = u_{i-1} + h sig(q_i)

and backwards, from z_{M+1} = w:

    z_i = z_{i+1} + h K_i^T (tanh(q_i) z_{i+1}),    grad Phi = K_0^T (tanh(q_0) z_1) + A^T A s + b

References:
    OT-Flow (Onken, Wu Fung, Li & Ruthotto, AAAI 2021), https://arxiv.org/abs/2006.00104
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus


@dataclass(frozen=True)
class Weights:
    """What the formulas are made of.

    Arguments:
        A: (r, width of s).
        b: (width of s,).
        w: (m,).
        matrices: K_0 (m, width of s) and K_1, ..., K_M, each (m, m).
        biases: b_0, ..., b_M, each (m,).
    """

    A: Tensor
    b: Tensor
    w: Tensor
    matrices: Sequence[Tensor]
    biases: Sequence[Tensor]

    @property
    def step(self) -> float:
        """The step h = 1 / M."""
        return 1 / (len(self.matrices) - 1)

    def row(self) -> tuple[Tensor, ...]:
        """Return all tensors in a row."""
        return (self.A, self.b, self.w, *self.matrices, *self.biases)

    @classmethod
    def of(cls, row: Sequence[Tensor]) -> Weights:
        """Return what `row` laid out."""
        middle = (3 + len(row)) // 2
        a, b, w = row[:3]
        return cls(a, b, w, row[3:middle], row[middle:])


def activations(p: Weights, s: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return tanh(q_0), ..., tanh(q_M) and u_0, ..., u_{M-1}, each (n, m), at s (n, width of s).

    No derivative needs u_M.
    """
    q = torch.addmm(p.biases[0], s, p.matrices[0].T)
    slopes, outputs = [tanh(q)], []
    for i, (bias, matrix) in enumerate(zip(p.biases[1:], p.matrices[1:], strict=True)):
        bent = log_2cosh(q, slopes[-1])
        outputs.append(torch.add(outputs[-1], bent, alpha=p.step) if i else bent)
        q = torch.addmm(bias, outputs[-1], matrix.T)
        slopes.append(tanh(q))
    return slopes, outputs


def output(p: Weights, s: Tensor) -> Tensor:
    """Return u_M (n, m)."""
    u = log_2cosh(torch.addmm(p.biases[0], s, p.matrices[0].T))
    for bias, matrix in zip(p.biases[1:], p.matrices[1:], strict=True):
        u = torch.add(u, log_2cosh(torch.addmm(bias, u, matrix.T)), alpha=p.step)
    return u


def sensitivities(p: Weights, slopes: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return tanh(q_i) z_{i+1} and z_{i+1} for i = 0, ..., M; the last z is w (m,)."""
    pulled, z = [slopes[-1] * p.w], [p.w]
    for slope, matrix in zip(slopes[-2::-1], p.matrices[:0:-1], strict=True):
        z.append(torch.addmm(z[-1], pulled[-1], matrix, alpha=p.step))
        pulled.append(slope * z[-1])
    return pulled[::-1], z[::-1]


def bends(
    slopes: Sequence[Tensor], pulled: Sequence[Tensor], sensitivities: Sequence[Tensor]
) -> list[Tensor]:
    """Return c_i = sig''(q_i) z_{i+1}, with sig'' = 1 - tanh^2, for i = 0, ..., M."""
    return [
        torch.addcmul(z, force, slope, value=-1)
        for z, force, slope in zip(sensitivities, pulled, slopes, strict=True)
    ]


def gradient(p: Weights, s: Tensor, pulled: Tensor, columns: int) -> Tensor:
    """Return the first columns of grad_s Phi, from tanh(q_0) z_1."""
    quadratic = torch.addmm(p.b[:columns], s @ p.A.T, p.A[:, :columns])
    return torch.addmm(quadratic, pulled, p.matrices[0][:, :columns])


def log_2cosh(q: Tensor, slope: Tensor | None = None) -> Tensor:
    """Return log(e^q + e^-q) = |q| - log((1 + |tanh q|) / 2), elementwise.

    Where it is differentiated it is 2 softplus_2(q) - q: automatic differentiation of the other,
    faster form would find no curvature at 0.

    Arguments:
        q: Where.
        slope: tanh(q), where it is at hand.
    """
    if torch.is_grad_enabled():
        return torch.add(-q, softplus(q, beta=2, threshold=40), alpha=2)
    if torch.compiler.is_compiling():
        size = q.abs()
        return size + torch.log(1 + torch.exp(-2 * size))
    size = (q.tanh() if slope is None else slope).abs()
    return q.abs().sub_(size.add_(1).mul_(0.5).log_())


def tanh(q: Tensor) -> Tensor:
    """Return the hyperbolic tangent, elementwise.

    Compiled for a CPU, an exponential is three times as fast, and `log_2cosh` has the same one; its
    error is that of rounding 1, which is what sig'' = 1 - tanh^2 has in any case.
    """
    if torch.compiler.is_compiling() and not torch.is_grad_enabled():
        decayed = torch.exp(-2 * q.abs())
        return torch.copysign((1 - decayed) / (1 + decayed), q)
    return q.tanh()
