"""The potential of the Monge-Ampere flow: one hidden layer, without time.

With q_k = w_k . x + b_k for the rows w_k of W, and s an activation:

    u(x) = sum_k a_k s(q_k),    grad u = sum_k a_k s'(q_k) w_k,    H = W^T diag(a s''(q)) W

The Laplacian is sum_k a_k |w_k|^2 s''(q_k). The lengths |w_k| are the same for all samples, so that
it costs each sample a dot product of m numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from flowzoo.errors import Incompatible
from flowzoo.field import Potential, PotentialPoint
from flowzoo.maps import LinearMap


class MongeAmpere(Potential):
    """u(x) = sum_k a_k s(w_k . x + b_k) with s = softplus, the same at all times.

    The published code samples along +grad u and follows -grad u from data to noise, which is
    v = -grad Phi with Phi = u. Weights start as there, uniform within 1 / sqrt(d) (W, b) and
    1 / sqrt(m) (a).

    Arguments:
        dim: Dimension d of x.
        width: Width m of the hidden layer; 512 and 1024 in the published runs.
        symmetric: True takes s = log cosh and no b, so that u(-x) = u(x); a density of the flow has
            that symmetry, too.

    Raises:
        Incompatible: A width below 1, or a context.

    References:
        Monge-Ampere Flow for Generative Modeling (Zhang, E & Wang, 2018),
        https://arxiv.org/abs/1809.10188
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"width": 5, "symmetric": True})

    def __init__(self, dim: int, width: int = 64, symmetric: bool = False) -> None:
        super().__init__()
        if width < 1:
            raise Incompatible(f"monge-ampere: width must be at least 1, got {width}")
        self.dim, self.symmetric = dim, symmetric
        self.opening = nn.Linear(dim, width, bias=not symmetric)
        self.a = nn.Parameter(torch.empty(width))
        nn.init.uniform_(self.a, -(width**-0.5), width**-0.5)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return u(x) as (n,), for any t, x (n, d) and no context."""
        q = self._before(x, context)
        return (log_cosh(q) if self.symmetric else softplus(q, threshold=40)) @ self.a

    def gradient(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return grad u as (n, d), and nothing else: all that sampling needs."""
        return combined(self._slopes(self._before(x, context)), self.a, self.opening.weight)

    def at(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> PotentialPoint:
        """Return gradient, time derivative (zero) and Hessian, from one set of activations."""
        slopes, rows = self._slopes(self._before(x, context)), self.opening.weight
        # log cosh has s'' = 1 - s'^2, softplus s'' = s' - s'^2.
        bends = (1.0 if self.symmetric else slopes) - slopes.square()
        hessian = Hessian(rows, self.a, bends)
        return PotentialPoint(combined(slopes, self.a, rows), x.new_zeros(x.shape[0]), hessian)

    def _before(self, x: Tensor, context: Tensor | None) -> Tensor:
        if context is not None and context.shape[-1]:
            raise Incompatible(
                f"monge-ampere takes no context and got one of width {context.shape[-1]}: use "
                "potential: {name: mlp, time: none}, which takes one"
            )
        return self.opening(x)

    def _slopes(self, q: Tensor) -> Tensor:
        return q.tanh() if self.symmetric else q.sigmoid()


class Hessian(LinearMap):
    """The Hessian of a `MongeAmpere` potential, one per sample: W^T diag(a s''(q)) W.

    Arguments:
        rows: W (m, d).
        a: The outer weights (m,).
        bends: s''(q) (n, m).
    """

    symmetric = True

    def __init__(self, rows: Tensor, a: Tensor, bends: Tensor) -> None:
        self.weights, self.a, self.bends = rows, a, bends
        self._last: tuple[Tensor, Tensor, bool] | None = None

    def vjp(self, p: Tensor) -> Tensor:
        """Return H p; the product with the same probes is computed once and shared."""
        records = torch.is_grad_enabled()  # what was not recorded serves no derivative
        if self._last is None or self._last[0] is not p or self._last[2] < records:
            product = combined(self.bends * linear(p, self.weights), self.a, self.weights)
            self._last = (p, product, records)
        return self._last[1]

    def jvp(self, p: Tensor) -> Tensor:
        """Return H p."""
        return self.vjp(p)

    def dense(self) -> Tensor:
        """Return H as (n, d, d)."""
        return ((self.bends * self.a)[:, None] * self.weights.T) @ self.weights

    def trace(self) -> Tensor:
        """Return tr H = sum_k a_k s''_k |w_k|^2 as (n,)."""
        return self.bends @ (self.a * self.weights.square().sum(-1))


def combined(coefficients: Tensor, a: Tensor, rows: Tensor) -> Tensor:
    """Return sum_k c_k a_k w_k as (..., d), for c (..., m); of c and W, the smaller is scaled."""
    if coefficients.numel() < rows.numel():
        return (coefficients * a) @ rows
    return coefficients @ (a[:, None] * rows)


def log_cosh(q: Tensor) -> Tensor:
    """Return log cosh q, elementwise.

    Written with |q|, automatic differentiation would find no curvature at 0.
    """
    return softplus(2 * q, threshold=40) - q - math.log(2)
