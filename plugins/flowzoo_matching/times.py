"""Laws of time: how often a regression looks at which part of the way from data to noise.

All are laws on [0, 1] with data at 0, which an objective stretches over the range of its path. Most
matching codes run the other way: a law of theirs is the law of 1 - t here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowzoo.errors import Incompatible, UserError
from flowzoo.registry import suggest


@dataclass(frozen=True)
class Drawn:
    """Times, and how likely they were.

    Arguments:
        t: Times in [0, 1], (n,).
        density: The density of the law at them (n,); 1 where it is uniform.
    """

    t: Tensor
    density: Tensor


class TimeLaw(ABC):
    """A law of times on [0, 1]: data at 0, noise at 1."""

    kind: ClassVar[str] = "times"
    checks: ClassVar[str] = "flowzoo_matching.conformance.times"

    @abstractmethod
    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Drawn:
        """Draw a time for each row of x (n, d), of its dtype and on its device."""


class Uniform(TimeLaw):
    """All times alike, drawn independently."""

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Drawn:
        """Draw a time for each row of x (n, d)."""
        t = _uniform(x, generator)
        return Drawn(t, torch.ones_like(t))


class Stratified(TimeLaw):
    """All times alike, one in each n-th of [0, 1] for a batch of n: the mean varies less."""

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Drawn:
        """Draw a time for each row of x (n, d)."""
        # Shuffled: rows that come in the same order must not see the same times every time.
        strata = torch.randperm(x.shape[0], device=x.device, generator=generator)
        t = (strata + _uniform(x, generator)) / x.shape[0]
        return Drawn(t, torch.ones_like(t))


class LogitNormal(TimeLaw):
    """t = sigmoid(mean + std e) with e ~ N(0, 1): mostly the middle, hardly ever the ends.

    The ends are what sharpens a likelihood. The reciprocal of the density is not square integrable,
    so a loss that is divided by it has an infinite variance. flow_matching's skewed law is mean
    -1.2 and std 1.2 in this direction of time.

    Arguments:
        mean: Mean of the logit; positive moves towards the noise.
        std: Standard deviation of the logit.

    Raises:
        Incompatible: `std` is not positive.

    References:
        Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., ICML
        2024), https://arxiv.org/abs/2403.03206, section 3.1
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"mean": -0.5, "std": 0.6})

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        if not std > 0:
            raise Incompatible(f"logit-normal: std must be positive, got {std}")
        self.mean, self.std = mean, std

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Drawn:
        """Draw a time for each row of x (n, d)."""
        e = torch.randn(x.shape[0], dtype=x.dtype, device=x.device, generator=generator)
        return self.at(e)

    def at(self, e: Tensor) -> Drawn:
        """Return the times that standard normal numbers e (n,) make."""
        logit = self.mean + self.std * e
        t = logit.sigmoid()
        slope = self.std * t * (-logit).sigmoid()  # dt/de, with 1 - t before it is rounded
        return Drawn(t, (-0.5 * e.square()).exp() / (math.sqrt(2 * math.pi) * slope))


class Beta(TimeLaw):
    """Density proportional to t^(a - 1) (1 - t)^(b - 1).

    Arguments:
        a: The exponent at the data, plus 1; below 1 the density is infinite there.
        b: The same at the noise.

    Raises:
        Incompatible: `a` or `b` is not positive.

    References:
        pi_0: A Vision-Language-Action Flow Model for General Robot Control (Black et al., 2024),
        https://arxiv.org/abs/2410.24164: a = 1.5, b = 1, cut off at 0.999
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"a": 0.5, "b": 0.7})

    def __init__(self, a: float = 1.5, b: float = 1.0) -> None:
        if not (a > 0 and b > 0):
            raise Incompatible(f"beta: a and b must be positive, got {a} and {b}")
        self.a, self.b = a, b

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Drawn:
        """Draw a time for each row of x (n, d), as a quotient of Gamma variables."""
        # torch.distributions take no generator.
        gamma = torch._standard_gamma  # pyright: ignore[reportPrivateImportUsage]
        tiny = torch.finfo(x.dtype).tiny
        one, two = (
            gamma(x.new_full((x.shape[0],), p), generator=generator).clamp(min=tiny)
            for p in (self.a, self.b)
        )
        t, rest = one / (one + two), two / (one + two)
        log_constant = math.lgamma(self.a + self.b) - math.lgamma(self.a) - math.lgamma(self.b)
        log_density = (self.a - 1) * t.log() + (self.b - 1) * rest.log() + log_constant
        return Drawn(t, log_density.exp())


class UShaped(TimeLaw):
    """Density proportional to cosh(a (t - 1/2)): both ends more often than the middle.

    The published use is straightening pairs that a flow has made, where the ends are what is hard.

    Arguments:
        steepness: The number a; the ends are cosh(a / 2) times as likely as the middle.

    Raises:
        Incompatible: `steepness` is not positive.

    References:
        Improving the Training of Rectified Flows (Lee, Lin & Fanti, NeurIPS 2024),
        https://arxiv.org/abs/2405.20320, section 4.1: a = 4
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"steepness": 1.0})

    def __init__(self, steepness: float = 4.0) -> None:
        if not steepness > 0:
            raise Incompatible(f"u-shaped: steepness must be positive, got {steepness}")
        self.steepness = steepness

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Drawn:
        """Draw a time for each row of x (n, d), by the inverse distribution function."""
        a = self.steepness
        whole = math.sinh(0.5 * a)
        off = (whole * (2 * _uniform(x, generator) - 1)).asinh()  # a (t - 1/2)
        return Drawn(0.5 + off / a, off.cosh() * (0.5 * a / whole))


class Mode(TimeLaw):
    """t = 1 - u - s (cos^2(pi u / 2) - 1 + u) with u uniform: more of the middle, or of the ends.

    The density is 1 / (1 + s - s pi / 2) in the middle and 1 / (1 + s) at both ends, which it
    always reaches.

    Arguments:
        scale: The number s, between -1 and 2 / (pi - 2) = 1.75; positive prefers the middle.

    Raises:
        Incompatible: `scale` is outside, where times would come twice.

    References:
        Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., ICML
        2024), https://arxiv.org/abs/2403.03206, section 3.1: s = 1.29
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"scale": -0.5})

    def __init__(self, scale: float = 1.29) -> None:
        most = 2 / (math.pi - 2)
        if not -1 < scale < most:
            raise Incompatible(
                f"mode: scale must be above -1 and below 2 / (pi - 2) = {most:.4f}, got {scale}"
            )
        self.scale = scale

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Drawn:
        """Draw a time for each row of x (n, d)."""
        return self.at(_uniform(x, generator))

    def at(self, u: Tensor) -> Drawn:
        """Return the times that uniform numbers u (n,) make."""
        s, angle = self.scale, math.pi * u
        t = 1 - u - s * ((0.5 * angle).cos().square() - 1 + u)
        slope = 1 + s - 0.5 * math.pi * s * angle.sin()  # -dt/du
        return Drawn(t.clamp(0, 1), 1 / slope)


def time_law(law: TimeLaw | str) -> TimeLaw:
    """Return a law, or the one that a name means with its defaults.

    Raises:
        UserError: The name is unknown.
    """
    if isinstance(law, TimeLaw):
        return law
    if law not in _LAWS:
        raise UserError(f"matching: unknown times '{law}'{suggest(law, _LAWS)}")
    return _LAWS[law]()


def _uniform(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(x.shape[0], dtype=x.dtype, device=x.device, generator=generator)


_LAWS: dict[str, type[TimeLaw]] = {
    "uniform": Uniform,
    "stratified": Stratified,
    "logit-normal": LogitNormal,
    "beta": Beta,
    "u-shaped": UShaped,
    "mode": Mode,
}
