"""The Hessian of a network of convex units, and its products with vectors, in closed form.

With A_k = da_k/dx the Hessian of the potential is

    H = sum_k A_k^T diag(dF/dz_k s_k''(a_k)) A_k,

positive semidefinite term by term: no derivative of a derivative is taken. The tangents A_k go
forward through the units, dF/dz_k backward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowzoo.maps import LinearMap
from flowzoo_cp_flow.hessian import Wiring, dense
from flowzoo_cp_flow.units import Units


def expand(units: Units, x: Tensor) -> tuple[Tensor, Tensor, Curvature]:
    """Return the potential (n,), its gradient (n, d) and its Hessian at x (n, d)."""
    outputs: list[Tensor] = []
    slopes: list[Tensor] = []
    bends: list[Tensor] = []
    for unit in units.units:
        a = units.argument(unit, x, outputs)
        if unit.activation is None:
            outputs.append(a)
            continue
        z, slope, bend = unit.activation.derivatives(a)
        outputs.append(z)
        slopes.append(slope)
        bends.append(bend)
    pulled, q = units.pull(slopes, torch.ones_like(outputs[-1]))
    bends = [bend * z for bend, z in zip(bends, pulled, strict=True)]
    return outputs[-1][:, 0], units.leave(q), Curvature(units, slopes, bends)


class Curvature(LinearMap):
    """The Hessian of the potential of some units at points x, from what is known of them there.

    Arguments:
        units: The units.
        slopes: s_k'(a_k) (n, w_k) of all units but the last.
        bends: dF/dz_k s_k''(a_k) (n, w_k), nonnegative, likewise.
    """

    symmetric = True
    floor = 0.0

    def __init__(self, units: Units, slopes: Sequence[Tensor], bends: Sequence[Tensor]) -> None:
        self.units, self.slopes, self.bends = units, list(slopes), list(bends)

    def vjp(self, p: Tensor) -> Tensor:
        """Return H p: tangents forward, cotangents backward."""
        own = [bend * a for bend, a in zip(self.bends, self._tangents(p), strict=True)]
        return self.units.leave(self.units.pull(self.slopes, None, own)[1])

    def jvp(self, p: Tensor) -> Tensor:
        """Return H p."""
        return self.vjp(p)

    def dense(self) -> Tensor:
        """Return H as (n, d, d)."""
        plain = self.units.plain
        if plain is not None:
            skips, links = plain
            wiring = Wiring(tuple(tuple(source for source, _ in row) for row in links))
            weights = [p for row in links for _, p in row]
            return dense(wiring, [*self.slopes, *self.bends, *skips, *weights])
        n, d = len(self.slopes[0]), self.units.dim
        h = self.slopes[0].new_zeros(n, d, d)
        for a, bend in zip(self._columns(), self.bends, strict=True):
            a = a.expand(d, n, -1).transpose(0, 1)  # (n, d, w)
            h = torch.baddbmm(h, a * bend[:, None, :], a.mT)
        return h

    def trace(self) -> Tensor:
        """Return tr H as (n,), without the Gram matrices of `dense`."""
        each = zip(self._columns(), self.bends, strict=True)
        return torch.stack([(a.square().sum(0) * bend).sum(-1) for a, bend in each]).sum(0)

    def rows(self, index: Tensor) -> Curvature:
        """Return the Hessians of some samples."""
        bends, slopes = [b[index] for b in self.bends], [s[index] for s in self.slopes]
        return Curvature(self.units.of(index), slopes, bends)

    def _columns(self) -> list[Tensor]:
        """Return A_k (d, n, w_k), or with 1 for n."""
        like = self.slopes[0]
        return self._tangents(
            torch.eye(self.units.dim, dtype=like.dtype, device=like.device)[:, None, :]
        )

    def _tangents(self, p: Tensor) -> list[Tensor]:
        """Return A_k p (..., n, w_k) of all units but the last; 1 for n where p has it."""
        outputs: list[Tensor] = []
        found: list[Tensor] = []
        for k, entered in enumerate(self.units.enter(p)[:-1]):
            a = entered
            for source, weights in self.units.units[k].links:
                a = weights(outputs[source], a)
            assert a is not None
            found.append(a)
            outputs.append(a * self.slopes[k])
        return found
