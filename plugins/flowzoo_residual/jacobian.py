r"""The Jacobian of a perceptron in closed form, and what is needed of the identity plus it.

J = A_L D_{L-1} A_{L-1} ... D_1 A_1, with D_l the diagonals of the activations' slopes. Cut at any
layer into J = P Q, it has by Sylvester's and by Woodbury's identity

    log abs det(I + P Q) = log abs det(I + Q P),    (I + P Q)^-1 = I - P (I + Q P)^-1 Q,

so that the matrices to be factored are as wide as the narrowest layer, the input being one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from flowzoo.maps import LinearMap

BLOCK = 2**20  # numbers in the largest of the products at once: more leave the cache


class NetworkJacobian(LinearMap):
    """A_L D_{L-1} ... D_1 A_1 for n samples.

    Arguments:
        weights: A_1 to A_L.
        slopes: The diagonals of D_1 to D_{L-1}, each (n, h).
        n: Number of samples.
    """

    def __init__(self, weights: Sequence[Tensor], slopes: Sequence[Tensor], n: int) -> None:
        self.weights, self.slopes, self.n = tuple(weights), tuple(slopes), n
        widths = [w.shape[1] for w in weights]
        self.cut = widths.index(min(widths))

    def jvp(self, p: Tensor) -> Tensor:
        """Return J p."""
        return self._leave(self._enter(p))

    def vjp(self, p: Tensor) -> Tensor:
        """Return J^T p."""
        p = p @ self.weights[-1]
        for w, slope in zip(reversed(self.weights[:-1]), reversed(self.slopes), strict=True):
            p = (p * slope) @ w
        return p

    def dense(self) -> Tensor:
        """Return J as (n, d, d)."""
        return _product(self.weights, (*self.slopes, None), self.n).mT

    def log_abs_det(self) -> Tensor:
        """Return log abs det(I + J) as (n,).

        What does not fit in a block is computed block by block, and again in the backward pass.
        """
        weights, slopes = self._around()
        numbers = weights[0].shape[1] * max(len(w) for w in weights)
        size = max(1, BLOCK // numbers)
        if self.n <= size:
            return _log_abs_det(weights, slopes, self.n)
        parts = []
        for start in range(0, self.n, size):
            rows = [None if s is None else s[start : start + size] for s in slopes]
            part = partial(_log_abs_det, weights, rows, min(size, self.n - start))
            recorded = torch.is_grad_enabled()
            parts.append(
                checkpoint(part, use_reentrant=False, preserve_rng_state=False)
                if recorded
                else part()
            )
        return torch.cat(parts)

    def solve(self, r: Tensor) -> Tensor:
        """Return (I + J)^-1 r as (n, d); not finite where I + J is singular."""
        weights, slopes = self._around()
        matrix = _plus_identity(_product(weights, slopes, self.n).mT)
        inner = torch.linalg.solve_ex(matrix, self._enter(r)[..., None])[0]
        return r - self._leave(inner[..., 0])

    def _enter(self, p: Tensor) -> Tensor:
        """Return Q p: the layers before the cut."""
        for w, slope in zip(self.weights[: self.cut], self.slopes, strict=False):
            p = linear(p, w) * slope
        return p

    def _leave(self, p: Tensor) -> Tensor:
        """Return P p: the layers after it."""
        for w, slope in zip(self.weights[self.cut : -1], self.slopes[self.cut :], strict=True):
            p = linear(p, w) * slope
        return linear(p, self.weights[-1])

    def _around(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return the factors of Q P, first to last, and the diagonals after each."""
        weights, slopes, cut = self.weights, self.slopes, self.cut
        if not cut:
            return list(weights), [*slopes, None]
        seam = weights[0] @ weights[-1]  # no diagonal lies between the last layer and the first
        return [*weights[cut:-1], seam, *weights[1:cut]], [*slopes[cut:], *slopes[:cut]]


def _product(weights: Sequence[Tensor], slopes: Sequence[Tensor | None], n: int) -> Tensor:
    """Return the transposed product D_m A_m ... D_1 A_1 as (n, columns of A_1, rows of A_m)."""
    first, *rest = weights
    out = first.T.expand(n, *first.T.shape)
    for w, slope in zip((None, *rest), slopes, strict=True):
        # As one matrix: torch might take n small products instead.
        out = out if w is None else linear(out.flatten(0, 1), w).unflatten(0, out.shape[:2])
        out = out if slope is None else out * slope[:, None, :]
    return out


def _plus_identity(a: Tensor) -> Tensor:
    return a + torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def _log_abs_det(weights: Sequence[Tensor], slopes: Sequence[Tensor | None], n: int) -> Tensor:
    return torch.linalg.slogdet(_plus_identity(_product(weights, slopes, n))).logabsdet
