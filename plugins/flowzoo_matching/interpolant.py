"""Stochastic interpolants: a mean and a noise of the path's own, each by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from flowzoo.errors import Incompatible, UserError
from flowzoo.registry import suggest
from flowzoo_matching.noisy import NEAR_ENDS, Noised, Spread, brownian
from flowzoo_matching.path import interval
from flowzoo_matching.schedule import OT, Coefficients, Cosine

Mean = Literal["linear", "cosine", "trigonometric", "encoding-decoding"]
Gamma = Literal["brownian", "wide-brownian", "quadratic", "sine-squared", "zero"]


class Interpolant(Noised):
    """x_t = alpha(t) x + sigma(t) z + gamma(t) e, with gamma = 0 at both ends.

    | mean | alpha | sigma |
    |---|---|---|
    | `linear` | 1 - t | t |
    | `cosine` | cos(pi t / 2) | sin(pi t / 2) |
    | `trigonometric` | sqrt(1 - gamma^2) cos(pi t / 2) | sqrt(1 - gamma^2) sin(pi t / 2) |
    | `encoding-decoding` | cos(pi t)^2 for t < 1/2, else 0 | cos(pi t)^2 for t > 1/2, else 0 |

    | gamma | |
    |---|---|
    | `brownian` | sqrt(t (1 - t)) |
    | `wide-brownian` | sqrt(2 t (1 - t)) |
    | `quadratic` | t (1 - t) |
    | `sine-squared` | sin(pi t)^2 |
    | `zero` | 0: the mean alone |

    With `trigonometric` alpha^2 + sigma^2 + gamma^2 = 1, so data of unit variance keep it. The
    slopes of the two Brownian gammas are infinite at both ends; times are then drawn as for
    `bridge`, otherwise from [0, 1]. The score of a pair, -e / gamma, is infinite at the ends for
    every gamma.

    Arguments:
        mean: The way of the mean.
        gamma: The size of the noise.
        t_range: Times to draw from in place of those.

    Raises:
        UserError: An unknown mean or gamma.
        Incompatible: The two do not make a path with a velocity, or `t_range` is no interval inside
            [0, 1].

    References:
        Stochastic Interpolants: A Unifying Framework for Flows and Diffusions (Albergo, Boffi &
        Vanden-Eijnden, 2023), https://arxiv.org/abs/2303.08797, section 4
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"mean": "cosine", "gamma": "sine-squared"},
        {"mean": "trigonometric", "gamma": "wide-brownian"},
        {"mean": "trigonometric", "gamma": "quadratic"},
        {"mean": "encoding-decoding", "gamma": "sine-squared"},
        {"gamma": "zero"},
    )

    def __init__(
        self,
        mean: Mean = "linear",
        gamma: Gamma = "brownian",
        t_range: tuple[float, float] | None = None,
    ) -> None:
        for what, name, known in (("mean", mean, _MEANS), ("gamma", gamma, _SPREADS)):
            if name not in known:
                raise UserError(f"interpolant: unknown {what} '{name}'{suggest(name, known)}")
        if mean == "trigonometric" and gamma == "sine-squared":
            raise Incompatible(
                "interpolant: sqrt(1 - gamma^2) has a corner at t = 1/2 with gamma: sine-squared, "
                "so the trigonometric mean has no velocity there: choose another gamma"
            )
        if mean == "encoding-decoding" and gamma == "zero":
            raise Incompatible(
                "interpolant: with gamma: zero every encoding-decoding path is at 0 at t = 1/2: "
                "choose another gamma"
            )
        if mean == "encoding-decoding":
            self.unconvertible = (
                "interpolant: an encoding-decoding path holds nothing of the data after t = 1/2, "
                "so velocity, data, noise and score do not determine each other there: choose "
                "another mean"
            )
        self.mean, self.gamma = mean, gamma
        steep = gamma in ("brownian", "wide-brownian")
        self.t_range = interval("interpolant", t_range, NEAR_ENDS if steep else (0.0, 1.0))

    def at(self, t: Tensor) -> tuple[Coefficients, Spread]:
        """Return the mean's coefficients and the size of the noise."""
        own = _SPREADS[self.gamma](t)
        return _MEANS[self.mean](t, own), own


def _trigonometric(t: Tensor, own: Spread) -> Coefficients:
    at, left = Cosine().at(t), (1 - own.gamma.square()).sqrt()
    slope = -own.growth / left
    return Coefficients(
        left * at.alpha,
        left * at.sigma,
        slope * at.alpha + left * at.d_alpha,
        slope * at.sigma + left * at.d_sigma,
    )


def _encoding_decoding(t: Tensor, own: Spread) -> Coefficients:
    size, slope = (math.pi * t).cos().square(), -math.pi * (2 * math.pi * t).sin()
    early, none = t < 0.5, torch.zeros_like(t)
    return Coefficients(
        torch.where(early, size, none),
        torch.where(early, none, size),
        torch.where(early, slope, none),
        torch.where(early, none, slope),
    )


def _quadratic(t: Tensor) -> Spread:
    gamma, slope = t * (1 - t), 1 - 2 * t
    return Spread(gamma, slope, gamma * slope)


def _sine_squared(t: Tensor) -> Spread:
    gamma, slope = (math.pi * t).sin().square(), math.pi * (2 * math.pi * t).sin()
    return Spread(gamma, slope, gamma * slope)


def _zero(t: Tensor) -> Spread:
    none = torch.zeros_like(t)
    return Spread(none, none, none)


_MEANS: dict[str, Callable[[Tensor, Spread], Coefficients]] = {
    "linear": lambda t, own: OT().at(t),
    "cosine": lambda t, own: Cosine().at(t),
    "trigonometric": _trigonometric,
    "encoding-decoding": _encoding_decoding,
}

_SPREADS: dict[str, Callable[[Tensor], Spread]] = {
    "brownian": brownian,
    "wide-brownian": lambda t: brownian(t, 2.0),
    "quadratic": _quadratic,
    "sine-squared": _sine_squared,
    "zero": _zero,
}
