"""The velocity `probability-flow`: the ODE that moves points as a diffusion moves their law."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible, UserError
from flowzoo.field import Point, Velocity
from flowzoo.flow import Flow
from flowzoo.registry import suggest
from flowzoo_matching.schedule import VP, Diffusion
from flowzoo_matching.shifted import Shifted

Parametrisation = Literal["sde", "noise", "score"]


class ProbabilityFlow(Velocity):
    """v = f x - g^2 s(t, x) / 2: the probability flow of dx = f x dt + g dW with the score s.

    With the exact score, s = grad log p_t, the flow and the diffusion have the same law at every
    time. The score is c(t) net(t, x), with c by the parametrisation.

    A score model knows the data with a little noise, from a time `start` on, as the score of the
    data themselves need not exist. The flow's time runs over [start, 1]: at time s of the flow the
    diffusion's is t = start + (1 - start) s, and v is multiplied by 1 - start. So a flow from 0 to
    1 is the diffusion from `start` to 1, which is how likelihoods of score models are published.
    The flow ends at N(0, I), not at the diffusion's own law at t = 1; `VP` says what that costs.

    The Jacobian is f I - g^2 c A / 2 with A that of the network, whose closed forms are kept.

    Arguments:
        net: The network; its times are the diffusion's.
        schedule: The diffusion; `vp` when left out.
        parametrisation: What the network is: `sde` g s, `noise` -sigma s, the mean noise, `score` s
            itself. With `noise` v grows as 1 / sigma towards the data; with the others it does not.
        start: The diffusion's time at the data; the beginning of the schedule's `t_range` when left
            out, 1e-5 for `vp`. 0 is possible unless the parametrisation divides by sigma(0) = 0.

    Raises:
        UserError: An unknown parametrisation.
        Incompatible: `start` is not in [0, 1), or the score is not finite there.

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations (Song,
        Sohl-Dickstein, Kingma, Kumar, Ermon & Poole, ICLR 2021), https://arxiv.org/abs/2011.13456,
        section 4.3; the network g s: A Variational Perspective on Diffusion-Based Generative Models
        and Score Matching (Huang, Lim & Courville, NeurIPS 2021), https://arxiv.org/abs/2106.02808
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"net": {"name": "mlp", "hidden": [8]}, "schedule": {"name": "vp", "beta_max": 2.0}},
        {"net": {"name": "mlp", "hidden": [8]}, "parametrisation": "noise", "start": 0.05},
        {
            "net": {"name": "gradient", "potential": {"name": "mlp", "hidden": [8]}},
            "parametrisation": "score",
            "start": 0.0,
        },
    )

    def __init__(
        self,
        net: Velocity,
        schedule: Diffusion | None = None,
        parametrisation: Parametrisation = "sde",
        start: float | None = None,
    ) -> None:
        super().__init__()
        if parametrisation not in _FACTORS:
            hint = suggest(parametrisation, _FACTORS)
            raise UserError(f"probability-flow: unknown parametrisation '{parametrisation}'{hint}")
        self.net, self.schedule = net, VP() if schedule is None else schedule
        self.dim, self.context_dim = net.dim, net.context_dim
        self.provides = net.provides & {"symmetric"}
        self.parametrisation: Parametrisation = parametrisation
        self.start = self.schedule.t_range[0] if start is None else start
        if not 0 <= self.start < 1:
            raise Incompatible(f"probability-flow: start must be in [0, 1), got {self.start}")
        nothing = bool(self.schedule.at(torch.tensor(float(self.start))).sigma == 0)
        if nothing and parametrisation == "noise":
            raise Incompatible(
                "probability-flow: the parametrisation noise divides by sigma, which is 0 at "
                "start: 0; set start to 1e-5, or the parametrisation to sde"
            )

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return v as (n, d), for the flow's time t () or (n,), x (n, d) and context (n, c)."""
        t = self.when(t)
        own, shift = self._weights(t)
        return own[..., None] * self.net(t, x, context) + shift[..., None] * x

    def at(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Point:
        """Return the velocity and its Jacobian, by those of the network."""
        return self._moved(t, self.net.at(self.when(t), x, context))

    def with_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Point:
        """Return the same; the network may compute its divergence along."""
        return self._moved(t, self.net.with_divergence(self.when(t), x, context))

    def when(self, t: Tensor) -> Tensor:
        """Return the diffusion's times at times t of the flow."""
        return self.start + (1 - self.start) * t

    def factor(self, t: Tensor) -> Tensor:
        """Return the c of score = c net at the diffusion's times t."""
        return _FACTORS[self.parametrisation](self.schedule, t)

    def score(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return s(t, x) as (n, d), at the diffusion's times t, () or (n,)."""
        return self.factor(t)[..., None] * self.net(t, x, context)

    def noise(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return -sigma s(t, x) as (n, d), what the model takes for the noise in x, likewise."""
        weight = -self.schedule.at(t).sigma * self.factor(t)
        return weight[..., None] * self.net(t, x, context)

    def _weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return what network and place are multiplied by in v, at the diffusion's times t."""
        f, g_squared = self.schedule.rates(t)
        speed = 1 - self.start
        return -0.5 * speed * g_squared * self.factor(t), speed * f

    def _moved(self, t: Tensor, at: Point) -> Point:
        own, shift = self._weights(at.t)
        v = own[..., None] * at.v + shift[..., None] * at.x
        return Point(t, at.x, v, Shifted(at.jacobian, own, shift, self.dim))


def probability_flow(flow: Flow) -> ProbabilityFlow | None:
    """Return the probability flow that a flow is, from 0 to 1; None where it is something else."""
    if not isinstance(flow, Continuous) or not isinstance(flow.velocity, ProbabilityFlow):
        return None
    return flow.velocity if flow.end_time == 1 and flow.raw_end_time is None else None


_FACTORS: dict[str, Callable[[Diffusion, Tensor], Tensor]] = {
    "sde": lambda schedule, t: schedule.rates(t)[1].rsqrt(),
    "noise": lambda schedule, t: -1 / schedule.at(t).sigma,
    "score": lambda schedule, t: t.new_ones(t.shape),
}
