"""A trace estimator that flowzoo does not have."""

from __future__ import annotations

import torch
from torch import Tensor

from flowzoo.errors import Incompatible
from flowzoo.maps import LinearMap
from flowzoo.traces import Spectral, TraceEstimator


class Sphere(TraceEstimator):
    """Hutchinson's estimator with probes on the sphere of radius sqrt(d).

    Arguments:
        samples: Number of probes.
    """

    def __init__(self, samples: int = 1) -> None:
        self.samples = samples

    def probes(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw (k, n, d) probes."""
        shape = (self.samples, *x.shape)
        p = torch.randn(shape, dtype=x.dtype, device=x.device, generator=generator)
        return p * (x.shape[-1] ** 0.5 / p.norm(dim=-1, keepdim=True))

    def __call__(self, a: LinearMap, probes: Tensor | None, fn: Spectral | None = None) -> Tensor:
        """Return the mean over probes of p^T A p, (n,)."""
        if fn is not None or probes is None:
            raise Incompatible("sphere estimates tr A alone")
        return (a.vjp(probes) * probes).sum(-1).mean(0)
