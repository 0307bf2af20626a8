"""Linear maps, n at once, seen through products: the Jacobians of velocities and of gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

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


class Traced(LinearMap):
    """A symmetric map whose trace came along with something else; the rest is made when asked for.

    Arguments:
        trace: The trace (n,).
        rest: Makes the map.
    """

    symmetric = True

    def __init__(self, trace: Tensor, rest: Callable[[], LinearMap]) -> None:
        self._trace, self._rest = trace, rest
        self._made: LinearMap | None = None

    def vjp(self, p: Tensor) -> Tensor:
        """Return A p."""
        return self._map().vjp(p)

    def jvp(self, p: Tensor) -> Tensor:
        """Return A p."""
        return self._map().jvp(p)

    def dense(self) -> Tensor:
        """Return A as (n, d, d)."""
        return self._map().dense()

    def trace(self) -> Tensor:
        """Return tr A as (n,)."""
        return self._trace

    def _map(self) -> LinearMap:
        if self._made is None:
            self._made = self._rest()
        return self._made


def leaf(x: Tensor) -> Tensor:
    """Return x where it is part of a graph being recorded, else a copy that starts one."""
    if torch.is_grad_enabled() and x.requires_grad:
        return x
    return x.detach().requires_grad_()
