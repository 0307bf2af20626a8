"""Convex functions whose gradient is inverted in closed form, for the checks of inversions."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from flowzoo.conformance.probes.known import Known
from flowzoo_cp_flow.convex import Convex, ConvexPoint

Shape: TypeAlias = Literal["bowl", "cosh", "cone"]
SHAPES: tuple[Shape, ...] = ("bowl", "cosh", "cone")


class Separable(Convex):
    """F(x) = sum_i s(u_i) with u = R x + K c: grad F = R^T s'(u), inverted entry by entry.

    | shape | s | grad F |
    |---|---|---|
    | `bowl` | u^2 / 2 | linear |
    | `cosh` | cosh u | grows exponentially |
    | `cone` | sqrt(1 + u^2) | bounded: `inverse` is nan beyond |

    Arguments:
        dim: Dimension d.
        shape: s.
        context_dim: Width of the context.
        dtype: Precision of R and K.
        closed: Whether `at` has closed forms; without, Hessians are those of autograd, which offer
            no rows.
    """

    def __init__(
        self,
        dim: int = 3,
        shape: Shape = "cosh",
        context_dim: int = 0,
        dtype: torch.dtype = torch.float64,
        closed: bool = True,
    ) -> None:
        super().__init__()
        self.dim, self.context_dim, self.closed = dim, context_dim, closed
        self.shape: Shape = shape
        draws = torch.Generator().manual_seed(3)
        rest = torch.randn(dim, dim + context_dim, generator=draws, dtype=torch.float64)
        rest = (0.4 / dim**0.5 * rest).to(dtype)
        self.r = nn.Parameter(rest[:, :dim] + torch.eye(dim, dtype=dtype))
        self.k = nn.Parameter(rest[:, dim:])

    @property
    def floor(self) -> float:
        """A lower bound of the Hessian's eigenvalues."""
        least = float(torch.linalg.matrix_norm(self.r.detach(), -2)) ** 2
        return 0.0 if self.shape == "cone" else least

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return F(x) as (n,)."""
        return self._parts(x, context)[0]

    def at(self, x: Tensor, context: Tensor | None = None) -> ConvexPoint:
        """Return value, gradient and Hessian at x."""
        if not self.closed:
            return super().at(x, context)
        value, slope, curvature = self._parts(x, context)
        hessian = Known((self.r.mT * curvature[:, None, :]) @ self.r, True, floor=self.floor)
        return ConvexPoint(value, slope @ self.r, hessian)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return x with grad F(x) = z, differentiable in everything."""
        v = torch.linalg.solve(self.r.mT, z.mT).mT
        u = {"bowl": v, "cosh": torch.asinh(v), "cone": v / (1 - v * v).sqrt()}[self.shape]
        return torch.linalg.solve(self.r, (u - self._shift(context)).mT).mT

    def _parts(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        u = x @ self.r.mT + self._shift(context)
        if self.shape == "bowl":
            return 0.5 * u.square().sum(-1), u, torch.ones_like(u)
        if self.shape == "cosh":
            return u.cosh().sum(-1), u.sinh(), u.cosh()
        root = (1 + u * u).sqrt()
        return root.sum(-1), u / root, root**-3

    def _shift(self, context: Tensor | None) -> Tensor | float:
        return 0.0 if context is None else context @ self.k.mT
