"""Weights over time: in whose units an error of the regression is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from flowzoo_matching.parametrised import determinant
from flowzoo_matching.path import Quantity
from flowzoo_matching.schedule import Coefficients, Schedule

Weight = Literal["constant", "velocity", "data", "noise", "score", "min-snr"]

_EDGE = 1e-5  # closer to an end a quotient may be 0 / 0


def weights(
    weight: Weight, predicts: Quantity, schedule: Schedule, t: Tensor, clip: float
) -> Tensor:
    """Return w(t) as (n,), such that w |error of what is predicted|^2 is what `weight` says.

    An error of the data is (sigma / D) that of the velocity, with D = d_alpha sigma - alpha
    d_sigma, and -(sigma / alpha) that of the noise, and so on: at x_t they all say the same.
    `velocity`, `data`, `noise` and `score` count the error of that quantity; `min-snr` counts
    min(alpha^2 / sigma^2, clip) times that of the data.

    Arguments:
        weight: Whose units.
        predicts: What is predicted.
        schedule: alpha and sigma.
        t: Times (n,).
        clip: The largest weight of the data's error under `min-snr`.
    """
    if weight in ("constant", predicts):
        return t.new_ones(t.shape)
    at = schedule.at(t.clamp(_EDGE, 1 - _EDGE))
    if weight == "min-snr":
        snr = (at.alpha / at.sigma).square()
        return snr.clamp(max=clip) * _DATA_UNITS[predicts](at).square()
    return (_DATA_UNITS[predicts](at) / _DATA_UNITS[weight](at)).square()


# What an error is multiplied by to become one of the data, up to the sign.
_DATA_UNITS: dict[Quantity, Callable[[Coefficients], Tensor]] = {
    "velocity": lambda at: at.sigma / determinant(at),
    "data": lambda at: at.alpha.new_ones(at.alpha.shape),
    "noise": lambda at: at.sigma / at.alpha,
    "score": lambda at: at.sigma.square() / at.alpha,
}
