"""Convex potentials: F(x), whose gradient is a flow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from flowzoo.maps import Jacobian, LinearMap, leaf


@dataclass(frozen=True)
class ConvexPoint:
    """What a convex potential knows at x.

    Arguments:
        value: F(x) (n,).
        gradient: grad F (n, d).
        hessian: The Hessian of F; its `floor` is a lower bound of its eigenvalues.
    """

    value: Tensor
    gradient: Tensor
    hessian: LinearMap


class Convex(nn.Module, ABC):
    """F(x), convex in x for every context.

    A subclass sets `dim` and implements `forward`. `at` is derived by automatic differentiation;
    one that has closed forms overrides it.
    """

    kind: ClassVar[str] = "convex"
    checks: ClassVar[str] = "flowzoo_cp_flow.conformance.convex"
    dim: int
    context_dim: int = 0

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return F(x) as (n,), for x (n, d) and context (n, c) or None."""

    def at(self, x: Tensor, context: Tensor | None = None) -> ConvexPoint:
        """Return value, gradient and Hessian at x, by automatic differentiation."""
        create_graph = torch.is_grad_enabled()
        x = leaf(x)
        with torch.enable_grad():
            value = self(x, context)
            (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        again = torch.func.grad(lambda y: self(y, context).sum())
        hessian = Jacobian(gradient, x, again, symmetric=True, create_graph=create_graph)
        hessian.floor = 0.0
        if not create_graph:
            value, gradient = value.detach(), gradient.detach()
        return ConvexPoint(value, gradient, hessian)

    @property
    def waits(self) -> bool:
        """Whether the first training batch is still to set something; see `settle`."""
        return False

    def settle(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set what depends on data (normalisations) from the first training batch."""
