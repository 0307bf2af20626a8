"""Product of Student-t distributions, of which everything is known but the potential.

The optimal map to N(0, 1) is increasing in each coordinate, T = Phi^-1 o F. It is computed from
the logarithm of the tail beyond |x|, never from 1 - F, and in the coordinate u with
x = scale sqrt(df) sinh(u), in which heavy tails have the density cosh(u)^-df / B(df/2, 1/2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from scipy import special
from torch import Tensor

from flowzoo.data.oracles import column

Array: TypeAlias = np.ndarray

_NEAR = 0.5  # up to here the tail is 1/2 minus the mass between 0 and x
_FAR = 38.0  # from here on the series of the tail is exact to rounding, for every df
_TERMS = 6  # of that series: a term is at most (2 n + 1) / 38^2 times the one before
_ITERATIONS = 100  # of Newton's method with bisection, which ends by itself after about eight


@dataclass(frozen=True)
class StudentTOracle:
    r"""x_i = scale * tau_i with tau_i independent Student-t, and its optimal transport to N(0, I).

    Displacement interpolation moves every point straight, X_t = (1 - t) x + t T(x), coordinate by
    coordinate, with velocity v(t, X_t) = T(x) - x. Maps and velocity are computed in float64 on
    the CPU and returned in the dtype and on the device of what they are given; no gradient flows
    through them. Density and score are differentiable.

    Arguments:
        df: Degrees of freedom, in (0, 10^4]; 1 is Cauchy.
        dim: Dimension d.
        scale: Positive factor.

    References:
        Bailey, Polar generation of random variates with the t-distribution, 1994 (sampling).
        Abramowitz & Stegun, Handbook of Mathematical Functions, 1964, 15.3.4 and 26.5 (tail).
        Wallace, Bounds on normal approximations to Student's and the chi-square distributions,
        1959 (first guess of the inverse map).
        McCann, A convexity principle for interacting gases, 1997 (displacement interpolation).
    """

    df: float
    dim: int
    scale: float = 1.0

    @property
    def entropy(self) -> float:
        """Differential entropy d [(df+1)/2 (psi((df+1)/2) - psi(df/2)) - log p(0)], in nats."""
        half = self.df / 2
        bend = (half + 0.5) * float(special.digamma(half + 0.5) - special.digamma(half))
        return self.dim * (bend - self._log_peak)

    @property
    def transport_cost(self) -> float | None:
        """Least transport cost to N(0, I), E 1/2 |x - T(x)|^2; None (infinite) for df <= 2.

        The mixed term E x T(x) is summed by the trapezoidal rule in z = T(x), here exact to
        rounding.
        """
        if self.df <= 2:
            return None
        z = np.arange(1, 610) / 16
        x = self._unwound(self._places(1.0, z))
        mixed = float((z * x * np.exp(-0.5 * z**2)).sum()) / 8 / math.sqrt(2 * math.pi)
        return self.dim * (0.5 * self.scale**2 * self.df / (self.df - 2) + 0.5 - mixed)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n rows (n, d), float64 on the generator's device."""
        shape, device = (2, n, self.dim), generator.device
        angle, share = torch.rand(shape, generator=generator, dtype=torch.float64, device=device)
        growth = torch.expm1(torch.log1p(-share) * (-2 / self.df))
        return self.scale * (self.df * growth).sqrt() * (math.pi * angle).cos()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density (n,) of rows (n, d), in nats."""
        squares = (x / self.scale).square() / self.df
        return (self._log_peak - (self.df + 1) / 2 * squares.log1p()).sum(-1)

    def score(self, x: Tensor) -> Tensor:
        """Gradient of the log-density (n, d)."""
        return -(self.df + 1) * x / (self.df * self.scale**2 + x.square())

    def transport(self, x: Tensor) -> Tensor:
        """Optimal map to N(0, I): T(x) = Phi^-1(F(x)) in each coordinate, (n, d) -> (n, d)."""
        return _oddly(lambda size: self._normal(self._wound(size)), x)

    def inverse_transport(self, z: Tensor) -> Tensor:
        """Optimal map back from N(0, I): F^-1(Phi(z)), (n, d) -> (n, d)."""
        return _oddly(lambda size: self._unwound(self._places(1.0, size)), z)

    def interpolate(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Place X_t = (1 - t) x + t T(x) (n, d) at time t of what starts at x (n, d)."""
        s = column(t, x)
        return (1 - s) * x + s * self.transport(x)

    def velocity(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Velocity (n, d) of the displacement interpolation, constant along each straight path."""
        s = column(t, x).detach().cpu().double().numpy()

        def speed(size: Array) -> Array:
            u = self._places(s, size)
            return self._normal(u) - self._unwound(u)

        return _oddly(speed, x)

    @property
    def _log_beta(self) -> float:
        return float(special.betaln(self.df / 2, 0.5))

    @property
    def _log_peak(self) -> float:
        """Log-density of one coordinate at 0."""
        return -self._log_beta - 0.5 * math.log(self.df) - math.log(self.scale)

    def _wound(self, x: Array) -> Array:
        return np.arcsinh(x / (self.scale * math.sqrt(self.df)))

    def _unwound(self, u: Array) -> Array:
        with np.errstate(over="ignore"):
            return self.scale * math.sqrt(self.df) * np.sinh(u)

    def _normal(self, u: Array) -> Array:
        """The place z >= 0 that the optimal map sends u >= 0 to."""
        return -special.ndtri_exp(self._log_tail(u))

    def _normal_slope(self, u: Array, z: Array) -> Array:
        """dz/du, the ratio of both densities."""
        log_density = -self._log_beta - self.df * _log_cosh(u)
        return np.exp(log_density + 0.5 * z**2 + 0.5 * math.log(2 * math.pi))

    def _log_tail(self, u: Array) -> Array:
        """Log of the probability beyond u >= 0, down to any depth."""
        with np.errstate(over="ignore"):
            x = math.sqrt(self.df) * np.sinh(u)
        return np.piecewise(
            u,
            [x < _NEAR, x > _FAR],
            [self._log_near_tail, self._log_far_tail, self._log_middle_tail],
        )

    def _log_near_tail(self, u: Array) -> Array:
        # stdtr is off by 3e-9 at 1e-8 for df = 1
        return np.log(0.5 - 0.5 * special.betainc(0.5, self.df / 2, np.tanh(u) ** 2))

    def _log_middle_tail(self, u: Array) -> Array:
        return np.log(special.stdtr(self.df, -math.sqrt(self.df) * np.sinh(u)))

    def _log_far_tail(self, u: Array) -> Array:
        """Log of tanh(u)^-1 cosh(u)^-df / (df B) times 2F1(1/2, 1; df/2 + 1; -sinh(u)^-2)."""
        with np.errstate(over="ignore"):
            ratio, series = -1 / np.sinh(u) ** 2, np.ones_like(u)
        for n in reversed(range(_TERMS)):
            series = 1 + series * ratio * (n + 0.5) / (self.df / 2 + 1 + n)
        return np.log(series / np.tanh(u) / self.df) - self._log_beta - self.df * _log_cosh(u)

    def _places(self, t: Array | float, x: Array) -> Array:
        """Solve (1 - t) scale sqrt(df) sinh(u) + t z(u) = x for u, with x >= 0.

        Both terms increase from 0, so either alone bounds u from above; the first guess is the
        smaller bound, and Newton's method falls back on bisection.
        """
        stretch = (1 - t) * self.scale * math.sqrt(self.df)
        with np.errstate(all="ignore"):
            high = np.arcsinh(x / stretch)
            high[x == 0] = 0.0
            low, u = np.zeros_like(high), np.minimum(high, self._guess(x / t))
            for _ in range(_ITERATIONS):
                z = self._normal(u)
                excess = np.where(stretch > 0, stretch * np.sinh(u), 0.0) + t * z - x
                slope = np.where(stretch > 0, stretch * np.cosh(u), 0.0)
                slope += t * self._normal_slope(u, z)
                low, high = np.where(excess < 0, u, low), np.where(excess > 0, u, high)
                then = u - excess / slope
                inside = (then >= low) & (then <= high)
                then = np.where(inside, then, (low + high) / 2)
                moved, u = np.abs(then - u), then
                if not (moved > 1e-9 * (1 + u)).any():  # convergence is quadratic
                    break
        return u

    def _guess(self, z: Array) -> Array:
        """Roughly the u that the optimal map sends to z >= 0: log cosh(u) = (k z)^2 / (2 df)."""
        height = ((8 * self.df + 3) / (8 * self.df + 1) * z) ** 2 / (2 * self.df)
        return height + np.log1p(np.sqrt(-np.expm1(-2 * height)))


def _log_cosh(u: Array) -> Array:
    """Log of cosh(u) for u >= 0, without overflow."""
    return u + np.log1p(np.exp(-2 * u)) - math.log(2)


def _oddly(f: Callable[[Array], Array], x: Tensor) -> Tensor:
    """Apply an odd function, given for sizes |x| in float64; dtype and device are those of x."""
    values = x.detach().cpu().double().numpy()
    return torch.from_numpy(np.copysign(1.0, values) * f(np.abs(values))).to(x)
