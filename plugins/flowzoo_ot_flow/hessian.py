"""Second derivatives of the residual potential in space, from the activations of its gradient.

With E the first d columns, c_i = sig''(q_i) z_{i+1} and J_0 = diag(tanh q_0) K_0 E:

    Y_i = K_i J_{i-1},    J_i = J_{i-1} + h diag(tanh q_i) Y_i
    H = E^T K_0^T diag(c_0) K_0 E + h sum_i Y_i^T diag(c_i) Y_i + E^T A^T A E

The trace asks for the lengths of the rows of Y_i only. Rotating their d columns changes none, so
where d > m the matrix K_0 E = R^T Q^T (Q orthonormal, d by m) may be replaced by R^T: the cost per
sample, 2 m^2 min(m, d) M, does not grow with d beyond m.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from flowzoo.maps import LinearMap


class Hessian(LinearMap):
    """The Hessian in x of a `ResNetPotential`, one per sample.

    Arguments:
        opening: K_0 E (m, d).
        hidden: K_1, ..., K_M, each (m, m).
        low_rank: A E (r, d).
        slopes: tanh(q_i) for i = 0, ..., M, each (n, m).
        bends: c_i = sig''(q_i) z_{i+1} for i = 0, ..., M, each (n, m).

    References:
        OT-Flow (Onken et al., AAAI 2021), https://arxiv.org/abs/2006.00104: the
        trace. Products with vectors, the dense form and the reduction to m columns
        follow from the same recursion.
    """

    symmetric = True

    def __init__(
        self,
        opening: Tensor,
        hidden: Sequence[Tensor],
        low_rank: Tensor,
        slopes: Sequence[Tensor],
        bends: Sequence[Tensor],
    ) -> None:
        self.opening, self.hidden, self.low_rank = opening, hidden, low_rank
        self.slopes, self.bends, self.step = slopes, bends, 1 / len(hidden)
        self._last: tuple[Tensor, Tensor, bool] | None = None

    def vjp(self, p: Tensor) -> Tensor:
        """Return H p; the product with the same probes is computed once and shared."""
        records = torch.is_grad_enabled()  # what was not recorded serves no derivative
        if self._last is None or self._last[0] is not p or self._last[2] < records:
            self._last = (p, self._product(p), records)
        return self._last[1]

    def jvp(self, p: Tensor) -> Tensor:
        """Return H p."""
        return self.vjp(p)

    def dense(self) -> Tensor:
        """Return H as (n, d, d)."""
        frame = self.opening.T.contiguous()
        total = (self.bends[0][:, None] * frame) @ frame.T + self.low_rank.T @ self.low_rank
        for bend, rows in zip(self.bends[1:], self._rows(frame), strict=True):
            total = torch.baddbmm(total, bend[:, None] * rows, rows.mT, alpha=self.step)
        return total

    def trace(self) -> Tensor:
        """Return tr H as (n,)."""
        frame = self._frame()
        total = self.bends[0] @ frame.square().sum(0) + self.low_rank.square().sum()
        for bend, rows in zip(self.bends[1:], self._rows(frame), strict=True):
            total = torch.add(total, (bend * rows.square().sum(1)).sum(-1), alpha=self.step)
        return total

    def _frame(self) -> Tensor:
        """Return (K_0 E)^T (d, m), or its factor R (m, m) where that makes the trace cheaper."""
        m, d = self.opening.shape
        # The factorisation takes the time of about 6 d m^2 operations; it saves 2 m^2 (d - m) for
        # each sample and layer.
        reduces = len(self.slopes[0]) * len(self.hidden) * (d - m) > 3 * d
        return triangular(self.opening.T) if reduces else self.opening.T.contiguous()

    def _rows(self, frame: Tensor) -> Iterator[Tensor]:
        """Yield Y_i^T (n, k, m), i = 1, ..., M, for a frame (k, m) in place of (K_0 E)^T.

        With the k columns ahead of the m rows, each product is one of two plain matrices.
        """
        jacobian = self.slopes[0][:, None] * frame
        yield (rows := linear(jacobian, self.hidden[0]))
        for slope, weight in zip(self.slopes[1:-1], self.hidden[1:], strict=True):
            jacobian = torch.addcmul(jacobian, slope[:, None], rows, value=self.step)
            yield (rows := linear(jacobian, weight))

    def _product(self, p: Tensor) -> Tensor:
        """Return H p for p (n, d) or (k, n, d): tangents through the layers and cotangents back."""
        tangent = opening = linear(p, self.opening)
        tangent = self.slopes[0] * tangent
        bent: list[Tensor] = []
        for bend, slope, weight in zip(self.bends[1:], self.slopes[1:], self.hidden, strict=True):
            row = linear(tangent, weight)
            bent.append(bend * row)
            if len(bent) < len(self.hidden):
                tangent = torch.addcmul(tangent, slope, row, value=self.step)
        back = bent[-1] @ self.hidden[-1]
        for force, slope, weight in zip(
            bent[-2::-1], self.slopes[-2:0:-1], self.hidden[-2::-1], strict=True
        ):
            back = back + torch.addcmul(force, slope, back, value=self.step) @ weight
        back = torch.addcmul(self.bends[0] * opening, self.slopes[0], back, value=self.step)
        return back @ self.opening + linear(p, self.low_rank) @ self.low_rank


def triangular(columns: Tensor) -> Tensor:
    """Return R (m, m) of Q R = columns (d, m), d > m, for functions of R^T R alone.

    Derivatives are right where the result depends on R^T R only, as lengths do: rotating R changes
    nothing then, so the gradient takes Q as constant and needs no inverse of R.
    """
    return _Triangular.apply(columns)[0]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]


class _Triangular(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(columns: Tensor) -> tuple[Tensor, Tensor]:
        q, r = torch.linalg.qr(columns)
        return r, q

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        columns, r, q = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return q @ grads[0]
        # The gradient will be differentiated, and Q depends on the columns: Q = columns R^-1. (The
        # derivative of a triangular solve would cut off what lies below R's diagonal.)
        return columns @ torch.linalg.solve(r, grads[0])
