"""A regularizer, a trace estimator and a listener in one file, without packaging."""

from __future__ import annotations

import torch
from torch import Tensor

from flowzoo.errors import Incompatible
from flowzoo.field import Point
from flowzoo.maps import LinearMap
from flowzoo.regularizers import RunningCost
from flowzoo.traces import Spectral, TraceEstimator

steps: list[int] = []


class Chebyshev(RunningCost):
    """The length of the trajectory in the maximum norm: the integral of max_i |v_i|."""

    def rate(self, at: Point, probes: Tensor | None) -> Tensor:
        """Return max_i |v_i|, (n,)."""
        return at.v.abs().amax(-1)


class Diagonal(TraceEstimator):
    """The trace as the sum of the diagonal, without randomness."""

    def probes(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Return None: nothing is random."""

    def __call__(self, a: LinearMap, probes: Tensor | None, fn: Spectral | None = None) -> Tensor:
        """Return tr A, (n,)."""
        if fn is not None:
            raise Incompatible("diagonal gives tr A alone")
        return a.dense().diagonal(dim1=-2, dim2=-1).sum(-1)


def flowzoo_components() -> dict[str, type]:
    """Return what this file offers."""
    return {"chebyshev": Chebyshev, "diagonal": Diagonal}


def flowzoo_step(step: int) -> None:
    """Remember the step."""
    steps.append(step)
