"""The velocity `parametrised`: made by a network that predicts the data, the noise or the score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowzoo.errors import UserError
from flowzoo.field import Point, Velocity
from flowzoo.registry import suggest
from flowzoo_matching.path import Quantity, interval
from flowzoo_matching.schedule import OT, Coefficients, Diffusion, Schedule
from flowzoo_matching.shifted import Shifted

_GAP = 1e-3  # how far from an end at which it is divided by zero a network is asked


class Parametrised(Velocity):
    """The velocity that a prediction of the data, the noise or the score at (t, x) implies.

    With x = alpha data + sigma noise and D = d_alpha sigma - alpha d_sigma it is

        v = (D / sigma) data + (d_sigma / sigma) x
          = -(D / alpha) noise + (d_alpha / alpha) x
          = (D sigma / alpha) score + (d_alpha / alpha) x,

    for means given x as for single pairs. `matching` regresses such a network on what it predicts.

    Predicting the data divides by sigma, which is 0 at the data; predicting noise or score divides
    by alpha, which is 0 at the noise on most schedules. There an exact prediction leaves v finite,
    but that of a network does not: its error is multiplied. So outside a window of times v is held,
    v(t, x) = v(nearest end of the window, x). The flow still runs from 0 to 1, and its likelihood
    is its own; what is lost is structure finer than sigma at the window's beginning.

    The Jacobian is c A + s I with A that of the network, whose closed forms are kept.

    Arguments:
        net: The network.
        schedule: alpha and sigma; the straight line `ot` when left out. That of matching's path.
        predicts: What the network predicts; `velocity` changes nothing.
        t_range: The window: times at which the network is asked. When left out the schedule's
            `t_range`, 1e-3 away from an end where this divides by zero.

    Raises:
        UserError: `predicts` is none of these.
        Incompatible: `t_range` is not an interval inside [0, 1].

    References:
        Flow Matching Guide and Code (Lipman et al., 2024), https://arxiv.org/abs/2412.06264,
        section 4.8
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {
            "net": {"name": "mlp", "hidden": [8]},
            "schedule": {"name": "vp", "beta_max": 2.0},
            "predicts": "score",
        },
        {
            "net": {"name": "gradient", "potential": {"name": "mlp", "hidden": [8]}},
            "schedule": "cosine",
            "predicts": "noise",
            "t_range": [0.0, 0.95],
        },
        {"net": {"name": "mlp", "hidden": [8]}, "predicts": "data", "t_range": [0.05, 1.0]},
        {"net": {"name": "mlp", "hidden": [8]}, "predicts": "velocity"},
    )

    def __init__(
        self,
        net: Velocity,
        schedule: Schedule | None = None,
        predicts: Quantity = "data",
        t_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if predicts not in _WEIGHTS:
            hint = suggest(predicts, _WEIGHTS)
            raise UserError(f"parametrised: nothing predicts '{predicts}'{hint}")
        self.net, self.schedule = net, OT() if schedule is None else schedule
        self.dim, self.context_dim = net.dim, net.context_dim
        self.provides = net.provides & {"symmetric"}
        self.predicts: Quantity = predicts
        self.t_range = interval("parametrised", t_range, _t_range(self.schedule, predicts))

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return v as (n, d), for t () or (n,), x (n, d) and context (n, c) or None."""
        t = t.clamp(*self.t_range)
        own, shift = self._weights(t)
        return own[..., None] * self.net(t, x, context) + shift[..., None] * x

    def at(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Point:
        """Return the velocity and its Jacobian, by those of the network."""
        return self._moved(t, self.net.at(t.clamp(*self.t_range), x, context))

    def with_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Point:
        """Return the same; the network may compute its divergence along."""
        return self._moved(t, self.net.with_divergence(t.clamp(*self.t_range), x, context))

    def _weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return what network and place are multiplied by in v, at times t of the window."""
        if isinstance(self.schedule, Diffusion) and self.predicts == "score":
            f, g_squared = self.schedule.rates(t)  # finite at both ends
            return -0.5 * g_squared, f
        return _WEIGHTS[self.predicts](self.schedule.at(t))

    def _moved(self, t: Tensor, at: Point) -> Point:
        own, shift = self._weights(at.t)
        v = own[..., None] * at.v + shift[..., None] * at.x
        return Point(t, at.x, v, Shifted(at.jacobian, own, shift, self.dim))


def determinant(at: Coefficients) -> Tensor:
    """Return D = d_alpha sigma - alpha d_sigma, negative where alpha / sigma falls."""
    return at.d_alpha * at.sigma - at.alpha * at.d_sigma


def _t_range(schedule: Schedule, predicts: Quantity) -> tuple[float, float]:
    if predicts == "velocity":
        return 0.0, 1.0
    low, high = schedule.t_range
    ends = schedule.at(torch.tensor([0.0, 1.0], dtype=torch.float64))
    if predicts == "data" and ends.sigma[0] < _GAP:
        low = max(low, _GAP)
    if predicts != "data" and ends.alpha[1] < _GAP:
        high = min(high, 1 - _GAP)
    return low, high


_WEIGHTS: dict[Quantity, Callable[[Coefficients], tuple[Tensor, Tensor]]] = {
    "velocity": lambda at: (torch.ones_like(at.alpha), torch.zeros_like(at.alpha)),
    "data": lambda at: (determinant(at) / at.sigma, at.d_sigma / at.sigma),
    "noise": lambda at: (-determinant(at) / at.alpha, at.d_alpha / at.alpha),
    "score": lambda at: (determinant(at) * at.sigma / at.alpha, at.d_alpha / at.alpha),
}
