"""What the judge asks of a data set: test points, and what is known of their law."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from flowzoo.errors import Incompatible, UserError
from flowzoo.flow import Flow


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
    def log_prob(self) -> Callable[..., Tensor] | None:
        """Their true log-density in nats, (n, d) -> (n,), with contexts (n, d), (n, c) -> (n,)."""
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


def dimension(test: Tensor) -> int:
    """Return the dimension d of test points (n, d).

    Raises:
        UserError: They are no table of points, or there are none.
    """
    if test.ndim != 2:
        shape = tuple(test.shape)
        raise UserError(f"test points must be a table (n, d), one row for each; got shape {shape}")
    if not len(test):
        raise UserError("there are no test points to judge a flow on; give at least one")
    return test.shape[1]


def require_points(flow: Flow, data: Points) -> None:
    """Refuse test points that the flow cannot be scored on, before anything is solved.

    Raises:
        UserError: They are no table, there are none, some are not finite, or contexts are not one
            for each.
        Incompatible: Their dimension is not that of the flow.
    """
    test, context = data.test, data.test_context
    if (dim := dimension(test)) != flow.dim:
        raise Incompatible(f"the flow has {flow.dim} dimensions and the test points {dim}")
    if context is not None and (context.ndim != 2 or len(context) != len(test)):
        raise UserError(
            f"contexts must be a table (n, c), one row for each of the {len(test)} test points; "
            f"got shape {tuple(context.shape)}"
        )
    for what, rows in (("test points", test), ("contexts", context)):
        bad = 0 if rows is None else int((~rows.isfinite()).any(-1).sum())
        if bad:
            raise UserError(f"{bad} of the {len(test)} {what} are not finite; leave them out")
