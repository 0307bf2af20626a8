"""Maximum mean discrepancy between samples of a flow and test points, with its threshold."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from flowzoo.errors import UserError
from flowzoo.judge.measure import Measure, Metric, quantile
from flowzoo.judge.pairs import (
    SAMPLES,
    Discrepancy,
    Kernel,
    discrepancy,
    enough,
    membership,
    pair_sums,
    two_samples,
)
from flowzoo.judge.subject import Subject

Bandwidth = Literal["median", "one", "tenth"]

NAMES: dict[Bandwidth, str] = {"median": "mmd-m", "one": "mmd-1", "tenth": "mmd-c"}
LEVEL = 0.95  # of the permuted values that lie below tau
DEAD = 1e-3  # relative distance of tau from the mean of permuted values, of a kernel that sees
_MEDIAN = 4096  # points whose pairwise distances fit in 64 MB


class MMD(Metric):
    r"""Squared maximum mean discrepancy of samples y of the flow and test points x.

    MMD^2 = mean k(x_i, x_j) + mean k(y_i, y_j) - 2 mean k(x_i, y_j), k(x, y) = exp(-|x - y|^2 / (2
    s^2)), over all pairs, points with themselves included, as JKO-iFlow publishes it: a biased
    value, to be compared at equal sizes only, and with `tau`. It is in no unit; lower is better.

    The parts are `unbiased`, the same over pairs of different points; `tau`, the value that 95 % of
    random divisions of all points into two such samples stay below, so that a smaller value tells
    no difference from the data; `n` and `m`, the numbers of test points and of samples; `bandwidth`
    s; `sampling`, the standard error from the draw of both samples (see `discrepancy`). The error
    is that of the mean over draws at these sizes; with the same error `unbiased` estimates the
    MMD^2 of the two laws. A kernel so narrow that all points are far apart sees nothing; the note
    then says so.

    Arguments:
        bandwidth: `median` for s the median distance of test points (measure `mmd-m`); `one` for
            s = 1 (`mmd-1`); `tenth` for a tenth of the median (`mmd-c`, made for two dimensions).
        samples: Samples m, and test points n at most. The paper takes 10000.
        permutations: Random divisions for tau.

    Raises:
        UserError: An option is out of its range, or most test points coincide.

    References:
        Normalizing flow neural networks by JKO scheme (Xu, Cheng & Xie, NeurIPS 2023),
        arXiv:2212.14424, appendix
        A Kernel Two-Sample Test (Gretton et al., JMLR 2012)
    """

    def __init__(
        self, bandwidth: Bandwidth = "median", samples: int = SAMPLES, permutations: int = 200
    ) -> None:
        if bandwidth not in NAMES:
            known = ", ".join(get_args(Bandwidth))
            raise UserError(f"bandwidth of mmd is {bandwidth!r}; it must be one of {known}")
        if permutations < 20:
            raise UserError(
                f"permutations of mmd must be at least 20, for a 95 % threshold; got {permutations}"
            )
        self.bandwidth: Bandwidth = bandwidth
        self.samples, self.permutations = enough("mmd", samples), permutations

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `mmd-m`, `mmd-1` or `mmd-c`; nothing for fewer than 4 test points."""
        both = two_samples(subject, self.samples)
        if both is None:
            return {}
        x, y = both
        s = bandwidth_of(x, self.bandwidth)
        groups = divisions(len(x), len(y), self.permutations, subject.generator())
        found, permuted = mmd_squared(x, y, s, groups)
        tau, floor = float(permuted.quantile(LEVEL)), float(permuted.mean())
        note = f"squared, biased; {len(x)} test points, {len(y)} samples; below tau: no difference"
        if tau - floor < DEAD * floor:
            note = "squared, biased; the kernel is too narrow to tell any two samples apart"
        parts = {
            "sampling": found.sampling,
            "unbiased": found.unbiased,
            "tau": tau,
            "n": float(len(x)),
            "m": float(len(y)),
            "bandwidth": s,
        }
        error = quantile(min(len(x), len(y))) * found.sampling
        name = NAMES[self.bandwidth]
        return {name: Measure(found.biased, error, better="lower", parts=parts, note=note)}


def mmd_squared(x: Tensor, y: Tensor, s: float, groups: Tensor) -> tuple[Discrepancy, Tensor]:
    """Return MMD^2 of two samples, and the biased values of other divisions of their points.

    All from one product K S of the kernel matrix of all points with 0 and 1 for membership: sums
    over pairs are k_xx = sum(S * K S), k_xy = sum(K S) - k_xx, k_yy = sum(K) - k_xx - 2 k_xy.

    Arguments:
        x: Points (n, d), float64.
        y: Points (m, d), float64.
        s: Bandwidth of the kernel exp(-|x - y|^2 / (2 s^2)).
        groups: Indices, among the points of x and then y, of the first sample of each other
            division (b, n).

    Returns:
        The discrepancy, and the biased values (b,).
    """
    n, m = len(x), len(y)
    others = x.new_zeros(n + m, len(groups)).scatter_(0, groups.mT, 1.0)
    weights = torch.cat((membership(n, m, x.device), others), 1)
    every, squares = pair_sums(torch.cat((x, y)), gaussian(s), weights)
    sums, other_sums = every.split((2, len(groups)), 1)
    xx = (others * other_sums).sum(0)
    xy = other_sums.sum(0) - xx
    yy = sums.sum() - xx - 2 * xy
    values = (xx + n) / n**2 + (yy + m) / m**2 - 2 * xy / (n * m)  # k(x, x) = 1 is not in the sums
    return discrepancy(sums, squares, n, diagonal=1.0), values


def gaussian(s: float) -> Kernel:
    """Return the kernel exp(-r^2 / (2 s^2)) of a distance r, which it overwrites."""
    return lambda distance: distance.square_().mul_(-0.5 / s**2).exp_()


def divisions(n: int, m: int, count: int, generator: torch.Generator) -> Tensor:
    """Return random subsets of n among n + m points (count, n)."""
    order = torch.rand(count, n + m, generator=generator, device=generator.device).argsort(1)
    return order[:, :n]


def bandwidth_of(x: Tensor, rule: Bandwidth) -> float:
    """Return the bandwidth s of the kernel by a rule, from test points (n, d).

    Raises:
        UserError: The median distance is zero.
    """
    if rule == "one":
        return 1.0
    median = median_distance(x)
    if not median:
        raise UserError(
            "the median distance of the test points is 0, as most of them coincide; "
            "take bandwidth: one for mmd"
        )
    return median if rule == "median" else median / 10


def median_distance(x: Tensor) -> float:
    """Return the lower median of all distances |x_i - x_j|, the zeros |x_i - x_i| among them.

    It is taken over the first 4096 points where there are more.

    Arguments:
        x: Points (n, d).
    """
    n = min(len(x), _MEDIAN)
    # In order come n zeros, then the distance of each pair twice.
    place = ((n * n - 1) // 2 - n) // 2
    return float(torch.pdist(x[:n]).kthvalue(place + 1).values) if place >= 0 else 0.0
