"""A dataset in any dimension with heavy tails, whose density and optimal transport are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Generator, Tensor

from flowzoo.data.dataset import Data, Dataset, draw_splits
from flowzoo.data.student_t import StudentTOracle
from flowzoo.data.synthetic import check_sizes
from flowzoo.data.validation import validate
from flowzoo.errors import UserError


class StudentT(Dataset):
    r"""Independent coordinates x_i = scale * tau_i, tau_i Student-t with `df` degrees of freedom.

    Tails fall like |x|^-(df + 1): moments of order df and above are infinite, so the variance is
    infinite for df <= 2 and so is the cost of transport to N(0, I). Above, the variance is
    scale^2 df / (df - 2).

    Arguments:
        dim: Dimension d.
        df: Degrees of freedom, 0.1 to 10^4; 1 is Cauchy, and many are nearly Gaussian.
        scale: Factor; sqrt((df - 2) / df) gives unit variance.
        train: Number of training rows.
        val: Number of validation rows.
        test: Number of test rows.
        seed: Seed of the draws.

    Raises:
        UserError: A number is out of its range.
    """

    name: ClassVar[str] = "student-t"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"df": 1.0},
        {"df": 30.0, "scale": 0.5},
    )

    def __init__(
        self,
        dim: int = 2,
        df: float = 3.0,
        scale: float = 1.0,
        train: int = 20_000,
        val: int = 2_000,
        test: int = 10_000,
        seed: int = 0,
    ) -> None:
        check_sizes(self.name, dim, train, val, test)
        if not 0.1 <= df <= 1e4:
            raise UserError(
                f"df of {self.name} is {df}; it must lie between 0.1 (below, values leave the range"
                " of floating point) and 10000 (above, take gaussian)."
            )
        if not 0 < scale < math.inf:
            raise UserError(f"scale of {self.name} is {scale}; it must be finite and positive.")
        self.dim, self.df, self.scale = dim, df, scale
        self.train, self.val, self.test, self.seed = train, val, test, seed

    @property
    def oracle(self) -> StudentTOracle:
        """Density, score, entropy, optimal transport map, velocity and cost."""
        return StudentTOracle(self.df, self.dim, self.scale)

    def sample(self, n: int, generator: Generator) -> Tensor:
        """Draw n fresh rows (n, d), float64 on the CPU."""
        return self.oracle.sample(n, generator)

    def load(self) -> Data:
        """Draw the three splits."""
        sizes = (self.train, self.val, self.test)
        train, val, test = draw_splits(self.sample, sizes, self.seed)
        oracle = self.oracle
        scaled = "" if self.scale == 1 else f" times {self.scale:g}"
        data = Data(
            self.name,
            train,
            val,
            test,
            entropy=oracle.entropy,
            log_prob=oracle.log_prob,
            transport_cost=oracle.transport_cost,
            oracle=oracle,
            notes=f"Independent Student-t, {self.df:g} degrees of freedom{scaled}, in {self.dim}"
            " dimensions, not standardised.",
            title=f"Student-t, df = {self.df:g}, d = {self.dim}",
        )
        return validate(data, self.name, minimum=2)
