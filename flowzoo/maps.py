"""Linear maps, n at once, seen through products: the Jacobians of velocities and of gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FEW = 8  # dimensions up to which batched backward passes give a Jacobian fastest


class LinearMap(ABC):
    """n square maps of R^d, one per sample, seen through products.

    Probes are p (n, d), or (k, n, d) for k products at once; the answer has the probes' shape.
    `floor` is a number that no eigenvalue of a symmetric map lies below, where one is known.
    """

    symmetric: bool = False
    floor: float | Tensor | None = None

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

    def rows(self, index: Tensor) -> LinearMap | None:
        """Return the maps of some samples, or None where they cost as much as all of them.

        Arguments:
            index: Which, distinct numbers (m,).
        """
        return None


class Jacobian(LinearMap):
    """dv/dx by automatic differentiation of a recorded v(x).

    Arguments:
        v: Outputs (n, d), recorded as a function of `x`; row n may depend on row n of x only.
        x: Inputs (n, d).
        fn: x -> v as a function that torch.func can transform.
        symmetric: True where v is a gradient.
        create_graph: Whether products are differentiated again; without it, and of products taken
            where gradients are switched off, no graph of the graph is built.
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
        self._last: tuple[Tensor, Tensor, bool] | None = None

    def vjp(self, p: Tensor) -> Tensor:
        """Return A^T p; the product with the same probes is computed once and shared."""
        if self._last is None or self._last[0] is not p or self._last[2] < self._records:
            one = p.dim() == 3 and p.shape[0] == 1  # a single probe spares the batching
            product = self._vjp(p[0] if one else p, self._records)
            self._last = (p, product[None] if one else product, self._records)
        return self._last[1]

    def jvp(self, p: Tensor) -> Tensor:
        """Return A p: the vjp where symmetric, else the derivative of u -> A^T u, linear in u."""
        if self.symmetric:
            return self.vjp(p)
        with torch.enable_grad():
            u = torch.zeros_like(self.v, requires_grad=True)
            at_u = self._vjp(u, create_graph=True)
        return _product(at_u, u, p, self._records)

    def dense(self) -> Tensor:
        """Return A, all of it in one batched pass."""
        n, d = self.v.shape
        basis = torch.eye(d, dtype=self.v.dtype, device=self.v.device)
        if self.fn is None or not self._records or d <= FEW:
            rows = self._vjp(basis[:, None, :].expand(d, n, d), self._records)
            return rows.transpose(0, 1)
        # Forward mode: d tangents share one set of activations. In many dimensions this is 2 to 3
        # times faster than backward passes that are differentiated again; in few, its overhead
        # counts (benchmarks/speed/trace.py).
        fn, x = self.fn, self.x

        def column(e: Tensor) -> Tensor:
            return torch.func.jvp(fn, (x,), (e.expand_as(x),))[1]

        return torch.func.vmap(column)(basis).permute(1, 2, 0)

    @property
    def _records(self) -> bool:
        return self.create_graph and torch.is_grad_enabled()

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
    """c A + s I for numbers c and s, whose gradients are kept where they are tensors ().

    Arguments:
        a: The map.
        factor: The number c.
        shift: The number s.
    """

    def __init__(self, a: LinearMap, factor: float | Tensor, shift: float | Tensor = 0.0) -> None:
        self.a, self.factor, self.shift, self.symmetric = a, factor, shift, a.symmetric

    @property
    def floor(self) -> float | Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """c times the floor of A, plus s."""
        return None if self.a.floor is None else _floor(self.factor, self.a.floor, self.shift)

    def vjp(self, p: Tensor) -> Tensor:
        """Return (c A + s I)^T p."""
        return self._plus(self.factor * self.a.vjp(p), p)

    def jvp(self, p: Tensor) -> Tensor:
        """Return (c A + s I) p."""
        return self._plus(self.factor * self.a.jvp(p), p)

    def dense(self) -> Tensor:
        """Return c A + s I as (n, d, d)."""
        scaled = self.factor * self.a.dense()
        eye = torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
        return self._plus(scaled, eye)

    def trace(self) -> Tensor | None:
        """Return the trace where A knows its own, and nothing is added."""
        trace = self.a.trace()
        return None if trace is None or self._shifts else self.factor * trace

    def rows(self, index: Tensor) -> Scaled | None:
        """Return those of some samples."""
        some = self.a.rows(index)
        return None if some is None else Scaled(some, self.factor, self.shift)

    @property
    def _shifts(self) -> bool:
        return isinstance(self.shift, Tensor) or self.shift != 0

    def _plus(self, scaled: Tensor, p: Tensor) -> Tensor:
        return scaled + self.shift * p if self._shifts else scaled


def _floor(factor: float | Tensor, floor: float | Tensor, shift: float | Tensor) -> Any:
    """Return the lower bound of c A + s I; none, or minus infinity, where c is negative."""
    if isinstance(factor, Tensor):  # whose sign an accelerator is not asked for
        return torch.where(factor >= 0, factor * floor + shift, -torch.inf)
    return factor * floor + shift if factor >= 0 else None


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
