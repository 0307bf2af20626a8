"""Running costs of FFJORD's code, and the one of RNODE's that the frame does not have.

FFJORD's are root mean squares over dimensions, per sample, and not squared; they are kept as they
were published, unlike the frame's costs, which are sums. None of its papers uses them. All are
computed from the velocity and its exact Jacobian, whatever the trace estimator.

`transport` and `jacobian-frobenius` of the frame are RNODE's two costs, times d: RNODE's are means
over dimensions.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from flowzoo.field import Point
from flowzoo.regularizers import RunningCost


class RootMeanSquare(RunningCost):
    """The integral of a root mean square, |u|_2 / sqrt(size of u), per sample.

    Its gradient where u = 0 is taken to be zero.

    References:
        FFJORD's code (`cnf_regularization`), https://github.com/rtqichen/ffjord
    """

    @abstractmethod
    def of(self, at: Point) -> Tensor:
        """Return u, (n, ...)."""

    def rate(self, at: Point, probes: Tensor | None) -> Tensor:
        """Return the root mean square of u, as (n,)."""
        u = self.of(at).flatten(1)
        return torch.linalg.vector_norm(u, dim=1) / u.shape[1] ** 0.5


class L1(RunningCost):
    """The integral of |v|_1 / d: `l1int` of FFJORD's code.

    References:
        FFJORD's code (`cnf_regularization`), https://github.com/rtqichen/ffjord
    """

    def rate(self, at: Point, probes: Tensor | None) -> Tensor:
        """Return the mean of |v_j|, as (n,)."""
        return at.v.flatten(1).abs().mean(1)


class L2(RootMeanSquare):
    """The integral of |v|_2 / sqrt(d): `l2int` of FFJORD's code."""

    def of(self, at: Point) -> Tensor:
        """Return v."""
        return at.v


class Directional(RootMeanSquare):
    """The integral of |J^T v|_2 / sqrt(d): `dl2int` of FFJORD's code.

    The product along the velocity would be J v; the code has its transpose.
    """

    def of(self, at: Point) -> Tensor:
        """Return J^T v."""
        return at.jacobian.vjp(at.v)


class Frobenius(RootMeanSquare):
    """The integral of |J|_F / d: `JFrobint` of FFJORD's code."""

    def of(self, at: Point) -> Tensor:
        """Return J."""
        return at.jacobian.dense()


class Diagonal(RootMeanSquare):
    """The integral of |diag J|_2 / sqrt(d): what `JdiagFrobint` of FFJORD's code is meant to be.

    The code takes every d-th entry of J where the diagonal is every (d + 1)-th, and so has the
    first column.
    """

    def of(self, at: Point) -> Tensor:
        """Return the diagonal of J."""
        return at.jacobian.dense().diagonal(dim1=-2, dim2=-1)


class OffDiagonal(RunningCost):
    """The integral of (|J|_F^2 - |diag J|_2^2) / (d (d - 1)), after `JoffdiagFrobint`.

    A mean square, without the root of the others; in one dimension it is zero. FFJORD's code takes
    the first column for the diagonal, as in `Diagonal`.

    References:
        FFJORD's code (`cnf_regularization`), https://github.com/rtqichen/ffjord
    """

    def rate(self, at: Point, probes: Tensor | None) -> Tensor:
        """Return the mean square of J's entries off the diagonal, as (n,)."""
        jacobian = at.jacobian.dense()
        d = jacobian.shape[-1]
        diagonal = jacobian.diagonal(dim1=-2, dim2=-1)
        off = jacobian - torch.diag_embed(diagonal)
        return off.square().sum((-2, -1)) / max(1, d * (d - 1))


class DirectionalSquared(RunningCost):
    """The integral of |J^T v|^2 / 2: RNODE's `directional_derivative`, summed over dimensions.

    RNODE's code has the mean over dimensions, and the transpose of the product J v along the
    velocity. For a potential flow J is symmetric, and the two are the same.

    References:
        How to Train Your Neural ODE (Finlay, Jacobsen, Nurbekyan & Oberman, ICML 2020),
        https://arxiv.org/abs/2002.02798; its code
    """

    def rate(self, at: Point, probes: Tensor | None) -> Tensor:
        """Return |J^T v|^2 / 2, as (n,)."""
        return 0.5 * at.jacobian.vjp(at.v).square().sum(-1)
