"""Datasets in any dimension whose density is known: a Gaussian, and a mixture of Gaussians."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowzoo.data.dataset import Data, Dataset, draw_splits, split_generator
from flowzoo.data.oracles import GaussianOracle, MixtureOracle
from flowzoo.data.validation import validate
from flowzoo.errors import UserError

SHAPE = 3  # split number of the generator that draws the distribution itself


class Gaussian(Dataset):
    r"""N(mean, Sigma) with eigenvalues spaced evenly in their logarithm and determinant 1.

    Arguments:
        dim: Dimension d.
        condition: Largest eigenvalue of Sigma over the smallest; 1 is isotropic.
        mean: Value of every coordinate of the mean.
        correlated: Turn the axes by a random rotation; otherwise Sigma is diagonal.
        train: Number of training rows.
        val: Number of validation rows.
        test: Number of test rows.
        seed: Seed of the draws and of the rotation.

    Raises:
        UserError: A number is out of its range.
    """

    name: ClassVar[str] = "gaussian"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"condition": 1e4, "mean": 0.5})

    def __init__(
        self,
        dim: int = 2,
        condition: float = 1.0,
        mean: float = 0.0,
        correlated: bool = True,
        train: int = 20_000,
        val: int = 2_000,
        test: int = 10_000,
        seed: int = 0,
    ) -> None:
        check_sizes(self.name, dim, train, val, test)
        if not 1 <= condition < math.inf:
            raise UserError(f"condition of {self.name} is {condition}; it must be finite, >= 1.")
        if dim == 1 and condition != 1:
            raise UserError(f"{self.name} in 1 dimension has condition 1, not {condition}.")
        if not math.isfinite(mean):
            raise UserError(f"mean of {self.name} is {mean}; it must be a finite number.")
        self.dim, self.condition, self.mean, self.correlated = dim, condition, mean, correlated
        self.train, self.val, self.test, self.seed = train, val, test, seed

    @cached_property
    def _oracle(self) -> GaussianOracle:
        exponents = torch.linspace(-0.5, 0.5, self.dim, dtype=torch.float64)
        variances = torch.ones(self.dim, dtype=torch.float64) * self.condition**exponents
        basis = torch.eye(self.dim, dtype=torch.float64)
        if self.correlated and self.condition > 1:
            basis = _rotation(self.dim, split_generator(self.seed, SHAPE))
        return GaussianOracle(torch.full_like(variances, self.mean), basis, variances)

    @property
    def oracle(self) -> GaussianOracle:
        """Density, score, optimal transport map, velocity, potential and cost."""
        return self._oracle

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n fresh rows (n, d), float64 on the CPU."""
        return self.oracle.sample(n, generator)

    def load(self) -> Data:
        """Draw the three splits."""
        return gaussian_data(
            self.name,
            self.oracle,
            (self.train, self.val, self.test),
            self.seed,
            notes=f"Gaussian in {self.dim} dimensions, condition number {self.condition:g}.",
            title=f"Gaussian, d = {self.dim}",
        )


class Mixture(Dataset):
    r"""Gaussians N(mean_k, scale^2 I) of equal weight, their means random on a sphere.

    Arguments:
        dim: Dimension d.
        components: Number of Gaussians.
        radius: Distance of the means from the origin.
        scale: Standard deviation of each Gaussian.
        train: Number of training rows.
        val: Number of validation rows.
        test: Number of test rows.
        seed: Seed of the draws and of the means.

    Raises:
        UserError: A number is out of its range.
    """

    name: ClassVar[str] = "mixture"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"components": 3, "scale": 2.0})

    def __init__(
        self,
        dim: int = 2,
        components: int = 8,
        radius: float = 4.0,
        scale: float = 0.5,
        train: int = 20_000,
        val: int = 2_000,
        test: int = 10_000,
        seed: int = 0,
    ) -> None:
        check_sizes(self.name, dim, train, val, test)
        if components < 1:
            raise UserError(f"components of {self.name} is {components}; it must be at least 1.")
        if not 0 <= radius < math.inf:
            raise UserError(f"radius of {self.name} is {radius}; it must be finite, >= 0.")
        if not 0 < scale < math.inf:
            raise UserError(f"scale of {self.name} is {scale}; it must be finite and positive.")
        self.dim, self.components, self.radius, self.scale = dim, components, radius, scale
        self.train, self.val, self.test, self.seed = train, val, test, seed

    @cached_property
    def _oracle(self) -> MixtureOracle:
        generator = split_generator(self.seed, SHAPE)
        means = torch.randn(self.components, self.dim, generator=generator, dtype=torch.float64)
        means = self.radius * means / torch.linalg.vector_norm(means, dim=1, keepdim=True)
        weights = torch.full((self.components,), 1 / self.components, dtype=torch.float64)
        return MixtureOracle(weights, means, self.scale)

    @property
    def oracle(self) -> MixtureOracle:
        """Density, score, and the marginal velocity of the linear path."""
        return self._oracle

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n fresh rows (n, d), float64 on the CPU."""
        return self.oracle.sample(n, generator)

    def load(self) -> Data:
        """Draw the three splits and estimate the entropy."""
        sizes = (self.train, self.val, self.test)
        train, val, test = draw_splits(self.sample, sizes, self.seed)
        entropy, error = self.oracle.estimate_entropy()
        return validate(
            Data(
                self.name,
                train,
                val,
                test,
                entropy=entropy,
                entropy_error=error,
                log_prob=self.oracle.log_prob,
                oracle=self.oracle,
                notes=f"{self.components} Gaussians of standard deviation {self.scale:g} in"
                f" {self.dim} dimensions, means at distance {self.radius:g}.",
                title=f"mixture, d = {self.dim}",
            ),
            self.name,
            minimum=2,
        )


def _rotation(dim: int, generator: torch.Generator) -> Tensor:
    """Draw an orthogonal (d, d) uniformly: QR, the signs of R's diagonal fixed (Mezzadri 2007)."""
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def gaussian_data(
    name: str,
    oracle: GaussianOracle,
    sizes: tuple[int, int, int],
    seed: int,
    *,
    notes: str,
    title: str,
) -> Data:
    """Draw the three splits of a Gaussian, with all that is known of it."""
    train, val, test = draw_splits(oracle.sample, sizes, seed)
    data = Data(
        name,
        train,
        val,
        test,
        entropy=oracle.entropy,
        log_prob=oracle.log_prob,
        transport_cost=oracle.transport_cost,
        oracle=oracle,
        notes=notes,
        title=title,
    )
    return validate(data, name, minimum=2)


def check_sizes(name: str, dim: int, train: int, val: int, test: int) -> None:
    """Raise UserError for a dimension or a number of rows that is too small."""
    if dim < 1:
        raise UserError(f"dim of {name} is {dim}; it must be at least 1.")
    if min(train, val, test) < 2:
        raise UserError(f"{name} needs at least 2 rows in each of train, val and test.")
