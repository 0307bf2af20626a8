"""Regularizers: costs of a trajectory, paid along the way, at its end, or by a solve of their own.

Each is a sum over dimensions, per sample, unweighted; the objective multiplies by `weight`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from flowzoo.errors import Incompatible
from flowzoo.field import Point
from flowzoo.integrators import Evaluations


class Regularizer(ABC):  # noqa: B024 (its three members have different methods)
    """A cost that the objective adds, `weight` times its mean over the batch.

    `needs` names what the velocity's `Point` must provide: `phi_t`.

    Arguments:
        weight: The factor in the objective.
    """

    kind: ClassVar[str] = "regularizer"
    needs: frozenset[str] = frozenset()

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight


class RunningCost(Regularizer):
    """A cost per unit time, integrated along the trajectory as one more column of the state.

    With `detached` the places are constants in its gradient: the weights learn from the cost at the
    points of the trajectory, not by moving them.
    """

    detached: bool = False

    @abstractmethod
    def rate(self, at: Point, probes: Tensor | None) -> Tensor:
        """Return the cost per unit time, (n,), for the solve's probes (k, n, d) or None."""


class EndpointCost(Regularizer):
    """A cost of where a trajectory starts and ends."""

    @abstractmethod
    def between(self, x: Tensor, z: Tensor) -> Tensor:
        """Return the cost of moving x to z, (n,), for x and z (n, d)."""


class FlowCost(Regularizer):
    """A cost that asks the flow itself, by solves of its own.

    It stands below the flows that it asks, hence their type.
    """

    def requires(self, flow: Any) -> None:
        """Raise Incompatible, with the reason, where a `Flow` does not provide what it asks for."""

    @abstractmethod
    def cost(
        self,
        flow: Any,
        x: Tensor,
        z: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, tuple[Evaluations, ...]]:
        """Return the cost (n,), and what its solves took.

        Arguments:
            flow: The `Flow`.
            x: Data (n, d).
            z: The noise (n, d) that the flow makes of them, or makes them of.
            context: What the flow is conditioned on, (n, c).
            generator: Source of the randomness of trace estimators.
        """


class Transport(RunningCost):
    """The transport cost L: the integral of |v|^2 / 2.

    References:
        OT-Flow (Onken et al., AAAI 2021), https://arxiv.org/abs/2006.00104; RNODE's
        kinetic energy (Finlay, Jacobsen, Nurbekyan & Oberman, ICML 2020),
        https://arxiv.org/abs/2002.02798
    """

    def rate(self, at: Point, probes: Tensor | None) -> Tensor:
        """Return |v|^2 / 2."""
        return at.kinetic


class HJB(RunningCost):
    """The Hamilton-Jacobi-Bellman residual R: how far a potential is from an optimal one.

    Along optimal trajectories dPhi/dt = |grad Phi|^2 / 2.

    Arguments:
        weight: The factor in the objective.
        power: `absolute` integrates |residual| (OT-Flow), `squared` its square (Potential Flow
            Generator).
        detach: True takes the points of the trajectory as constants in the gradient, as codes
            around the Potential Flow Generator do; OT-Flow does not.

    References:
        OT-Flow (Onken et al., AAAI 2021), https://arxiv.org/abs/2006.00104;
        Potential Flow Generator (Yang & Karniadakis, 2019), https://arxiv.org/abs/1908.11462
    """

    needs = frozenset({"phi_t"})
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"power": "squared"},
        {"detach": True},
    )

    def __init__(
        self,
        weight: float = 1.0,
        power: Literal["absolute", "squared"] = "absolute",
        detach: bool = False,
    ) -> None:
        super().__init__(weight)
        self.power, self.detached = power, detach

    def rate(self, at: Point, probes: Tensor | None) -> Tensor:
        """Return |dPhi/dt - |v|^2 / 2| or its square."""
        assert at.phi_t is not None
        residual = at.phi_t - at.kinetic
        return residual.abs() if self.power == "absolute" else residual.square()


class JacobianFrobenius(RunningCost):
    """|dv/dx|_F^2, from the trace estimator's own products: E|J^T p|^2 = |J|_F^2.

    Without probes (an exact trace) it is computed from the whole Jacobian.

    References:
        How to Train Your Neural ODE (Finlay et al., ICML 2020), https://arxiv.org/abs/2002.02798
    """

    def rate(self, at: Point, probes: Tensor | None) -> Tensor:
        """Return |J|_F^2, or its unbiased estimate."""
        if probes is None:
            return at.jacobian.dense().square().sum((-2, -1))
        return at.jacobian.vjp(probes).square().sum(-1).mean(0)


class JKOW2(EndpointCost):
    """The proximal term of a JKO step: |x - z|^2 / (2 h).

    Arguments:
        step: The step size h of the scheme; smaller keeps the block closer to the identity.
        weight: The factor in the objective.

    References:
        Normalizing flow neural networks by JKO scheme (Xu, Cheng & Xie, NeurIPS 2023),
        https://arxiv.org/abs/2212.14424
    """

    def __init__(self, step: float = 1.0, weight: float = 1.0) -> None:
        super().__init__(weight)
        if not step > 0:
            raise Incompatible(f"jko-w2: step must be positive, got {step}")
        self.step = step

    def between(self, x: Tensor, z: Tensor) -> Tensor:
        """Return |x - z|^2 / (2 h)."""
        return (x - z).square().sum(-1) / (2 * self.step)
