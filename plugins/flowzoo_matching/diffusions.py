"""Two more diffusions of score models as schedules: sub-VP, and VE in coordinates of its own size.

`VP` is in `schedule`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from flowzoo.errors import Incompatible
from flowzoo_matching.schedule import Coefficients, Diffusion, LinearRate


class SubVP(Diffusion):
    """The sub-VP diffusion: alpha of `vp`, sigma = 1 - alpha^2.

    Its variance is at most that of `vp` at every time. It is the law of
    dx = -b x dt / 2 + sqrt(b (1 - alpha^4)) dW with the rate b = b0 + (b1 - b0) t.

    At the data sigma is about b0 t, so the velocity of a pair is finite everywhere, and a
    regression could begin at t = 0. The diffusion cannot: there g = 0, and a network of the score
    would be divided by sigma. So times are drawn from [1e-5, 1], as score models do; what is lost
    is structure finer than sigma(1e-5) = 1e-6. At the noise alpha(1) is that of `vp`, and so is
    what it costs.

    Arguments:
        beta_min: The rate b0 at t = 0.
        beta_max: The rate b1 at t = 1.

    Raises:
        Incompatible: The rate is not positive, or falls.

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations (Song,
        Sohl-Dickstein, Kingma, Kumar, Ermon & Poole, ICLR 2021), https://arxiv.org/abs/2011.13456,
        section 3.4 and appendix B
    """

    t_range = (1e-5, 1.0)

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        self.beta_min, self.beta_max = beta_min, beta_max
        self._rate = LinearRate.checked("sub-vp", beta_min, beta_max)

    def at(self, t: Tensor) -> Coefficients:
        """Return the coefficients at times t."""
        beta, whole = self._rate.at(t), self._rate.whole(t)
        alpha, square = (-0.5 * whole).exp(), (-whole).exp()
        return Coefficients(alpha, -(-whole).expm1(), -0.5 * beta * alpha, beta * square)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return f = -b / 2 and g^2 = b (1 - alpha^4) at times t."""
        beta, whole = self._rate.at(t), self._rate.whole(t)
        return -0.5 * beta, -beta * (-2 * whole).expm1()

    def time_at(self, log_ratio: Tensor) -> Tensor:
        """Return the times at which log(sigma^2 / alpha^2) is this.

        sigma / alpha = 1 / alpha - alpha = 2 sinh(w / 2), with w the integral of b.
        """
        return self._rate.time_at(2 * (0.5 * (0.5 * log_ratio).exp()).asinh())


class VE(Diffusion):
    """The variance-exploding diffusion divided by its own size, so that it ends at N(0, I).

    As published y_t = x + s(t) e with s = s0 (s1 / s0)^t ends at N(0, s1^2 I). Here
    x_t = y_t / sqrt(1 + s^2), so alpha = 1 / sqrt(1 + s^2) and sigma = s / sqrt(1 + s^2): data of
    unit variance keep it, as with `vp`, and alpha / sigma = 1 / s as published. In these
    coordinates it is the law of dx = -b x dt / 2 + sqrt(b) dW with b = 2 log(s1 / s0) sigma^2. A
    network of the published coordinates is asked at sqrt(1 + s^2) x_t.

    Two ends need a word. At the data sigma(0) is s0 and not 0: the flow ends at the data blurred by
    N(0, s0^2 I), and its likelihood has the blurred data's entropy as its floor; alpha(0) is
    1 - s0^2 / 2. At the noise alpha(1) = 1 / s1 = 0.02 is left of the data: the flow starts from
    N(0, I) and not from the path's own law, which costs |m|^2 / (2 s1^2) = 2e-4 |m|^2 nats for data
    of mean m and unit covariance, ten times what `vp` does.

    Arguments:
        sigma_min: The size s0 of the noise at t = 0, in units of the data.
        sigma_max: The size s1 of the noise at t = 1.

    Raises:
        Incompatible: The sizes are not positive and increasing.

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations (Song,
        Sohl-Dickstein, Kingma, Kumar, Ermon & Poole, ICLR 2021), https://arxiv.org/abs/2011.13456,
        section 3.4 and appendix C
    """

    expected_failures: ClassVar[Mapping[str, str]] = {
        "ends": "1 / sigma_max of the data is left at t = 1, 0.02 with the published sigma_max"
    }

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        if not 0 < sigma_min < sigma_max:
            raise Incompatible(
                "ve: sigma_min must be positive and less than sigma_max, "
                f"got {sigma_min} and {sigma_max}"
            )
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self._start, self._growth = math.log(sigma_min), math.log(sigma_max / sigma_min)

    def at(self, t: Tensor) -> Coefficients:
        """Return the coefficients at times t."""
        log_size = self._start + self._growth * t
        alpha, sigma = 1 / _hypotenuse(log_size), 1 / _hypotenuse(-log_size)
        turn = self._growth * alpha * sigma
        return Coefficients(alpha, sigma, -turn * sigma, turn * alpha)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return f = -b / 2 and g^2 = b at times t."""
        rate = self._growth * (2 * (self._start + self._growth * t)).sigmoid()
        return -rate, 2 * rate

    def time_at(self, log_ratio: Tensor) -> Tensor:
        """Return the times at which log(sigma^2 / alpha^2) = 2 log s is this."""
        return (0.5 * log_ratio - self._start) / self._growth


def _hypotenuse(log_size: Tensor) -> Tensor:
    """Return sqrt(1 + s^2) for log s."""
    return torch.hypot(torch.ones_like(log_size), log_size.exp())
