"""The Jacobian of a layered network in closed form: J = A_L D_{L-1} A_{L-1} ... D_1 A_1.

A_l are the layers' linear parts at time t, D_l the diagonals of the activations' slopes. All is
made of the activations of one forward pass by ordinary products, so that nothing is differentiated
twice: gradients are taken through these products by automatic differentiation, once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from flowzoo.maps import LinearMap
from flowzoo_ffjord.layers import Affine


class LayeredJacobian(LinearMap):
    """A_L D_{L-1} ... D_1 A_1 for n samples.

    What follows v, with layers of width h: a product costs as much as v itself. A trace costs
    O((n + d) h^2) with two hidden layers, O((n + d) h) with one, and with more O(n d h^2) and
    memory for n d h numbers.

    Arguments:
        maps: A_1 to A_L, the layers at time t, as functions of x alone.
        slopes: The diagonals of D_1 to D_{L-1}, each (n, h).
        n: Number of samples.
    """

    def __init__(self, maps: Sequence[Affine], slopes: Sequence[Tensor], n: int) -> None:
        self.maps, self.slopes, self.n = maps, slopes, n
        self._last: tuple[Tensor, Tensor, bool] | None = None
        self._whole: Tensor | None = None

    def vjp(self, p: Tensor) -> Tensor:
        """Return J^T p by one sweep backwards; the product with the same probes is shared."""
        records = torch.is_grad_enabled()  # what was not recorded serves no derivative
        if self._last is None or self._last[0] is not p or self._last[2] < records:
            out = self.maps[-1].pull(p)
            for layer, slope in zip(reversed(self.maps[:-1]), reversed(self.slopes), strict=True):
                out = layer.pull(out * slope)
            self._last = (p, out, records)
        return self._last[1]

    def jvp(self, p: Tensor) -> Tensor:
        """Return J p by one sweep forwards."""
        return self.maps[-1].push(self._tangents(p) if self.slopes else p)

    def dense(self) -> Tensor:
        """Return J as (n, d, d): the tangents of all basis vectors in one sweep, made once."""
        if self._whole is None:
            columns = self.jvp(self._basis())
            d = columns.shape[0]
            self._whole = columns.expand(d, self.n, d).permute(1, 2, 0)
        return self._whole

    def trace(self) -> Tensor | None:
        """Return tr J as (n,) where the layers' weights are the same for all samples, else None."""
        if any(layer.gates is not None for layer in self.maps):
            return None
        weights = [layer.weights[0] for layer in self.maps]
        if len(weights) == 1:
            return weights[0].diagonal().sum().expand(self.n)
        if len(weights) == 2:  # tr(A2 D1 A1) = sum_h (D1)_h (A1 A2)_hh
            return self.slopes[0] @ (weights[0] * weights[1].T).sum(1)
        if len(weights) == 3:  # tr(A3 D2 A2 D1 A1) = d2^T (A2 * (A1 A3)^T) d1
            core = weights[1] * (weights[0] @ weights[2]).T
            return ((self.slopes[1] @ core) * self.slopes[0]).sum(-1)
        return _trace_of_many(weights, self.slopes)

    def _basis(self) -> Tensor:
        first = self.maps[0].weights[0]
        return torch.eye(first.shape[1], dtype=first.dtype, device=first.device)[:, None, :]

    def _tangents(self, u: Tensor) -> Tensor:
        """Return D_{L-1} A_{L-1} ... D_1 A_1 u: what enters the last layer."""
        for layer, slope in zip(self.maps[:-1], self.slopes, strict=True):
            u = layer.push(u) * slope
        return u


def _trace_of_many(weights: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
    """Return tr(W_L D_{L-1} ... D_1 W_1) as (n,), for L > 3.

    Columns from the right and rows from the left meet at one D. Those of D_1 and of D_{L-1} are in
    one product with all samples each, so that no column is scaled sample by sample.
    """
    first, second, *middle, before, last = weights
    (n, h), d, k = slopes[0].shape, len(last), len(middle)
    into = (second * first.T[:, None, :]).reshape(-1, h)  # the W_2 diag(W_1 e_i), stacked
    columns = linear(slopes[0], into).view(n, d, -1)
    for weight, slope in zip(middle, slopes[1 : k + 1], strict=True):
        columns = linear(columns * slope[:, None, :], weight)
    out_of = (last.T[:, :, None] * before[:, None, :]).reshape(len(before), -1)
    rows = (slopes[-1] @ out_of).view(n, d, -1)  # e_i^T W_L D_{L-1} W_{L-1}
    return ((columns * rows).sum(1) * slopes[k + 1]).sum(-1)


class MinusIdentity(LinearMap):
    """A - I: the Jacobian of v(x) - x.

    Arguments:
        a: The map A.
        dim: Its dimension d.
    """

    def __init__(self, a: LinearMap, dim: int) -> None:
        self.a, self.dim, self.symmetric = a, dim, a.symmetric

    def vjp(self, p: Tensor) -> Tensor:
        """Return A^T p - p."""
        return self.a.vjp(p) - p

    def jvp(self, p: Tensor) -> Tensor:
        """Return A p - p."""
        return self.a.jvp(p) - p

    def dense(self) -> Tensor:
        """Return A - I as (n, d, d)."""
        a = self.a.dense()
        return a - torch.eye(self.dim, dtype=a.dtype, device=a.device)

    def trace(self) -> Tensor | None:
        """Return tr A - d where the map knows its trace."""
        trace = self.a.trace()
        return None if trace is None else trace - self.dim
