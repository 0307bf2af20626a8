"""A preconditioner that all samples of a batch share: the factor of a mean of their maps."""

from __future__ import annotations

import torch
from torch import Tensor

from flowzoo.maps import LinearMap


class Congruent(LinearMap):
    """W A W^T for symmetric A and a constant W.

    Arguments:
        a: The maps.
        w: W (d, d), the same for all.
        floor: A lower bound of the spectrum, where one is known.
    """

    symmetric = True

    def __init__(self, a: LinearMap, w: Tensor, floor: float | Tensor | None = None) -> None:
        self.a, self.w, self.floor = a, w, floor

    def vjp(self, p: Tensor) -> Tensor:
        """Return W A W^T p."""
        return self.a.vjp(p @ self.w) @ self.w.mT

    def jvp(self, p: Tensor) -> Tensor:
        """Return W A W^T p."""
        return self.vjp(p)

    def dense(self) -> Tensor:
        """Return W A W^T as (n, d, d)."""
        return self.w @ self.a.dense() @ self.w.mT

    def rows(self, index: Tensor) -> Congruent | None:
        """Return those of some samples."""
        some = self.a.rows(index)
        return None if some is None else Congruent(some, self.w, self.floor)


def preconditioned(a: LinearMap, n: int, m: int) -> tuple[Congruent, Tensor]:
    """Return L^-1 A L^-T and 2 log det L, with L L^T the mean of A over m of n samples.

    L is constant. It is I where that mean is not positive definite.
    """
    with torch.no_grad():
        index = torch.linspace(0, n - 1, min(m, n)).round().long()
        some = a.rows(index)
        dense = a.dense()[index] if some is None else some.dense()
        mean = dense.mean(0)
        eye = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
        factor, failed = torch.linalg.cholesky_ex(mean)
        factor = torch.where(failed == 0, factor, eye)
        w = torch.linalg.solve_triangular(factor, eye, upper=False)
        floor = None
        if a.floor is not None:  # |W^T p|^2 >= |p|^2 / |L|^2, by a norm that is none too small
            floor = a.floor / (factor @ factor.mT).norm()
    return Congruent(a, w, floor), 2 * factor.diagonal().log().sum()
