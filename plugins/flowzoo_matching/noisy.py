"""Paths with a noise of their own around a mean that goes from data to noise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowzoo.errors import Incompatible
from flowzoo_matching.path import PathSample, ProbabilityPath, Quantity, converted, interval
from flowzoo_matching.schedule import OT, Coefficients, Schedule


@dataclass(frozen=True)
class Spread:
    """The size of a path's own noise at times t, each of the shape of t.

    Arguments:
        gamma: The size.
        d_gamma: d gamma / dt.
        growth: gamma d_gamma = (d gamma^2 / dt) / 2, which may be finite where d_gamma is not.
    """

    gamma: Tensor
    d_gamma: Tensor
    growth: Tensor


class Noised(ProbabilityPath):
    """x_t = alpha(t) x + sigma(t) z + gamma(t) e, with e ~ N(0, I) of the path's own.

    The velocity of a pair is d_alpha x + d_sigma z + d_gamma e, written in x, z and e, never as a
    quotient by gamma. The score of the law of x_t is the mean of -e / gamma given x_t, whatever the
    coupling.
    """

    unconvertible: str = ""

    @abstractmethod
    def at(self, t: Tensor) -> tuple[Coefficients, Spread]:
        """Return alpha and sigma, and gamma, at times t of any shape."""

    def sample(
        self, t: Tensor, x: Tensor, z: Tensor, generator: torch.Generator | None = None
    ) -> PathSample:
        """Return places and velocities, with e from the generator; see `ProbabilityPath`."""
        noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        return self.with_noise(t, x, z, noise)

    def with_noise(self, t: Tensor, x: Tensor, z: Tensor, noise: Tensor) -> PathSample:
        """Return places and velocities for a given e.

        Arguments:
            t: Times (n,).
            x: Data (n, d).
            z: Noise (n, d).
            noise: The path's own noise e (n, d).
        """
        at, own = self.at(t[:, None])
        place = torch.addcmul(at.alpha * x, at.sigma, z)
        velocity = torch.addcmul(at.d_alpha * x, at.d_sigma, z)
        return PathSample(
            t,
            torch.addcmul(place, own.gamma, noise),
            torch.addcmul(velocity, own.d_gamma, noise),
            noise,
            own.gamma[:, 0],
        )

    def marginal(self, t: Tensor) -> Coefficients:
        """Return alpha and S = sqrt(sigma^2 + gamma^2), of which x_t is N(alpha x, S^2 I) given x.

        For noise z ~ N(0, I) independent of the data x. The affine path with these coefficients has
        the same laws of x_t and the same mean velocity, though its pairs have other velocities.
        """
        at, own = self.at(t)
        sigma = torch.hypot(at.sigma, own.gamma)
        return Coefficients(
            at.alpha, sigma, at.d_alpha, (at.sigma * at.d_sigma + own.growth) / sigma
        )

    def convert(
        self, t: Tensor, x: Tensor, value: Tensor, given: Quantity, wanted: Quantity
    ) -> Tensor:
        """Return what is known at (t, x_t) in other words, by the coefficients of `marginal`.

        `noise` is all the noise in x_t, (sigma z + gamma e) / S. This holds for means given x_t
        with z ~ N(0, I) independent of the data; for the velocity of a single pair, or another
        coupling, it does not: z and e are then two unknowns, which x_t and v do not determine.

        Arguments:
            t: Times, () or (n,).
            x: Places x_t (n, d).
            value: The mean of the quantity `given`, (n, d).
            given: What `value` is.
            wanted: What is returned.

        Raises:
            Incompatible: The one does not determine the other on this path.
        """
        if self.unconvertible:
            raise Incompatible(self.unconvertible)
        return converted(self.marginal(t.reshape(-1, 1)), x, value, given, wanted)


class Noisy(Noised):
    """An affine path with noise of a constant size: x_t = alpha x + sigma(t) z + sigma e.

    It smooths the regression, at a price at both ends: the flow ends at the data blurred by
    N(0, sigma^2 I), whose entropy is a floor of the likelihood, and starts from N(0, I) where the
    path is at N(0, (1 + sigma^2) I), which costs about d sigma^4 / 4 nats. `affine` has no such
    noise.

    Arguments:
        sigma: The size of the noise.
        schedule: alpha and sigma(t) of the mean; the straight line `ot` when left out.

    Raises:
        Incompatible: `sigma` is not positive.

    References:
        Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport
        (Tong et al., TMLR 2024), https://arxiv.org/abs/2302.00482, sections 3.2.2 and 3.2.3; its
        trigonometric path is the schedule `cosine`
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"sigma": 0.5, "schedule": "cosine"})
    expected_failures: ClassVar[Mapping[str, str]] = {"ends": "its noise is added at both ends too"}

    def __init__(self, sigma: float = 0.1, schedule: Schedule | None = None) -> None:
        if not sigma > 0:
            raise Incompatible(
                f"noisy: sigma must be positive, got {sigma}; the path `affine` is without noise"
            )
        self.sigma, self.schedule = sigma, OT() if schedule is None else schedule
        self.t_range = self.schedule.t_range

    def at(self, t: Tensor) -> tuple[Coefficients, Spread]:
        """Return alpha and sigma of the schedule, and the constant."""
        still = torch.zeros_like(t)
        return self.schedule.at(t), Spread(torch.full_like(t, self.sigma), still, still)


class Bridge(Noised):
    """The Brownian bridge between data and noise: (1 - t) x + t z + sigma sqrt(t (1 - t)) e.

    With pairs from the entropic plan of regularisation 2 sigma^2 for the cost |x - z|^2 its laws
    are those of the Schroedinger bridge between data and noise, with Brownian motion of size sigma.

    d_gamma grows as sigma / (2 sqrt(t)) at the data, and likewise at the noise, so the target has
    no finite second moment there, though the velocity it averages to has a limit. Times are drawn
    from [1e-4, 1 - 1e-4], where d_gamma is at most 50 sigma; what is lost is structure finer than
    0.01 sigma.

    Arguments:
        sigma: The size of the Brownian motion.
        t_range: Times to draw from in place of those.

    Raises:
        Incompatible: `sigma` is not positive, or `t_range` is no interval inside [0, 1].

    References:
        Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport
        (Tong et al., TMLR 2024), https://arxiv.org/abs/2302.00482, section 3.2.4; score and
        velocity together: Simulation-Free Schroedinger Bridges via Score and Flow Matching (Tong et
        al., AISTATS 2024), https://arxiv.org/abs/2307.03672
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"sigma": 0.5})

    def __init__(self, sigma: float = 1.0, t_range: tuple[float, float] | None = None) -> None:
        if not sigma > 0:
            raise Incompatible(
                f"bridge: sigma must be positive, got {sigma}; the path `affine` is without noise"
            )
        self.sigma, self._line = sigma, OT()
        self.t_range = interval("bridge", t_range, NEAR_ENDS)

    def at(self, t: Tensor) -> tuple[Coefficients, Spread]:
        """Return the straight line, and the size of the bridge; d_gamma is infinite at its ends."""
        return self._line.at(t), brownian(t, self.sigma**2)


def brownian(t: Tensor, variance: float = 1.0) -> Spread:
    """Return the size sqrt(variance t (1 - t)) of a Brownian bridge at times t of any shape."""
    gamma, growth = (variance * t * (1 - t)).sqrt(), variance * (0.5 - t)
    return Spread(gamma, growth / gamma, growth)


NEAR_ENDS = (1e-4, 1 - 1e-4)
