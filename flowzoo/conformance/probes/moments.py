"""Have draws the law that they should have? Moments, against their standard errors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowzoo.conformance.check import require

ERRORS = 5.0  # standard errors within which a mean must be: outside by chance once in 2 million


def standard_normal(z: Tensor, what: str) -> str:
    """Return how far moments of draws are from those of N(0, I), in standard errors.

    Compared are means, covariances, third and fourth moments.

    Arguments:
        z: Draws (n, d).
        what: Subject of the sentence, as in `T(x)`.

    Raises:
        Failed: One of them is too far off.
    """
    n, d = z.shape
    unit = torch.eye(d, dtype=z.dtype)
    moments = {
        "mean": z.mean(0) * n**0.5,
        "covariance": (z.mT @ z / n - unit) * (n / (1 + unit)).sqrt(),
        "third moment": z.pow(3).mean(0) * (n / 15) ** 0.5,
        "fourth moment": (z.pow(4).mean(0) - 3) * (n / 96) ** 0.5,
    }
    worst = {name: float(errors.abs().nan_to_num(nan=math.inf).max())
             for name, errors in moments.items()}  # fmt: skip
    for name, errors in worst.items():
        require(errors <= ERRORS, f"the {name} of {what} is {errors:.3g} errors from N(0, I)'s")
    largest = max(worst.values())
    return f"moments of {what} within {largest:.2g} errors of N(0, I)'s, allowed {ERRORS:g}"
