"""The Gaussians on which CP-Flow's transport is compared with the optimal one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from flowzoo.data.dataset import Data, Dataset, split_generator
from flowzoo.data.oracles import GaussianOracle
from flowzoo.data.synthetic import SHAPE, check_sizes, gaussian_data


class WishartGaussian(Dataset):
    r"""N(m, C) with m ~ N(0, I) and C ~ Wishart(d + 1, I); in the plane a law that is fixed.

    For d = 2, m = (1.5, 1) and C = [[0.9, -0.75], [-0.75, 0.9]]. Otherwise C = G^T G with G of
    d + 1 rows N(0, I): the largest eigenvalue is near 4 d, the smallest often below 1 / d, and the
    condition number, whose mean is infinite, thousands already for d = 32. What is known of the law
    comes from the singular values of G, not from C, which squares their condition number. The rows
    are not standardised: rescaled axes have another optimal map.

    Arguments:
        dim: Dimension d.
        train: Number of training rows.
        val: Number of validation rows.
        test: Number of test rows.
        seed: Seed of the draws, and of m and C but for d = 2.

    Raises:
        UserError: A number is out of its range.

    References:
        Convex Potential Flows (Huang, Chen, Tsirigotis & Courville, ICLR 2021), section 5.2,
        https://arxiv.org/abs/2012.05942, and its code
    """

    name: ClassVar[str] = "wishart-gaussian"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"dim": 8, "seed": 1})

    def __init__(
        self,
        dim: int = 2,
        train: int = 50_000,
        val: int = 2_000,
        test: int = 10_000,
        seed: int = 0,
    ) -> None:
        check_sizes(self.name, dim, train, val, test)
        self.dim, self.train, self.val, self.test, self.seed = dim, train, val, test, seed

    @cached_property
    def _oracle(self) -> GaussianOracle:
        if self.dim == 2:
            mean = torch.tensor([1.5, 1.0], dtype=torch.float64)
            covariance = torch.tensor([[0.9, -0.75], [-0.75, 0.9]], dtype=torch.float64)
            return GaussianOracle.of(mean, covariance)
        generator = split_generator(self.seed, SHAPE)
        mean = torch.randn(self.dim, generator=generator, dtype=torch.float64)
        g = torch.randn(self.dim + 1, self.dim, generator=generator, dtype=torch.float64)
        _, deviations, rows = torch.linalg.svd(g, full_matrices=False)
        return GaussianOracle(mean, rows.mT.contiguous(), deviations.square())

    @property
    def oracle(self) -> GaussianOracle:
        """Density, score, optimal transport map, velocity, potential and cost."""
        return self._oracle

    def sample(self, n: int, generator: Generator) -> Tensor:
        """Draw n fresh rows (n, d), float64 on the CPU."""
        return self.oracle.sample(n, generator)

    def load(self) -> Data:
        """Draw the three splits."""
        variances = self.oracle.variances
        condition = float(variances.max() / variances.min())
        law = "fixed" if self.dim == 2 else f"C ~ Wishart({self.dim + 1}, I)"
        return gaussian_data(
            self.name,
            self.oracle,
            (self.train, self.val, self.test),
            self.seed,
            notes=f"CP-Flow's N(m, C), {law}, condition number {condition:.3g}, not standardised.",
            title=f"Wishart Gaussian, d = {self.dim}",
        )
