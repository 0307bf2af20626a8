"""Flows and data of which the judge's numbers are known, right ones and spoiled ones.

The data are N(m, s^2 I), of which everything is known in closed form: density, optimal transport,
marginal velocity, and the one mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace

import torch
from torch import Tensor, nn

from flowzoo.continuous import Continuous
from flowzoo.data.dataset import Data
from flowzoo.data.oracles import GaussianOracle, Modes, column
from flowzoo.field import Velocity
from flowzoo.flow import Encoded, Flow
from flowzoo.integrators import RK1, RK4, Integrator
from flowzoo.judge import Subject
from flowzoo.regularizers import RunningCost
from flowzoo.traces import Hutchinson, TraceEstimator

_SCALE = 1.6
_MEAN = 0.5
ROWS = 128

Moves = Callable[[Tensor, Tensor], Tensor]


class Known(Velocity):
    """A closed-form velocity; a context is where the data are, and moves all trajectories.

    Arguments:
        moves: v(t, x) for the data without context.
        dim: Dimension d.
        context_dim: 0, or d.
    """

    def __init__(self, moves: Moves, dim: int, context_dim: int = 0) -> None:
        super().__init__()
        self.moves, self.dim, self.context_dim = moves, dim, context_dim
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return v(t, x - (1 - t) c) - c as (n, d)."""
        if not self.context_dim:
            return self.one * self.moves(t, x)
        if context is None:
            raise ValueError("the flow is conditioned, but no context is given")
        return self.one * self.moves(t, x - (1 - column(t, x)) * context) - context


class Affine(Flow):
    """z = (x - m) / s in closed form, without a trajectory.

    Arguments:
        dim: Dimension d.
        mean: The mean m of every coordinate.
        scale: The scale s.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, mean: float, scale: float) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))

    def encode(
        self,
        x: Tensor,
        running: Sequence[RunningCost] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """Send data to noise."""
        self.requires(running)
        ladj = (-self.dim * self.scale.log()).expand(x.shape[0])
        return Encoded((x - self.mean) / self.scale, ladj, x.new_zeros(x.shape[0], 0))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Send noise to data."""
        return self.mean + self.scale * z


def law(dim: int, stretch: float = 1.0) -> GaussianOracle:
    """Return N(m, (stretch s)^2 I)."""
    unit = torch.eye(dim, dtype=torch.float64)
    mean = torch.full((dim,), _MEAN, dtype=torch.float64)
    return GaussianOracle(mean, unit, (stretch * _SCALE) ** 2 * torch.ones_like(mean))


def data(dim: int = 2, rows: int = ROWS, context: bool = False) -> Data:
    """Return rows of N(m, s^2 I) and all of its law, or of N(m + c, s^2 I) with contexts c."""
    oracle, generator = law(dim), torch.Generator().manual_seed(3)
    x = oracle.sample(rows, generator)
    if context:
        c = torch.randn(rows, dim, generator=generator, dtype=x.dtype)
        return Data("known", x + c, x + c, x + c, train_context=c, val_context=c, test_context=c)
    names = ("transport", "inverse_transport", "velocity", "potential", "matching_velocity")
    known = {name: getattr(oracle, name) for name in names}
    modes = Modes(torch.ones(1, dtype=x.dtype), oracle.mean[None], _SCALE)
    return Data(
        "known",
        x,
        x,
        x,
        entropy=oracle.entropy,
        log_prob=oracle.log_prob,
        transport_cost=oracle.transport_cost,
        oracle=SimpleNamespace(modes=modes, **known),
        bits_per_dim=lambda nll, x: nll / (x.shape[1] * math.log(2)),
    )


def _ode(
    moves: Moves, dim: int, integrator: Integrator, trace: TraceEstimator | None = None
) -> Continuous:
    return Continuous(Known(moves, dim), integrator, trace).eval()


PERFECT: Mapping[str, Callable[[int], Flow]] = MappingProxyType(
    {
        "the optimal flow": lambda dim: _ode(law(dim).velocity, dim, RK4(4)),
        "the flow of linear paths": lambda dim: _ode(law(dim).matching_velocity, dim, RK4(8)),
        "the closed form": lambda dim: Affine(dim, _MEAN, _SCALE),
    }
)

SPOILED: Mapping[str, Callable[[int], Flow]] = MappingProxyType(
    {
        "a shifted flow": lambda dim: _ode(lambda t, x: law(dim).velocity(t, x) + 5, dim, RK4(4)),
        "a stretched flow": lambda dim: _ode(law(dim, 1.5).velocity, dim, RK4(4)),
        "a roundabout flow": lambda dim: _ode(law(dim).matching_velocity, dim, RK4(8)),
        "a coarse solver": lambda dim: _ode(law(dim).matching_velocity, dim, RK1(1)),
        "a slow solver": lambda dim: _ode(law(dim).velocity, dim, RK4(40)),
        "a noisy trace": lambda dim: _ode(law(dim).velocity, dim, RK4(4), Hutchinson("gaussian")),
    }
)


def conditional(dim: int = 2) -> Subject:
    """Return the subject of a flow with a context."""
    flow = Continuous(Known(law(dim).velocity, dim, dim), RK4(4)).eval()
    return Subject(flow, data(dim, context=True))


def ideals(dim: int = 2) -> dict[str, dict[str, float]]:
    """Return for every perfect flow, by name, the true values of the numbers that are known."""
    known = law(dim)
    right = {
        "nll": known.entropy,
        "nll-own": known.entropy,
        "bits-per-dim": known.entropy / (dim * math.log(2)),
        "modes": 1.0,
        **dict.fromkeys(("kl", "density-error", "energy-distance", "sliced-w2", "w2"), 0.0),
        **dict.fromkeys(("mmd-m", "mmd-1", "mmd-c"), 0.0),
    }
    straight = {
        "transport": known.transport_cost,
        "path-energy": 2 * known.transport_cost,
        **dict.fromkeys(("optimality", "detour"), 1.0),
        **dict.fromkeys(("npe", "straightness", "velocity-error", "inverse-error"), 0.0),
    }
    return {
        "the optimal flow": right | straight | {"map-error": 0.0},
        "the flow of linear paths": right | {"matching-velocity-error": 0.0},
        "the closed form": right | {"map-error": 0.0, "inverse-error": 0.0},
    }
