"""The trace `finite-difference`: a divergence without derivatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowzoo.errors import Incompatible, UserError
from flowzoo.field import Point, Velocity
from flowzoo.maps import LinearMap
from flowzoo.traces import Hutchinson, Noise, Redraw, Spectral, TraceEstimator, require_least


class FiniteDifference(TraceEstimator):
    r"""Hutchinson's estimator with a difference quotient for the product with the Jacobian:

        div v(x) ~ mean of e . (v(x + sigma e) - v(x)) / sigma,    sigma = sigma0 / sqrt(d)

    One more evaluation of v for each probe, and no derivative in x at all. With Gaussian probes its
    mean is exactly the average of div v over N(x, sigma^2 I), by Stein's identity. Of a linear map
    the quotient is exact, so that there it is Hutchinson's estimate. A Jacobian penalty takes
    products of its own.

    As there, with as many probes as dimensions they are sqrt(d) e_i: forward differences, whose
    error is of order sigma0.

    Arguments:
        sigma0: sqrt(d) times the step sigma; the published code takes 0.02, or 0.01.
        noise: Law of the probes; the published one is Gaussian. Rademacher probes have half its
            standard deviation in two dimensions.
        samples: Number of probes.
        redraw: `solve` keeps the probes along a trajectory, `stage` draws new ones at each stage.
            The published code draws new ones at each step.

    Raises:
        Incompatible: There is no probe.
        UserError: sigma0 is not positive.

    References:
        Normalizing flow neural networks by JKO scheme (Xu, Cheng & Xie, NeurIPS 2023),
        https://arxiv.org/abs/2212.14424, and its code; Estimation of the Mean of a Multivariate
        Normal Distribution (Stein, 1981)
    """

    differentiates = False
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"noise": "rademacher", "samples": 3},
        {"sigma0": 0.001, "redraw": "stage"},
    )

    def __init__(
        self,
        sigma0: float = 0.02,
        noise: Noise = "gaussian",
        samples: int = 1,
        redraw: Redraw = "solve",
    ) -> None:
        if not sigma0 > 0:
            raise UserError(f"finite-difference: sigma0 must be positive, got {sigma0}")
        require_least("finite-difference", "samples", samples)
        self.hutchinson = Hutchinson(noise, samples, redraw)
        self.sigma0, self.redraw = sigma0, redraw

    def probes(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw (k, n, d) probes."""
        return self.hutchinson.probes(x, generator)

    def __call__(self, a: LinearMap, probes: Tensor | None, fn: Spectral | None = None) -> Tensor:
        """Return the mean over probes of e^T A e, as (n,)."""
        if fn is not None:
            raise Incompatible(
                "finite-difference estimates tr A alone; for a spectral function of A use slq or "
                "exact"
            )
        return self.hutchinson(a, probes)

    def divergence(
        self, velocity: Velocity, at: Point, probes: Tensor | None, context: Tensor | None = None
    ) -> Tensor:
        """Return the estimate of div v as (n,), from v beside the places."""
        assert probes is not None
        (k, n, d), t = probes.shape, at.t
        sigma = self.sigma0 / d**0.5
        places = (at.x + sigma * probes).reshape(k * n, d)
        given = None if context is None else context.repeat(k, 1)
        beside = velocity(t.repeat(k) if t.dim() else t, places, given)
        quotient = (beside.view(k, n, d) - at.v) / sigma
        return (probes * quotient).sum(-1).mean(0)
