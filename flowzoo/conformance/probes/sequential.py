"""A sequential test that a mean is zero: is an estimator unbiased?

Draws are looked at after 32, 64, ..., 1024 of them. At each look every entry of the draws has its
t-interval, mean +- t s / sqrt(B), for the B draws so far:

- an entry whose interval misses zero is biased, and the test stops;
- when all intervals are narrower than +- 2/3 of the resolution, the mean is taken for zero, and the
  test stops.

False alarms: the quantile t spends alpha / (6 looks x entries) on each interval, two-sided, so that
by Bonferroni's inequality an unbiased estimator fails with probability at most alpha = 1e-6 per
test, over all looks and entries, whatever the dependence between them. The t-interval is exact for
normal draws; a draw should therefore be an average of many independent estimates.

Power: with a bias of one resolution, the test passes only if a mean is more than a third of the
resolution too small where its standard error is at most 2/3 of the resolution / t, with t > 5: a
deviation of more than 2.5 standard errors, so that it is missed with probability below 1 %.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.stats import t as student
from torch import Tensor

from flowzoo.conformance.check import Failed, Skipped, require

ALPHA = 1e-6
LOOKS = (32, 64, 128, 256, 512, 1024)
NARROW = 2 / 3  # of the resolution; the rest is the margin that gives the test its power
ROUNDING = 1e-10  # what a mean of exact values may be off by


def mean_is_zero(
    draw: Callable[[], Tensor], resolution: float, what: str, alpha: float = ALPHA
) -> str:
    """Return in a clause that the mean of independent draws is zero to a resolution.

    Arguments:
        draw: Gives one more independent draw, a tensor (m,) of errors, in units in which a bias
            of `resolution` matters; each an average of many estimates.
        resolution: The smallest bias that the test has to find.
        what: Subject of the sentence, as in `the estimate`.
        alpha: Probability of failing what is unbiased.

    Raises:
        Failed: An entry has another mean, or a draw is not finite.
        Skipped: The draws vary so much that the resolution was not reached.
    """
    draws: list[Tensor] = []
    half = torch.tensor(torch.inf)
    for look in LOOKS:
        draws += [draw().detach().double() for _ in range(look - len(draws))]
        mean, half = interval(torch.stack(draws), alpha / len(LOOKS))
        require(bool(mean.isfinite().all()), f"{what} is not finite")
        worst = int((mean.abs() / half).argmax())
        if mean[worst].abs() > half[worst]:
            raise Failed(
                f"{what} is biased by {float(mean[worst]):.2g} +- {float(half[worst]):.1g}, "
                f"after {look} draws (false alarms: {alpha:.0e})"
            )
        if half.max() <= NARROW * resolution:
            return f"bias of {what} within {float((mean.abs() + half).max()):.1e}, {look} draws"
    raise Skipped(
        f"{what} varies too much: after {LOOKS[-1]} draws its bias is known to "
        f"+- {float(half.max()):.1g} only, wanted {resolution:.0e}"
    )


def interval(draws: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return means and half widths (m,) of simultaneous t-intervals for draws (B, m).

    All m intervals hold together with probability 1 - alpha at least.
    """
    count, entries = draws.shape
    quantile = float(student.isf(alpha / (2 * entries), count - 1))
    return draws.mean(0), quantile * draws.std(0) / count**0.5 + ROUNDING
