"""Fields: velocities, potentials, and what is known of them at a point.

Time runs from data (t = 0) to noise (t = 1); the flow solves dx/dt = v(t, x), and a potential flow
has v = -grad_x Phi. A field is asked once per evaluation, and answers with a `Point`: the velocity
together with its Jacobian as a linear map seen through products, so that traces and costs share one
graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

FEW = 8  # dimensions up to which batched backward passes give a Jacobian fastest


class LinearMap(ABC):
    """n square maps of R^d, one per sample, seen through products.

    Probes are p (n, d), or (k, n, d) for k products at once; the answer has the probes' shape.
    """

    symmetric: bool = False

    @abstractmethod
    def vjp(self, p: Tensor) -> Tensor:
        """Return A^T p."""

    @abstractmethod
    def jvp(self, p: Tensor) -> Tensor:
        """Return A p."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Return A as (n, d, d), with A[n, i, j] = dv_i/dx_j."""

    def trace(self) -> Tensor | None:
        """Return tr A as (n,) where a closed form is cheaper than `dense`, else None."""
        return None


class Jacobian(LinearMap):
    """dv/dx by automatic differentiation of a recorded v(x).

    Arguments:
        v: Outputs (n, d), recorded as a function of `x`; row n may depend on row n of x only.
        x: Inputs (n, d).
        fn: x -> v as a function that torch.func can transform.
        symmetric: True where v is a gradient.
        create_graph: Whether products are differentiated again; without it no graph of the graph is
            built.
    """

    def __init__(
        self,
        v: Tensor,
        x: Tensor,
        fn: Callable[[Tensor], Tensor] | None = None,
        *,
        symmetric: bool = False,
        create_graph: bool = True,
    ) -> None:
        self.v, self.x, self.fn = v, x, fn
        self.symmetric, self.create_graph = symmetric, create_graph
        self._last: tuple[Tensor, Tensor] | None = None

    def vjp(self, p: Tensor) -> Tensor:
        """Return A^T p; the product with the same probes is computed once and shared."""
        if self._last is None or self._last[0] is not p:
            one = p.dim() == 3 and p.shape[0] == 1  # a single probe spares the batching
            product = self._vjp(p[0] if one else p, self.create_graph)
            self._last = (p, product[None] if one else product)
        return self._last[1]

    def jvp(self, p: Tensor) -> Tensor:
        """Return A p: the vjp where symmetric, else the derivative of u -> A^T u, linear in u."""
        if self.symmetric:
            return self.vjp(p)
        with torch.enable_grad():
            u = torch.zeros_like(self.v, requires_grad=True)
            at_u = self._vjp(u, create_graph=True)
        return _product(at_u, u, p, self.create_graph)

    def dense(self) -> Tensor:
        """Return A, all of it in one batched pass."""
        n, d = self.v.shape
        basis = torch.eye(d, dtype=self.v.dtype, device=self.v.device)
        if self.fn is None or not self.create_graph or d <= FEW:
            rows = self._vjp(basis[:, None, :].expand(d, n, d), self.create_graph)
            return rows.transpose(0, 1)
        # Forward mode: d tangents share one set of activations. In many dimensions this is 2 to 3
        # times faster than backward passes that are differentiated again; in few, its overhead
        # counts (benchmarks/speed/trace.py).
        fn, x = self.fn, self.x

        def column(e: Tensor) -> Tensor:
            return torch.func.jvp(fn, (x,), (e.expand_as(x),))[1]

        return torch.func.vmap(column)(basis).permute(1, 2, 0)

    def _vjp(self, p: Tensor, create_graph: bool) -> Tensor:
        return _product(self.v, self.x, p, create_graph)


def _product(y: Tensor, x: Tensor, p: Tensor, create_graph: bool) -> Tensor:
    """Return (dy/dx)^T p for p of y's shape, or with leading probes; zero where y ignores x."""
    if not y.requires_grad:
        return torch.zeros_like(p)
    (out,) = torch.autograd.grad(
        y,
        x,
        p,
        retain_graph=True,
        create_graph=create_graph,
        is_grads_batched=p.dim() == 3,
        allow_unused=True,
    )
    return torch.zeros_like(p) if out is None else out


class Scaled(LinearMap):
    """c A for a number c.

    Arguments:
        a: The map.
        factor: The number c.
    """

    def __init__(self, a: LinearMap, factor: float) -> None:
        self.a, self.factor, self.symmetric = a, factor, a.symmetric

    def vjp(self, p: Tensor) -> Tensor:
        """Return c A^T p."""
        return self.factor * self.a.vjp(p)

    def jvp(self, p: Tensor) -> Tensor:
        """Return c A p."""
        return self.factor * self.a.jvp(p)

    def dense(self) -> Tensor:
        """Return c A as (n, d, d)."""
        return self.factor * self.a.dense()

    def trace(self) -> Tensor | None:
        """Return c tr A where the map knows its trace."""
        trace = self.a.trace()
        return None if trace is None else self.factor * trace


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
        point, factor = self.potential.at(t, x, context), 1 / self.scale
        v, hessian = -factor * point.gradient, Scaled(point.hessian, -factor)
        return Point(t, x, v, hessian, factor * point.phi_t)


def leaf(x: Tensor) -> Tensor:
    """Return x where it is part of a graph being recorded, else a copy that starts one."""
    if torch.is_grad_enabled() and x.requires_grad:
        return x
    return x.detach().requires_grad_()
