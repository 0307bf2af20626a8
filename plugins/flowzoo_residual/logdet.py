r"""Estimates of log det(I + J) from products with J, for spectral radii of J below 1.

log det(I + J) = sum_k (-1)^(k+1) tr(J^k) / k, whose traces are estimated by probes p, as the means
of p^T J^k p.

References:
    Invertible Residual Networks (Behrmann et al., ICML 2019), https://arxiv.org/abs/1811.00995;
    Residual Flows for Invertible Generative Modeling (Chen, Behrmann, Duvenaud & Jacobsen, NeurIPS
    2019), https://arxiv.org/abs/1906.02735
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flowzoo.maps import LinearMap


def series(a: LinearMap, probes: Tensor, terms: int) -> Tensor:
    """Return the first terms of the series as (n,): i-ResNet's estimate.

    Its bias is what is cut off, at most d r^(terms + 1) / ((terms + 1) (1 - r)) for a norm r of J.
    """
    return _sum(a, probes, [1.0] * terms)


def neumann(a: LinearMap, probes: Tensor, weights: Sequence[float]) -> Tensor:
    r"""Return an estimate (n,) without bias, with the gradient of Residual Flow's Neumann series.

    The gradient is tr((I + J)^-1 dJ) = E[y^T dJ p] with y^T = sum_k (-1)^k w_k p^T J^k, w_0 = 1 and
    y held constant: of all products only one is differentiated. What Residual Flow takes for the
    value, y^T J p, lacks the 1 / k and is no log-determinant. Here the value is the series with
    the same weights and the same probes, so that both are right in the mean.

    Arguments:
        a: J.
        probes: (k, n, d).
        weights: w_1 ... w_m of the terms (`roulette`).
    """
    with torch.no_grad():
        p, y, value = probes, probes.clone(), probes.new_zeros(probes.shape[1])
        for k, weight in enumerate(weights, 1):
            p = a.vjp(p)
            value += -((-1) ** k) * weight / k * _form(p, probes)
            y += (-1) ** k * weight * p
    if not torch.is_grad_enabled():
        return value
    slope = _form(a.vjp(y), probes)
    return value + (slope - slope.detach())


def roulette(exact: int, rate: float, generator: torch.Generator | None = None) -> list[float]:
    """Return weights of terms 1 ... exact + N for a Poisson number N, whose sums have no bias.

    A term k is taken with the probability P(N >= k - exact), and weighs as much more.

    Arguments:
        exact: Number of terms that are always taken.
        rate: Mean of N.
        generator: Source of N.
    """
    device = None if generator is None else generator.device
    mean = torch.tensor(rate, dtype=torch.float32, device=device)
    drawn = torch.poisson(mean, generator=generator)
    more = int(drawn)  # how many products follow: an accelerator has to be asked
    weights, left, chance = [1.0] * exact, 1.0, math.exp(-rate)
    for k in range(1, more + 1):
        left -= chance  # P(N >= k)
        chance *= rate / k
        weights.append(1 / left)
    return weights


def _sum(a: LinearMap, probes: Tensor, weights: Sequence[float]) -> Tensor:
    p, total = probes, probes.new_zeros(probes.shape[1])
    for k, weight in enumerate(weights, 1):
        p = a.vjp(p)
        total = total - (-1) ** k * weight / k * _form(p, probes)
    return total


def _form(p: Tensor, probes: Tensor) -> Tensor:
    """Return the mean over probes of p . probe, as (n,)."""
    return (p * probes).sum(-1).mean(0)
