"""JKO steps between Gaussians in closed form: what a perfectly trained block does to N(m, diag v).

The target is N(0, I). In every eigen-direction of the covariance the step of size h that minimises

    J(T) = E[ |T(x)|^2 / 2 - log T'(x) + |x - T(x)|^2 / (2 h) ]

is affine, T(x) = m' + a (x - m), with

    J = (m'^2 + a^2 v) / 2 - log a + ((m - m')^2 + (1 - a)^2 v) / (2 h),

so m' = m / (1 + h), and the slope a solves a^2 v (1 + 1/h) - a v / h - 1 = 0.

References:
    Xu, Cheng & Xie, Normalizing flow neural networks by JKO scheme, 2023, arXiv 2212.14424: the
    block's objective, and the reparametrisation in section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

F64 = torch.float64
GOLDEN = Path(__file__).parent / "golden" / "jko" / "gaussian.npz"


def golden():
    with np.load(GOLDEN) as stored:
        return {key: torch.from_numpy(np.asarray(stored[key])) for key in stored.files}


def gaussian_step(mean: Tensor, var: Tensor, h: float) -> tuple[Tensor, Tensor, Tensor]:
    """One step from N(mean, var), each (d,): the new mean, the new variance, and the slope of T."""
    part = var / h
    slope = (part + (part.square() + 4 * (var + part)).sqrt()) / (2 * (var + part))
    return mean / (1 + h), slope.square() * var, slope


def half_movement(mean: Tensor, var: Tensor, h: float) -> Tensor:
    """1/2 E|x - T(x)|^2 of the step of size h from N(mean, var), summed over dimensions: ()."""
    moved, _, slope = gaussian_step(mean, var, h)
    return 0.5 * ((moved - mean).square() + (1 - slope).square() * var).sum()


def kl_to_normal(mean: Tensor, var: Tensor) -> Tensor:
    """KL(N(mean, var) || N(0, I)) in nats, ()."""
    return 0.5 * (var + mean.square() - 1 - var.log()).sum()


def objective(mean: Tensor, var: Tensor, h: float, moved: Tensor, slope: Tensor) -> Tensor:
    """J of the map with T(x) = moved + slope (x - mean), ()."""
    kept = 0.5 * (moved.square() + slope.square() * var) - slope.log()
    movement = (moved - mean).square() + (1 - slope).square() * var
    return (kept + movement / (2 * h)).sum()


@dataclass(frozen=True)
class GaussianChain:
    """What K steps do, beginning with N(mean, var).

    Arguments:
        means: Means (K + 1, d), the first before any step.
        variances: Variances (K + 1, d).
        slopes: Slopes of the maps (K, d).
        half_movements: 1/2 E|x - T_k(x)|^2 of each step (K,).
        kl: KL to N(0, I) after each step (K,), in nats.
    """

    means: Tensor
    variances: Tensor
    slopes: Tensor
    half_movements: Tensor
    kl: Tensor

    @property
    def movements(self) -> Tensor:
        """Root mean square movement S_k = (E|x - T_k(x)|^2)^(1/2) of each step (K,)."""
        return (2 * self.half_movements).sqrt()

    @property
    def unevenness(self) -> float:
        """Standard deviation of the movements, with K in its denominator, over their mean."""
        return float(self.movements.std(correction=0) / self.movements.mean())


def gaussian_chain(mean: Tensor, var: Tensor, steps: list[float]) -> GaussianChain:
    """Make the steps of these sizes, one after the other."""
    means, variances, slopes, moved = [mean], [var], [], []
    for h in steps:
        moved.append(half_movement(means[-1], variances[-1], h))
        mean, var, slope = gaussian_step(means[-1], variances[-1], h)
        means.append(mean)
        variances.append(var)
        slopes.append(slope)
    kl = [kl_to_normal(m, v) for m, v in zip(means[1:], variances[1:], strict=True)]
    return GaussianChain(*map(torch.stack, (means, variances, slopes, moved, kl)))


def schedule(first: float, growth: float, blocks: int, largest: float = float("inf")):
    """h_k = min(first growth^k, largest)."""
    return [min(first * growth**k, largest) for k in range(blocks)]


def reparametrised_steps(steps, movements, eta=0.5, largest=5.0) -> list[float]:
    """h <- min(h + eta (h mean(S) / S - h), largest), for movements S of step sizes h."""
    h, s = (torch.as_tensor(each, dtype=F64) for each in (steps, movements))
    return (h + eta * (h * s.mean() / s - h)).clamp(max=largest).tolist()


def reparametrised_chain(mean, var, steps, rounds, eta=0.5, largest=5.0):
    """Perfect training and reparametrisation in turn: the last step sizes and their chain."""
    for _ in range(rounds):
        movements = gaussian_chain(mean, var, steps).movements
        steps = reparametrised_steps(steps, movements, eta, largest)
    return steps, gaussian_chain(mean, var, steps)
