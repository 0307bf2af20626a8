"""What the judge asks of a data set: test points, and what is known of their law."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor


class Standardised(Protocol):
    """The affine map between the data's published coordinates and the flow's."""

    @property
    def ladj(self) -> float:
        """log abs det of the map from the data's coordinates to the flow's, in nats."""
        ...


class Points(Protocol):
    """Test points and what is known of their law, in the flow's coordinates."""

    @property
    def test(self) -> Tensor:
        """Test points (n, d)."""
        ...

    @property
    def test_context(self) -> Tensor | None:
        """What they are conditioned on, (n, c)."""
        ...

    @property
    def log_prob(self) -> Callable[[Tensor], Tensor] | None:
        """Their true log-density, (n, d) -> (n,) in nats, where it is known."""
        ...

    @property
    def transport_cost(self) -> float | None:
        """The least transport cost to N(0, I), where it is known."""
        ...

    @property
    def oracle(self) -> Any:
        """What else is known of the law: optimal map, velocities, modes; None for nothing."""
        ...

    @property
    def bits_per_dim(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """(NLL (n,) in nats, x (n, d)) -> bits per dimension (n,), for images."""
        ...
