"""Energy distance between samples of a flow and test points."""

from __future__ import annotations

import torch
from torch import Tensor

from flowzoo.judge.measure import Measure, Metric, quantile
from flowzoo.judge.pairs import (
    SAMPLES,
    Discrepancy,
    discrepancy,
    enough,
    membership,
    pair_sums,
    two_samples,
)
from flowzoo.judge.subject import Subject


class EnergyDistance(Metric):
    r"""Energy distance of samples y of the flow and test points x, without bandwidth or bias.

    2 E|x - y| - E|x - x'| - E|y - y'|, by means over pairs of different points, in units of the
    flow's coordinates; lower is better. It is zero for equal laws only; an estimate may be negative
    within its error. In one dimension it is 2 int (F - G)^2, the square of what
    `scipy.stats.energy_distance` returns (for samples, up to that one's bias).

    The parts: `sampling`, the standard error from the draw of both samples (see `discrepancy`); `n`
    and `m`, the numbers of test points and of samples.

    Arguments:
        samples: Samples m, and test points n at most.

    Raises:
        UserError: There are fewer than 4 samples.

    References:
        Szekely & Rizzo, Energy statistics: A class of statistics based on distances, Journal of
        Statistical Planning and Inference 2013
    """

    def __init__(self, samples: int = SAMPLES) -> None:
        self.samples = enough("energy-distance", samples)

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `energy-distance`; nothing for fewer than 4 test points."""
        both = two_samples(subject, self.samples)
        if both is None:
            return {}
        n, m = map(len, both)
        found = energy_distance(*both)
        error = quantile(min(n, m)) * found.sampling
        parts = {"sampling": found.sampling, "n": float(n), "m": float(m)}
        note = f"unbiased; {n} test points, {m} samples"
        measure = Measure(found.unbiased, error, "units", "lower", parts, note)
        return {"energy-distance": measure}


def energy_distance(x: Tensor, y: Tensor) -> Discrepancy:
    """Return 2 E|x - y| - E|x - x'| - E|y - y'| from two samples, biased and unbiased.

    Arguments:
        x: Points (n, d), float64.
        y: Points (m, d), float64.
    """
    sides = membership(len(x), len(y), x.device)
    sums, squares = pair_sums(torch.cat((x, y)), torch.Tensor.neg_, sides)
    return discrepancy(sums, squares, len(x), diagonal=0.0)
