"""Fields: velocities, potentials, and what is known of them at a point.

Time runs from data (t = 0) to noise (t = 1); the flow solves dx/dt = v(t, x), and a potential flow
has v = -grad_x Phi. A field is asked once per evaluation, and answers with a `Point`: the velocity
together with its Jacobian as a linear map seen through products, so that traces and costs share one
graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowzoo.maps import Jacobian, LinearMap, Scaled, leaf


@dataclass(frozen=True)
class Point:
    """What a velocity knows at (t, x).

    Arguments:
        t: Time, () or (n,).
        x: Places (n, d).
        v: Velocity (n, d).
        jacobian: dv/dx.
        phi_t: For v = -grad Phi the time derivative dPhi/dt (n,), else None.
    """

    t: Tensor
    x: Tensor
    v: Tensor
    jacobian: LinearMap
    phi_t: Tensor | None = None

    @cached_property
    def kinetic(self) -> Tensor:
        """|v|^2 / 2 (n,), computed once for all costs."""
        return 0.5 * self.v.square().sum(-1)


class Velocity(nn.Module, ABC):
    """v(t, x): the learned right-hand side of dx/dt = v.

    A subclass sets `dim` and implements `forward`; it overrides `at` only to fuse what it computes.
    `provides` names what its `Point` holds beyond v and products with the Jacobian: `phi_t`,
    `symmetric`.
    """

    kind: ClassVar[str] = "velocity"
    provides: frozenset[str] = frozenset()
    dim: int
    context_dim: int = 0

    @abstractmethod
    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return v(t, x) as (n, d), for t () or (n,), x (n, d) and context (n, c) or None."""

    def at(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Point:
        """Return the velocity and its Jacobian at (t, x), by automatic differentiation."""
        create_graph = torch.is_grad_enabled()
        x = leaf(x)
        with torch.enable_grad():
            v = self(t, x, context)
        jacobian = Jacobian(v, x, lambda y: self(t, y, context), create_graph=create_graph)
        return Point(t, x, v if create_graph else v.detach(), jacobian)

    def with_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Point:
        """Return the same; the trace of the Jacobian is going to be asked for.

        A field that computes it along with the velocity overrides this.
        """
        return self.at(t, x, context)


@dataclass(frozen=True)
class PotentialPoint:
    """What a potential knows at (t, x).

    Arguments:
        gradient: grad_x Phi (n, d).
        phi_t: dPhi/dt (n,).
        hessian: The Hessian in x.
    """

    gradient: Tensor
    phi_t: Tensor
    hessian: LinearMap


class Potential(nn.Module, ABC):
    """Phi(t, x), whose negative gradient moves the points.

    A subclass sets `dim` and implements `forward`. `gradient` and `at` are derived by automatic
    differentiation; one that has closed forms overrides both.
    """

    kind: ClassVar[str] = "potential"
    dim: int
    context_dim: int = 0

    @abstractmethod
    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return Phi(t, x) as (n,), for t () or (n,), x (n, d) and context (n, c) or None."""

    def gradient(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return grad_x Phi as (n, d), and nothing else: all that sampling needs."""
        create_graph = torch.is_grad_enabled()
        x = leaf(x)
        with torch.enable_grad():
            phi = self(t, x, context).sum()
        return torch.autograd.grad(phi, x, create_graph=create_graph)[0]

    def at(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> PotentialPoint:
        """Return gradient, time derivative and Hessian at (t, x), by automatic differentiation."""
        create_graph = torch.is_grad_enabled()
        x, t = leaf(x), leaf(t.expand(x.shape[0]))
        with torch.enable_grad():
            phi = self(t, x, context)
            gradient, phi_t = torch.autograd.grad(
                phi.sum(), (x, t), create_graph=True, allow_unused=True, materialize_grads=True
            )
        again = torch.func.grad(lambda y: self(t, y, context).sum())
        hessian = Jacobian(gradient, x, again, symmetric=True, create_graph=create_graph)
        if not create_graph:
            gradient, phi_t = gradient.detach(), phi_t.detach()
        return PotentialPoint(gradient, phi_t, hessian)

    def with_laplacian(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> PotentialPoint:
        """Return the same; the trace of the Hessian is going to be asked for.

        A potential that computes it along with the gradient overrides this.
        """
        return self.at(t, x, context)


class Gradient(Velocity):
    """v = -grad_x Phi / scale: the velocity of a potential flow.

    `phi_t` is that of the potential of this very velocity, Phi / scale, so that the
    Hamilton-Jacobi-Bellman equation reads dPhi/dt = |v|^2 / 2 at every scale.

    Arguments:
        potential: The potential Phi.
        scale: OT-Flow's alpha_0; 1 in all its published settings.

    References:
        OT-Flow: Fast and Accurate Continuous Normalizing Flows via Optimal Transport (Onken, Wu
        Fung, Li & Ruthotto, AAAI 2021), https://arxiv.org/abs/2006.00104
    """

    provides = frozenset({"phi_t", "symmetric"})
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"potential": "mlp"},
        {"potential": "mlp", "scale": 2.0},
    )

    def __init__(self, potential: Potential, scale: float = 1.0) -> None:
        super().__init__()
        self.potential, self.scale = potential, scale
        self.dim, self.context_dim = potential.dim, potential.context_dim

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return -grad_x Phi / scale as (n, d)."""
        return self.potential.gradient(t, x, context) * (-1 / self.scale)

    def at(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Point:
        """Return the velocity, its symmetric Jacobian and the potential's time derivative."""
        return self._scaled(t, x, self.potential.at(t, x, context))

    def with_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Point:
        """Return the same, from the potential's gradient and Laplacian together."""
        return self._scaled(t, x, self.potential.with_laplacian(t, x, context))

    def _scaled(self, t: Tensor, x: Tensor, point: PotentialPoint) -> Point:
        factor = 1 / self.scale
        v, hessian = -factor * point.gradient, Scaled(point.hessian, -factor)
        return Point(t, x, v, hessian, factor * point.phi_t)
