"""A running cost that flowzoo does not have."""

from __future__ import annotations

from torch import Tensor

from flowzoo.field import Point
from flowzoo.regularizers import RunningCost


class Taxicab(RunningCost):
    """The length of the trajectory in the taxicab metric: the integral of sum_i |v_i|."""

    def rate(self, at: Point, probes: Tensor | None) -> Tensor:
        """Return sum_i |v_i|, (n,)."""
        return at.v.abs().sum(-1)
