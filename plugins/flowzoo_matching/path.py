"""Paths: what matching regresses on, a place and a velocity for every pair of data and noise.

Also the four equivalent ways of saying what a network knows at (t, x_t): the velocity, the data,
the noise, the score.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowzoo.errors import Incompatible
from flowzoo_matching.schedule import OT, Coefficients, Schedule

Quantity = Literal["velocity", "data", "noise", "score"]


@dataclass(frozen=True)
class PathSample:
    """Points on paths between pairs.

    Arguments:
        t: Times (n,).
        x: Places x_t (n, d).
        v: Velocities dx_t/dt (n, d) of these very paths: what the regression aims at. Their mean
            given (t, x_t) is the velocity that carries the data's law to the noise's.
        noise: The noise e (n, d) that the path has added of its own, or None.
        noise_scale: Its size gamma(t) (n,), or None. A regression of gamma s(t, x_t) on -e finds
            the score s, whatever the coupling.
    """

    t: Tensor
    x: Tensor
    v: Tensor
    noise: Tensor | None = None
    noise_scale: Tensor | None = None

    @property
    def score(self) -> Tensor | None:
        """The score of x_t given the pair, -e / gamma (n, d); None without a noise of the path's.

        It is infinite where gamma is 0. Its mean given (t, x_t) is the score of the law of x_t.
        """
        if self.noise is None or self.noise_scale is None:
            return None
        return -self.noise / self.noise_scale[:, None]


class ProbabilityPath(ABC):
    """A way from a data point (t = 0) to a noise point (t = 1).

    `t_range` is the part of [0, 1] that times should be drawn from. Paths that add a noise of their
    own derive from `flowzoo_matching.noisy.Noised`.
    """

    kind: ClassVar[str] = "path"
    checks: ClassVar[str] = "flowzoo_matching.conformance.path"
    t_range: tuple[float, float] = (0.0, 1.0)

    @abstractmethod
    def sample(
        self, t: Tensor, x: Tensor, z: Tensor, generator: torch.Generator | None = None
    ) -> PathSample:
        """Return places and velocities between data and noise.

        Arguments:
            t: Times (n,).
            x: Data (n, d).
            z: Noise (n, d).
            generator: Source of what a path draws of its own.
        """


class Affine(ProbabilityPath):
    """x_t = alpha(t) x + sigma(t) z, with velocity d_alpha x + d_sigma z.

    The velocity is written in x and z, never as a quotient by sigma, so it is exact wherever the
    schedule's derivatives are finite.

    Arguments:
        schedule: alpha and sigma; the straight line `ot` when left out.
        t_range: Times to draw from in place of the schedule's; rectified flow publishes [0, 0.999].

    Raises:
        Incompatible: `t_range` is not an interval inside [0, 1].

    References:
        Flow Matching for Generative Modeling (Lipman et al., ICLR 2023),
        https://arxiv.org/abs/2210.02747, section 4
    """

    def __init__(
        self, schedule: Schedule | None = None, t_range: tuple[float, float] | None = None
    ) -> None:
        self.schedule = OT() if schedule is None else schedule
        self.t_range = interval("affine", t_range, self.schedule.t_range)

    def sample(
        self, t: Tensor, x: Tensor, z: Tensor, generator: torch.Generator | None = None
    ) -> PathSample:
        """Return places and velocities at times t (n,), from data x (n, d) to noise z (n, d)."""
        at = self.schedule.at(t[:, None])
        return PathSample(
            t,
            torch.addcmul(at.alpha * x, at.sigma, z),
            torch.addcmul(at.d_alpha * x, at.d_sigma, z),
        )

    def convert(
        self, t: Tensor, x: Tensor, value: Tensor, given: Quantity, wanted: Quantity
    ) -> Tensor:
        """Return what is known at (t, x_t) in other words.

        With D = d_alpha sigma - alpha d_sigma, the ends that a velocity v implies are
        data = (sigma v - d_sigma x_t) / D and noise = (d_alpha x_t - alpha v) / D; the score is
        -noise / sigma, which holds for expectations over N(0, I) noise independent of the data.
        Where a division is by zero (data from noise where alpha = 0, noise from data and the score
        where sigma = 0) the result is not finite: there the one does not determine the other.

        Arguments:
            t: Times, () or (n,).
            x: Places x_t (n, d).
            value: The quantity `given`, (n, d).
            given: What `value` is.
            wanted: What is returned.

        References:
            Flow Matching Guide and Code (Lipman et al., 2024), https://arxiv.org/abs/2412.06264
        """
        return converted(self.schedule.at(t.reshape(-1, 1)), x, value, given, wanted)


def interval(
    name: str, given: tuple[float, float] | None, usual: tuple[float, float]
) -> tuple[float, float]:
    """Return the times that a path of this name draws from: those given, else the usual ones.

    Raises:
        Incompatible: They are no interval inside [0, 1].
    """
    low, high = usual if given is None else given
    if not 0 <= low < high <= 1:
        raise Incompatible(f"{name}: t_range must satisfy 0 <= low < high <= 1, got {low}, {high}")
    return low, high


def converted(
    at: Coefficients, x: Tensor, value: Tensor, given: Quantity, wanted: Quantity
) -> Tensor:
    """Return what is known at x_t = alpha data + sigma noise in other words; see `Affine.convert`.

    Arguments:
        at: alpha, sigma and their derivatives, (n, 1) or (1, 1).
        x: Places x_t (n, d).
        value: The quantity `given`, (n, d).
        given: What `value` is.
        wanted: What is returned.
    """
    if given == wanted:
        return value
    return _FROM_ENDS[wanted](at, *_TO_ENDS[given](at, x, value))


Ends = tuple[Tensor, Tensor]


def _ends_of_velocity(at: Coefficients, x: Tensor, v: Tensor) -> Ends:
    determinant = at.d_alpha * at.sigma - at.alpha * at.d_sigma
    data = (at.sigma * v - at.d_sigma * x) / determinant
    return data, (at.d_alpha * x - at.alpha * v) / determinant


def _ends_of_data(at: Coefficients, x: Tensor, data: Tensor) -> Ends:
    return data, (x - at.alpha * data) / at.sigma


def _ends_of_noise(at: Coefficients, x: Tensor, noise: Tensor) -> Ends:
    return (x - at.sigma * noise) / at.alpha, noise


def _ends_of_score(at: Coefficients, x: Tensor, score: Tensor) -> Ends:
    return _ends_of_noise(at, x, -at.sigma * score)


_TO_ENDS: dict[Quantity, Callable[[Coefficients, Tensor, Tensor], Ends]] = {
    "velocity": _ends_of_velocity,
    "data": _ends_of_data,
    "noise": _ends_of_noise,
    "score": _ends_of_score,
}

_FROM_ENDS: dict[Quantity, Callable[[Coefficients, Tensor, Tensor], Tensor]] = {
    "velocity": lambda at, data, noise: at.d_alpha * data + at.d_sigma * noise,
    "data": lambda at, data, noise: data,
    "noise": lambda at, data, noise: noise,
    "score": lambda at, data, noise: -noise / at.sigma,
}
