"""The Jacobian of a velocity that is a multiple of a network plus a multiple of the place."""

from __future__ import annotations

from torch import Tensor

from flowzoo.maps import LinearMap


class Shifted(LinearMap):
    """c A + s I for numbers c and s, the same for all samples or one each.

    Arguments:
        a: The map.
        factor: The number c, () or (n,).
        shift: The number s, () or (n,).
        dim: Dimension d.
    """

    def __init__(self, a: LinearMap, factor: Tensor, shift: Tensor, dim: int) -> None:
        self.a, self.factor, self.shift, self.dim = a, factor, shift, dim
        self.symmetric = a.symmetric

    def vjp(self, p: Tensor) -> Tensor:
        """Return (c A + s I)^T p."""
        return self.factor[..., None] * self.a.vjp(p) + self.shift[..., None] * p

    def jvp(self, p: Tensor) -> Tensor:
        """Return (c A + s I) p."""
        return self.factor[..., None] * self.a.jvp(p) + self.shift[..., None] * p

    def dense(self) -> Tensor:
        """Return c A + s I as (n, d, d)."""
        scaled = self.factor[..., None, None] * self.a.dense()
        eye = scaled.new_ones(self.dim).diag()
        return scaled + self.shift[..., None, None] * eye

    def trace(self) -> Tensor | None:
        """Return c tr A + s d where A knows its own trace."""
        trace = self.a.trace()
        return None if trace is None else self.factor * trace + self.shift * self.dim
