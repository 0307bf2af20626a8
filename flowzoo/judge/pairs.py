"""Two samples compared by a kernel over all pairs of points, in pieces that fit in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from flowzoo.errors import UserError
from flowzoo.judge.subject import Subject

SAMPLES = 2000  # the same for all metrics on samples, so that they share one draw
FEWEST = 4  # points of a sample: two in each half, three for a jackknife
_ELEMENTS = 2**22  # of one block of a kernel matrix: 32 MB

Kernel: TypeAlias = Callable[[Tensor], Tensor]


def enough(metric: str, samples: int) -> int:
    """Return the number of samples of a metric.

    Raises:
        UserError: It is too small for a comparison.
    """
    if samples < FEWEST:
        raise UserError(f"samples of {metric} must be at least {FEWEST}, got {samples}")
    return samples


def two_samples(subject: Subject, samples: int) -> tuple[Tensor, Tensor] | None:
    """Return random test points (n, d) and samples of the flow (m, d), both float64.

    Arguments:
        subject: The flow and its test points.
        samples: How many samples m, and how many test points at most, n <= m.

    Returns:
        Both samples; None where there are fewer than 4 test points.
    """
    x = subject.places(subject.rows(samples))
    return None if len(x) < FEWEST else (x, subject.samples(samples))


def pair_sums(z: Tensor, kernel: Kernel, weights: Tensor) -> tuple[Tensor, float]:
    """Return K W (n, k) and the sum of K_ij^2, for K_ij = kernel(|z_i - z_j|) and K_ii = 0.

    In blocks of rows of K.

    Arguments:
        z: Points (n, d), float64.
        kernel: Distances -> values; it may overwrite its argument.
        weights: W (n, k), float64.
    """
    z = z - z.mean(0)  # so that products of coordinates cancel as little as they can
    sums, squares, start = [], 0.0, 0
    for rows in z.split(max(1, _ELEMENTS // len(z))):
        values = kernel(torch.cdist(rows, z))
        values.diagonal(offset=start).zero_()
        sums.append(values @ weights)
        squares += float(values.square_().sum())
        start += len(rows)
    return torch.cat(sums), squares


def membership(n: int, m: int, device: torch.device) -> Tensor:
    """Return in which of two samples the points of both are: columns of 0 and 1 (n + m, 2)."""
    first = (torch.arange(n + m, device=device) < n).double()
    return torch.stack((first, 1 - first), 1)


@dataclass(frozen=True)
class Discrepancy:
    r"""E k(x, x') + E k(y, y') - 2 E k(x, y) by samples: MMD^2 where k is positive definite.

    Arguments:
        biased: The V-statistic: means over all pairs, points with themselves included.
        unbiased: The U-statistic: pairs of different points only; may be negative.
        sampling: Standard error of the U-statistic, not too small also where it is near zero.
    """

    biased: float
    unbiased: float
    sampling: float


def discrepancy(sums: Tensor, squares: float, n: int, diagonal: float) -> Discrepancy:
    r"""Return the discrepancy of two samples from each point's sums of the kernel.

    With s_i the sum of k(x_i, x_l) over l other than i, and c_i that of k(x_i, y_j) over j, leaving
    out one point after the other (the jackknife) gives the variance

        var_i[2 s_i / (n - 2) - 2 c_i / m] / n

    from the first sample, and likewise from the second. Where the laws are equal or nearly so,
    these slopes are noise, and smallest when the statistic happens to be too low. Therefore the
    variance that the statistic has for equal laws is added,

        2 [1 / (n (n - 1)) + 1 / (m (m - 1)) + 2 / (n m)] E k~(z, z')^2,

    with k~ the centred kernel and the mean over pairs of all points. It is of second order: away
    from zero it does not matter, and at zero the sum is about three times the variance.

    Arguments:
        sums: Sums of the kernel over the first and over the second sample (n + m, 2), at each point
            of both, points with themselves left out.
        squares: Sum of the squared kernel over all pairs of different points.
        n: Size of the first sample, at least 3, as that of the second.
        diagonal: k(x, x).

    References:
        Efron & Stein, The Jackknife Estimate of Variance, Annals of Statistics 1981
        A Kernel Two-Sample Test (Gretton et al., JMLR 2012), lemma 6
        Partial Distance Correlation with Methods for Dissimilarities (Szekely & Rizzo, Annals of
        Statistics 2014), proposition 1, arXiv:1310.2926: the mean of the centred kernel's square
    """
    m = len(sums) - n
    (own_x, cross_x), (cross_y, own_y) = sums[:n].unbind(1), sums[n:].unbind(1)
    xx, yy, xy = (float(part.sum()) for part in (own_x, own_y, cross_x))
    cross = 2 * xy / (n * m)
    slopes = (2 * (own_x / (n - 2) - cross_x / m), 2 * (own_y / (m - 2) - cross_y / n))
    variance = sum(float(slope.var()) / len(slope) for slope in slopes)
    pairs = 2 * (1 / (n * (n - 1)) + 1 / (m * (m - 1)) + 2 / (n * m))
    return Discrepancy(
        (xx + n * diagonal) / n**2 + (yy + m * diagonal) / m**2 - cross,
        xx / (n * (n - 1)) + yy / (m * (m - 1)) - cross,
        math.sqrt(variance + pairs * _centred_square(sums.sum(1), squares)),
    )


def _centred_square(sums: Tensor, squares: float) -> float:
    """Return the mean of the centred kernel's square, without bias but for being at least 0."""
    n = len(sums)
    mean = squares - 2 * float(sums.square().sum()) / (n - 2)
    mean += float(sums.sum()) ** 2 / ((n - 1) * (n - 2))
    return max(mean / (n * (n - 3)), 0.0)
