"""Couplings: which data point of a batch is paired with which noise point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Rows that belong together: row data[i] of the data with row noise[i] of the noise.

    Indices, not points, so that whatever goes with a data point can follow it.

    Arguments:
        data: Rows of the data (m,); None keeps all rows in their order.
        noise: Rows of the noise (m,); None keeps all rows in their order.
    """

    data: Tensor | None = None
    noise: Tensor | None = None

    def of_data(self, rows: Tensor) -> Tensor:
        """Return the rows of something that goes with the data, in the order of the pairs."""
        return rows if self.data is None else rows[self.data]

    def of_noise(self, rows: Tensor) -> Tensor:
        """Return the rows of something that goes with the noise, in the order of the pairs."""
        return rows if self.noise is None else rows[self.noise]


class Coupling(ABC):
    """A joint law of data and noise with the right marginals, drawn from on a batch."""

    kind: ClassVar[str] = "coupling"
    checks: ClassVar[str] = "flowzoo_matching.conformance.coupling"

    @abstractmethod
    def pair(
        self,
        x: Tensor,
        z: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Pairs:
        """Pair data x (n, d), which may come with a context (n, c), with noise z (n, d)."""


class Independent(Coupling):
    """Data and noise as they come: both are drawn independently, so row i goes with row i."""

    def pair(
        self,
        x: Tensor,
        z: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Pairs:
        """Return every row with the row of the same number."""
        return Pairs()
