"""Schedules: how much data and how much noise there is at time t, x_t = alpha(t) x + sigma(t) z.

Time runs from data (t = 0: alpha = 1, sigma = 0) to noise (t = 1: sigma = 1); most matching codes
run the other way, and their schedules are ours at 1 - t with the sign of the derivatives turned.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from flowzoo.errors import Incompatible


@dataclass(frozen=True)
class Coefficients:
    """A schedule at times t, each of the shape of t.

    Arguments:
        alpha: Amount of data.
        sigma: Amount of noise.
        d_alpha: d alpha / dt.
        d_sigma: d sigma / dt.
    """

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


class Schedule(ABC):
    """alpha(t), sigma(t) and their derivatives.

    `t_range` is the part of [0, 1] on which the velocity of a single pair, d_alpha x + d_sigma z,
    has a useful size: the times a regression draws from. Outside it `at` still returns the
    formulas' values, infinities included; nothing is clamped.
    """

    kind: ClassVar[str] = "schedule"
    checks: ClassVar[str] = "flowzoo_matching.conformance.schedule"
    t_range: tuple[float, float] = (0.0, 1.0)

    @abstractmethod
    def at(self, t: Tensor) -> Coefficients:
        """Return alpha, sigma and their derivatives at times t of any shape."""

    def time_at(self, log_ratio: Tensor) -> Tensor:
        """Return the times at which log(sigma^2 / alpha^2) is this, by bisection of [0, 1].

        Where it is not reached, the nearer end. A schedule with a closed form overrides this.
        """
        low, high = torch.zeros_like(log_ratio), torch.ones_like(log_ratio)
        for _ in range(-math.frexp(torch.finfo(log_ratio.dtype).eps)[1] + 8):
            middle = 0.5 * (low + high)
            at = self.at(middle)
            before = 2 * (at.sigma / at.alpha).log() < log_ratio
            low, high = torch.where(before, middle, low), torch.where(before, high, middle)
        return 0.5 * (low + high)


class OT(Schedule):
    """The straight line: alpha = 1 - t, sigma = sigma_min + (1 - sigma_min) t.

    With sigma_min = 0 it is conditional optimal transport and rectified flow; with sigma_min > 0
    it is the path of Lipman et al., whose flow ends at the data blurred by N(0, sigma_min^2 I): the
    likelihood then has the blurred data's entropy as its floor.

    Arguments:
        sigma_min: Noise left at the data's end.

    References:
        Flow Matching for Generative Modeling (Lipman, Chen, Ben-Hamu, Nickel & Le, ICLR 2023),
        https://arxiv.org/abs/2210.02747, equation (20); Flow Straight and Fast (Liu, Gong & Liu,
        ICLR 2023), https://arxiv.org/abs/2209.03003
    """

    def __init__(self, sigma_min: float = 0.0) -> None:
        if not 0 <= sigma_min < 1:
            raise Incompatible(f"ot: sigma_min must be in [0, 1), got {sigma_min}")
        self.sigma_min = sigma_min

    def at(self, t: Tensor) -> Coefficients:
        """Return the coefficients at times t."""
        slope = 1 - self.sigma_min
        sigma = self.sigma_min + slope * t
        return Coefficients(1 - t, sigma, torch.full_like(t, -1), torch.full_like(t, slope))

    def time_at(self, log_ratio: Tensor) -> Tensor:
        """Return the times at which log(sigma^2 / alpha^2) is this, in closed form."""
        left = self.sigma_min * (-0.5 * log_ratio).sigmoid()
        return ((0.5 * log_ratio).sigmoid() - left) / (1 - left)


class Diffusion(Schedule):
    """A schedule that is the law of a diffusion dx = f(t) x dt + g(t) dW: N(alpha x, sigma^2 I).

    Where sigma(0) > 0 the diffusion begins at the data x blurred by it. f and g^2 are finite on all
    of [0, 1], the ends included, where quotients of alpha, sigma and their derivatives need not be.

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., ICLR
        2021), https://arxiv.org/abs/2011.13456, section 3
    """

    @abstractmethod
    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return f = d log alpha / dt and g^2 = d sigma^2 / dt - 2 f sigma^2 at times t."""

    @abstractmethod
    def time_at(self, log_ratio: Tensor) -> Tensor:
        """Return the times at which log(sigma^2 / alpha^2) is this; it rises by g^2 / sigma^2."""


@dataclass(frozen=True)
class LinearRate:
    """The rate b(t) = b0 + (b1 - b0) t of a diffusion, and its integral from 0.

    Arguments:
        low: The rate b0 at t = 0.
        high: The rate b1 at t = 1.
    """

    low: float
    high: float

    def at(self, t: Tensor) -> Tensor:
        """Return b at times t."""
        return self.low + (self.high - self.low) * t

    def whole(self, t: Tensor) -> Tensor:
        """Return the integral of b over [0, t]."""
        return 0.5 * (self.high - self.low) * t.square() + self.low * t

    def time_at(self, whole: Tensor) -> Tensor:
        """Return the times at which the integral is this, by the quadratic formula."""
        growth = self.high - self.low
        return 2 * whole / (self.low + (self.low**2 + 2 * growth * whole).sqrt())

    @classmethod
    def checked(cls, name: str, low: float, high: float) -> LinearRate:
        """Return the rate of the schedule of this name.

        Raises:
            Incompatible: The rate is not positive, or falls.
        """
        if not 0 < low <= high:
            raise Incompatible(
                f"{name}: beta_min must be positive and at most beta_max, got {low} and {high}"
            )
        return cls(low, high)


class VP(Diffusion):
    """The variance-preserving diffusion: log alpha = -(b1 - b0) t^2 / 4 - b0 t / 2.

    sigma^2 = 1 - alpha^2, so that data of unit variance keep it. It is the law of
    dx = -b x dt / 2 + sqrt(b) dW with the rate b = b0 + (b1 - b0) t.

    Two ends need a word. At the data d_sigma grows as sqrt(b0 / t) / 2, so the regression's target
    has no finite second moment at t = 0, though the velocity it averages to has a limit there:
    times are drawn from [1e-5, 1], as score models do, and on [0, 1e-5] the network goes on as it
    is. The flow still runs from 0 to 1 and its likelihood is its own, exactly; what is lost is
    structure finer than sigma(1e-5) = 1e-3. At the noise alpha(1) = exp(-(b0 + b1) / 4) is not 0:
    the flow starts from N(0, I) and not from the path's own law at t = 1, at the price of their
    Kullback-Leibler divergence: for data of mean m and standardised covariance alpha(1)^2 |m|^2 / 2
    = 2e-5 |m|^2 nats.

    Arguments:
        beta_min: The rate b0 at t = 0.
        beta_max: The rate b1 at t = 1.

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations (Song,
        Sohl-Dickstein, Kingma, Kumar, Ermon & Poole, ICLR 2021), https://arxiv.org/abs/2011.13456,
        appendix C; as a path: Flow Matching for Generative Modeling (Lipman et al., ICLR 2023),
        https://arxiv.org/abs/2210.02747, section 4.1
    """

    t_range = (1e-5, 1.0)

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        self.beta_min, self.beta_max = beta_min, beta_max
        self._rate = LinearRate.checked("vp", beta_min, beta_max)

    def at(self, t: Tensor) -> Coefficients:
        """Return the coefficients at times t; d_sigma is infinite at t = 0."""
        half_beta, whole = 0.5 * self._rate.at(t), self._rate.whole(t)
        alpha, sigma = (-0.5 * whole).exp(), (-(-whole).expm1()).sqrt()
        return Coefficients(alpha, sigma, -half_beta * alpha, half_beta * alpha.square() / sigma)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return f = -b / 2 and g^2 = b at times t."""
        beta = self._rate.at(t)
        return -0.5 * beta, beta

    def time_at(self, log_ratio: Tensor) -> Tensor:
        """Return the times at which log(sigma^2 / alpha^2) is this, by the quadratic formula."""
        return self._rate.time_at(torch.logaddexp(log_ratio, torch.zeros_like(log_ratio)))


class Polynomial(Schedule):
    """alpha = (1 - t)^p, sigma = 1 - (1 - t)^p; p = 1 is the straight line.

    Arguments:
        power: The power p, at least 1; below it the velocity is infinite at the noise.

    References:
        Flow Matching Guide and Code (Lipman et al., 2024), https://arxiv.org/abs/2412.06264
    """

    def __init__(self, power: float = 2.0) -> None:
        if not power >= 1:
            raise Incompatible(f"polynomial: power must be at least 1, got {power}")
        self.power = power

    def at(self, t: Tensor) -> Coefficients:
        """Return the coefficients at times t."""
        alpha, slope = (1 - t) ** self.power, self.power * (1 - t) ** (self.power - 1)
        return Coefficients(alpha, 1 - alpha, -slope, slope)

    def time_at(self, log_ratio: Tensor) -> Tensor:
        """Return the times at which log(sigma^2 / alpha^2) is this, in closed form."""
        return -torch.expm1(-softplus(0.5 * log_ratio) / self.power)


class LinearVP(Schedule):
    """alpha = 1 - t, sigma = sqrt(1 - alpha^2).

    At the data d_sigma grows as 1 / sqrt(2 t); see `VP` for what this means.

    References:
        Flow Matching Guide and Code (Lipman et al., 2024), https://arxiv.org/abs/2412.06264
    """

    t_range = (1e-5, 1.0)

    def at(self, t: Tensor) -> Coefficients:
        """Return the coefficients at times t; d_sigma is infinite at t = 0."""
        alpha, sigma = 1 - t, (t * (2 - t)).sqrt()
        return Coefficients(alpha, sigma, torch.full_like(t, -1), alpha / sigma)

    def time_at(self, log_ratio: Tensor) -> Tensor:
        """Return the times at which log(sigma^2 / alpha^2) is this, in closed form."""
        return -torch.expm1(-0.5 * softplus(log_ratio))


class Cosine(Schedule):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): the trigonometric interpolant.

    References:
        Building Normalizing Flows with Stochastic Interpolants (Albergo & Vanden-Eijnden, ICLR
        2023), https://arxiv.org/abs/2209.15571
    """

    def at(self, t: Tensor) -> Coefficients:
        """Return the coefficients at times t."""
        rate = 0.5 * math.pi
        alpha, sigma = (rate * (1 - t)).sin(), (rate * t).sin()  # 0 at the ends, not nearly
        return Coefficients(alpha, sigma, -rate * sigma, rate * alpha)

    def time_at(self, log_ratio: Tensor) -> Tensor:
        """Return the times at which log(sigma^2 / alpha^2) is this, in closed form."""
        return (0.5 * log_ratio).exp().atan() / (0.5 * math.pi)
