"""Eight densities in the plane, as FFJORD's toy data defines them, with exact entropies.

Every toy is drawn independently and identically, so its density is known: in closed form or by
quadrature. Entropies are quadratures of that density over a fine grid, exact to the digits given.

References:
    Grathwohl et al., FFJORD, 2019, arXiv 1810.01367 (toy_data.py of the official code).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from flowzoo.data.dataset import Data, Dataset, draw_splits
from flowzoo.data.densities import (
    curve_log_prob,
    gauss_legendre,
    pinwheel_log_prob,
    rings_log_prob,
    smeared_curve_log_prob,
)
from flowzoo.data.oracles import MixtureOracle
from flowzoo.data.validation import validate
from flowzoo.errors import UserError


class Toy(Dataset):
    """A density in the plane; the three splits are independent draws.

    Arguments:
        train: Number of training rows.
        val: Number of validation rows.
        test: Number of test rows.
        seed: Seed of the draws.
    """

    name: ClassVar[str]
    entropy: ClassVar[float]

    def __init__(
        self, train: int = 20_000, val: int = 2_000, test: int = 10_000, seed: int = 0
    ) -> None:
        if min(train, val, test) < 2:
            raise UserError(f"{self.name} needs at least 2 rows in each of train, val and test.")
        self.train, self.val, self.test, self.seed = train, val, test, seed

    @property
    def oracle(self) -> MixtureOracle | None:
        """What is known beyond the density; None for nothing."""
        return None

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n fresh rows (n, 2), float64 on the CPU."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-density (n,) of places (n, 2), in nats."""

    def load(self) -> Data:
        """Draw the three splits."""
        sizes = (self.train, self.val, self.test)
        train, val, test = draw_splits(self.sample, sizes, self.seed)
        data = Data(
            self.name,
            train,
            val,
            test,
            entropy=self.entropy,
            log_prob=self.log_prob,
            oracle=self.oracle,
            notes=f"{self.train} training points drawn from a known density, not standardised.",
            title=self.name,
        )
        return validate(data, self.name, minimum=2)


def _normal(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64)


def _integers(high: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.randint(high, (n,), generator=generator)


def _polar(radius: Tensor | float, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1)


class EightGaussians(Toy):
    """Eight Gaussians on a circle of radius 4 / 1.414, standard deviation 0.5 / 1.414."""

    name = "8gaussians"
    entropy = 2.831880

    @property
    def oracle(self) -> MixtureOracle:
        """The same density as a mixture, with score and marginal velocity."""
        angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
        weights = torch.full((8,), 1 / 8, dtype=torch.float64)
        return MixtureOracle(weights, _polar(4 / 1.414, angles), 0.5 / 1.414)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw x = (c + 0.5 N) / 1.414 with c uniform on eight points at radius 4."""
        centre = _integers(8, n, generator) * (math.pi / 4)
        return (_polar(4.0, centre.double()) + 0.5 * _normal(n, generator)) / 1.414

    def log_prob(self, x: Tensor) -> Tensor:
        """Closed form."""
        return self.oracle.log_prob(x)


class TwoSpirals(Toy):
    """Two interleaved spirals of one and a half turns, thick on one side, with Gaussian noise."""

    name = "2spirals"
    entropy = 2.645450

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw x = +-(-m cos m + 0.5 U, m sin m + 0.5 U') / 3 + 0.1 N with m = 3 pi sqrt(U'')."""
        turn = 3 * math.pi * _uniform(n, generator).sqrt()
        smear = torch.rand(n, 2, generator=generator, dtype=torch.float64)
        sign = 2.0 * _integers(2, n, generator) - 1.0
        arm = _polar(-turn, -turn) + 0.5 * smear
        return sign[:, None] * arm / 3 + 0.1 * _normal(n, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """Quadrature along the arms; the uniform and Gaussian noise are integrated exactly."""
        turn, weights = gauss_legendre(0, 3 * math.pi, 400)
        points = _polar(-turn, -turn) / 3
        weights = weights * turn / (4.5 * math.pi**2)
        arms = torch.stack(
            [smeared_curve_log_prob(y, points, weights, 0.5 / 3, 0.1) for y in (x, -x)]
        )
        return arms.logsumexp(0) - math.log(2)


class Checkerboard(Toy):
    """Eight of the sixteen squares of side 2 in [-4, 4]^2, uniformly."""

    name = "checkerboard"
    entropy = math.log(32)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw x1 = 4 U - 2, x2 = U' - 2 {0, 1} + floor(x1) mod 2, and return twice (x1, x2)."""
        x1 = 4 * _uniform(n, generator) - 2
        x2 = _uniform(n, generator) - 2 * _integers(2, n, generator) + x1.floor() % 2
        return 2 * torch.stack([x1, x2], -1)

    def log_prob(self, x: Tensor) -> Tensor:
        """-log 32 on the squares, -inf elsewhere."""
        inside = (x.abs() <= 4).all(-1) & ((x / 2).floor().sum(-1) % 2 == 0)
        return torch.full_like(x[:, 0], -math.log(32)).masked_fill(~inside, -math.inf)


class Rings(Toy):
    """Four concentric circles of equal weight, radii 0.75, 1.5, 2.25 and 3, noise 0.08."""

    name = "rings"
    entropy = 2.623183
    radii: ClassVar[tuple[float, ...]] = (3.0, 2.25, 1.5, 0.75)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw a circle, an angle on it, and noise."""
        return _draw_rings(self.radii, 0.08, n, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """Closed form, with a Bessel function."""
        return rings_log_prob(x, self.radii, 0.08)


class Circles(Toy):
    """Two concentric circles of equal weight, radii 1.5 and 3, noise 0.24."""

    name = "circles"
    entropy = 3.268136
    radii: ClassVar[tuple[float, ...]] = (3.0, 1.5)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw a circle, an angle on it, and noise."""
        return _draw_rings(self.radii, 0.24, n, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """Closed form, with a Bessel function."""
        return rings_log_prob(x, self.radii, 0.24)


def _draw_rings(
    radii: tuple[float, ...], noise: float, n: int, generator: torch.Generator
) -> Tensor:
    which = _integers(len(radii), n, generator)
    angle = 2 * math.pi * _uniform(n, generator)
    radius = torch.tensor(radii, dtype=torch.float64)[which]
    return _polar(radius, angle) + noise * _normal(n, generator)


def _moon(angle: Tensor, inner: Tensor) -> Tensor:
    """Half circles of radius 2: the outer one opens downwards, the inner one upwards."""
    outer = 2 * _polar(1.0, angle) + torch.tensor([-1.0, -0.2], dtype=torch.float64)
    return torch.where(
        inner[:, None], -outer + torch.tensor([0.0, 0.6], dtype=torch.float64), outer
    )


class Moons(Toy):
    """Two interleaved half circles of radius 2, noise 0.2."""

    name = "moons"
    entropy = 2.393879

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw a moon, an angle in [0, pi], and noise: make_moons(noise 0.1) * 2 + (-1, -0.2)."""
        inner = _integers(2, n, generator) == 1
        angle = math.pi * _uniform(n, generator)
        return _moon(angle, inner) + 0.2 * _normal(n, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """Quadrature along both half circles."""
        angle, weights = gauss_legendre(0, math.pi, 100)
        inner = torch.tensor([False, True]).repeat_interleave(len(angle))
        points = _moon(angle.repeat(2), inner)
        return curve_log_prob(x, points, weights.repeat(2) / (2 * math.pi), 0.2)


class Pinwheel(Toy):
    """Five twisted arms: Gaussian blobs, narrow across and long along the radius."""

    name = "pinwheel"
    entropy = 2.317788

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw f = (1 + 0.3 N, 0.1 N') and turn it by 2 pi k / 5 + 0.25 exp(f0), times 2."""
        angle = _integers(5, n, generator) * (2 * math.pi / 5)
        spread = torch.tensor([0.3, 0.1], dtype=torch.float64)
        f0, f1 = (_normal(n, generator) * spread).unbind(-1)
        f0 = f0 + 1
        angle = angle + 0.25 * f0.exp()
        cos, sin = angle.cos(), angle.sin()
        return 2 * torch.stack([f0 * cos + f1 * sin, f1 * cos - f0 * sin], -1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Sum over the preimages, found to rounding; not differentiable."""
        return pinwheel_log_prob(x, arms=5, rate=0.25, radial=0.3, tangential=0.1, scale=2.0)


class SwissRoll(Toy):
    """A spiral of one and a half turns, noise 0.2."""

    name = "swissroll"
    entropy = 2.669646

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw x = ((t cos t, t sin t) + N) / 5 with t = 1.5 pi (1 + 2 U)."""
        turn = 1.5 * math.pi * (1 + 2 * _uniform(n, generator))
        return (_polar(turn, turn) + _normal(n, generator)) / 5

    def log_prob(self, x: Tensor) -> Tensor:
        """Quadrature along the spiral."""
        turn, weights = gauss_legendre(1.5 * math.pi, 4.5 * math.pi, 300)
        return curve_log_prob(x, _polar(turn, turn) / 5, weights / (3 * math.pi), 0.2)
