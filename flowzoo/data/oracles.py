"""Oracles: what is known of the law of a dataset, so that errors can be measured, not guessed.

An oracle has those of these attributes that are known; the judge looks for each by its name, and
takes None for not known. Time runs from t = 0 (data) to t = 1 (noise N(0, I)); `t` is a number, a
() or an (n,) tensor; x and z are (n, d).

    log_prob(x)                 log-density (n,), in nats
    score(x)                    its gradient (n, d)
    entropy                     differential entropy, in nats
    transport(x)                optimal map T to N(0, I) for the squared distance, (n, d)
    inverse_transport(z)        its inverse (n, d)
    transport_cost              E 1/2 |x - T(x)|^2
    interpolate(t, x)           X_t = (1 - t) x + t T(x), displacement interpolation (n, d)
    velocity(t, x)              its velocity at the place x: v(t, X_t) = T(x_0) - x_0, (n, d)
    potential(t, x)             Phi (n,) with v = -grad Phi and d_t Phi = 1/2 |grad Phi|^2
    matching_velocity(t, x)     E[z - y | (1 - t) y + t z = x], data y, independent noise z, (n, d)
    modes                       its spherical Gaussian components, as `Modes`
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Modes:
    """Components N(mean_k, scale^2 I) of a mixture.

    Arguments:
        weights: Positive weights, summing to 1 (k,).
        means: Means (k, d).
        scale: Standard deviation common to all components and directions.
    """

    weights: Tensor
    means: Tensor
    scale: float


@dataclass(frozen=True)
class GaussianOracle:
    r"""N(mean, Sigma) with Sigma = Q diag(variances) Q^T, and its optimal transport to N(0, I).

    The optimal map for the squared distance is T(x) = Sigma^{-1/2} (x - mean). Displacement
    interpolation moves every point straight, X_t = (1 - t) x + t T(x), with velocity
    v(t, X_t) = T(x) - x = -grad Phi(t, X_t). `matching_velocity` is another field with the same
    ends: the marginal velocity of the linear path with independent noise.

    Arguments:
        mean: Mean (d,).
        basis: Orthogonal Q, one eigenvector per column (d, d).
        variances: Positive eigenvalues of Sigma (d,).

    References:
        McCann, A convexity principle for interacting gases, 1997 (displacement interpolation).
        Peyre & Cuturi, Computational Optimal Transport, 2019, remark 2.31 (Gaussian case),
        arXiv 1803.00567.
        Lipman et al., Flow Matching for Generative Modeling, 2023, arXiv 2210.02747, eq. 8.
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor

    @staticmethod
    def of(mean: Tensor, covariance: Tensor) -> GaussianOracle:
        """Make the oracle from a mean (d,) and a positive definite covariance (d, d)."""
        variances, basis = torch.linalg.eigh(covariance)
        return GaussianOracle(mean, basis, variances)

    @staticmethod
    def fit(x: Tensor) -> GaussianOracle:
        """Fit by maximum likelihood to rows (n, d): the full-covariance Gaussian baseline."""
        return GaussianOracle.of(x.mean(0), torch.cov(x.mT, correction=0).reshape(x.shape[1], -1))

    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.mean.shape[0]

    @property
    def covariance(self) -> Tensor:
        """Sigma (d, d)."""
        return (self.basis * self.variances) @ self.basis.mT

    @property
    def entropy(self) -> float:
        """Differential entropy d/2 (1 + log 2 pi) + 1/2 log det Sigma, in nats."""
        return 0.5 * (self.dim * (1 + _LOG_2PI) + float(self.variances.log().sum()))

    @property
    def w2_squared(self) -> float:
        """W2^2 to N(0, I): |mean|^2 + sum_i (sqrt(variance_i) - 1)^2."""
        return float(self.mean.square().sum() + (self.variances.sqrt() - 1).square().sum())

    @property
    def transport_cost(self) -> float:
        """Least transport cost to N(0, I), E 1/2 |x - T(x)|^2 = W2^2 / 2."""
        return self.w2_squared / 2

    @property
    def ladj(self) -> float:
        """log abs det dT/dx = -1/2 log det Sigma, in nats; the same for every x."""
        return -0.5 * float(self.variances.log().sum())

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n rows (n, d) in the oracle's dtype, on its device."""
        z = torch.randn(
            n, self.dim, generator=generator, dtype=self.mean.dtype, device=self.mean.device
        )
        return self.mean + (z * self.variances.sqrt()) @ self.basis.mT

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density (n,) of rows (n, d), in nats."""
        w = self._rotated(x - self.mean.to(x))
        variances = self.variances.to(x)
        return -0.5 * ((w.square() / variances).sum(-1) + self.dim * _LOG_2PI) + self.ladj

    def score(self, x: Tensor) -> Tensor:
        """Gradient of the log-density (n, d)."""
        return -self._scaled(x - self.mean.to(x), 1 / self.variances.to(x))

    def transport(self, x: Tensor) -> Tensor:
        """Optimal map to N(0, I): T(x) = Sigma^{-1/2} (x - mean), (n, d) -> (n, d)."""
        return self._scaled(x - self.mean.to(x), self.variances.to(x).rsqrt())

    def inverse_transport(self, z: Tensor) -> Tensor:
        """Optimal map back from N(0, I): mean + Sigma^{1/2} z, (n, d) -> (n, d)."""
        return self.mean.to(z) + self._scaled(z, self.variances.to(z).sqrt())

    def interpolate(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Place X_t = (1 - t) x + t T(x) (n, d) at time t of what starts at x (n, d)."""
        s = column(t, x)
        return (1 - s) * x + s * self.transport(x)

    def velocity(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Velocity (n, d) of the displacement interpolation, constant along each straight path."""
        rates, w = self._displaced(t, x)
        return (rates * w) @ self.basis.to(x).mT - self.mean.to(x)

    def divergence(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Divergence (n,) of `velocity`."""
        rates, w = self._displaced(t, x)
        return rates.expand_as(w).sum(-1)

    def potential(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Potential Phi (n,) with velocity -grad Phi, solving d_t Phi = 1/2 |grad Phi|^2."""
        rates, w = self._displaced(t, x)
        mean = self.mean.to(x)
        growth = 0.5 * mean.square().sum() * column(t, x).squeeze(-1)
        return -0.5 * (rates * w.square()).sum(-1) + x @ mean + growth

    def matching_velocity(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Marginal velocity E[z - y | (1 - t) y + t z = x] of independent pairs, (n, d)."""
        w = self._rotated(x - (1 - column(t, x)) * self.mean.to(x))
        return (self._matching_rates(t, x) * w) @ self.basis.to(x).mT - self.mean.to(x)

    def matching_divergence(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Divergence (n,) of `matching_velocity`."""
        return self._matching_rates(t, x).expand_as(x).sum(-1)

    def _matching_rates(self, t: Tensor | float, x: Tensor) -> Tensor:
        s, variances = column(t, x), self.variances.to(x)
        return (s - (1 - s) * variances) / ((1 - s).square() * variances + s.square())

    def _displaced(self, t: Tensor | float, x: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues of dv/dx at time t, and x relative to the moving mean, in the eigenbasis."""
        s, slopes = column(t, x), self.variances.to(x).rsqrt()
        return (slopes - 1) / (1 - s + s * slopes), self._rotated(x - (1 - s) * self.mean.to(x))

    def _rotated(self, x: Tensor) -> Tensor:
        return x @ self.basis.to(x)

    def _scaled(self, x: Tensor, factors: Tensor) -> Tensor:
        """Apply Q diag(factors) Q^T."""
        return (self._rotated(x) * factors) @ self.basis.to(x).mT


@dataclass(frozen=True)
class MixtureOracle:
    r"""sum_k weight_k N(mean_k, scale^2 I), and its marginal velocity of the linear path.

    On the path x_t = (1 - t) y + t z with data y and independent noise z, component k stays
    Gaussian, N((1 - t) mean_k, s_t^2 I) with s_t^2 = (1 - t)^2 scale^2 + t^2.

    Arguments:
        weights: Positive weights, summing to 1 (k,).
        means: Means (k, d).
        scale: Standard deviation common to all components and directions.

    References:
        Lipman et al., Flow Matching for Generative Modeling, 2023, arXiv 2210.02747, eq. 8.
    """

    weights: Tensor
    means: Tensor
    scale: float

    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.means.shape[1]

    @property
    def modes(self) -> Modes:
        """The components."""
        return Modes(self.weights, self.means, self.scale)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n rows (n, d) in the oracle's dtype, on its device."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(
            n, self.dim, generator=generator, dtype=self.means.dtype, device=self.means.device
        )
        return self.means[which] + self.scale * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density (n,) of rows (n, d), in nats."""
        return self.matching_log_prob(0.0, x)

    def score(self, x: Tensor) -> Tensor:
        """Gradient of the log-density (n, d)."""
        return self.matching_score(0.0, x)

    def estimate_entropy(self, n: int = 1 << 18, seed: int = 0) -> tuple[float, float]:
        r"""Estimate the entropy and its standard error, in nats, from n draws.

        H(x) = H(k) + d/2 (1 + log 2 pi) + d log scale - E H(k | x): only the last term, the mean
        uncertainty about the component, is not closed form. It depends on x through its part in
        the span of the means, so the cost does not grow with d, and it vanishes, with its error,
        for well separated components.
        """
        basis, _ = torch.linalg.qr((self.means - self.means.mean(0)).mT)
        reduced = MixtureOracle(self.weights, self.means @ basis, self.scale)
        generator = torch.Generator(self.means.device).manual_seed(seed)
        logits = reduced._joint(0.0, reduced.sample(n, generator)).log_softmax(-1)
        doubt = torch.special.entr(logits.exp()).sum(-1)
        known = float(torch.special.entr(self.weights).sum())
        known += self.dim * (0.5 * (1 + _LOG_2PI) + math.log(self.scale))
        return known - float(doubt.mean()), float(doubt.std()) / math.sqrt(n)

    def matching_log_prob(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Log-density (n,) of the linear path at time t, in nats."""
        return self._joint(t, x).logsumexp(-1)

    def matching_score(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Score (n, d) of the linear path at time t."""
        s = column(t, x)
        return ((1 - s) * self._expected_mean(t, x) - x) / self._variance(s)

    def matching_velocity(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Marginal velocity E[z - y | (1 - t) y + t z = x] of independent pairs, (n, d)."""
        s = column(t, x)
        centre = self._expected_mean(t, x)
        return self._rate(s) * (x - (1 - s) * centre) - centre

    def matching_divergence(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Divergence (n,) of `matching_velocity`."""
        s = column(t, x)
        chances = self._joint(t, x).softmax(-1)
        # tr d E[mean_k | x] / dx = (1 - t) / s_t^2 tr Cov(mean_k | x); a shift keeps the covariance
        means = (self.means - self.means.mean(0)).to(x)
        centre = chances @ means
        spread = chances @ means.square().sum(-1) - centre.square().sum(-1)
        rate, variance, s = (v.squeeze(-1) for v in (self._rate(s), self._variance(s), s))
        return rate * self.dim - (1 + rate * (1 - s)) * (1 - s) / variance * spread

    def _variance(self, s: Tensor) -> Tensor:
        return ((1 - s) * self.scale).square() + s.square()

    def _rate(self, s: Tensor) -> Tensor:
        return (s - (1 - s) * self.scale**2) / self._variance(s)

    def _expected_mean(self, t: Tensor | float, x: Tensor) -> Tensor:
        return self._joint(t, x).softmax(-1) @ self.means.to(x)

    def _joint(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Log of weight_k N(x; (1 - t) mean_k, s_t^2 I), (n, k)."""
        s = column(t, x)
        variance = self._variance(s)
        # one component at a time: differences without cancellation, in the memory of x
        squares = [(x - (1 - s) * mean).square().sum(-1) for mean in self.means.to(x)]
        constant = self.weights.to(x).log() - 0.5 * self.dim * (_LOG_2PI + variance.log())
        return constant - 0.5 * torch.stack(squares, -1) / variance


def column(t: Tensor | float, x: Tensor) -> Tensor:
    """Bring a time, a number or () or (n,), to shape (1,) or (n, 1) in the dtype of x."""
    return torch.as_tensor(t, dtype=x.dtype, device=x.device).unsqueeze(-1)
