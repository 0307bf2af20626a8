"""Convex potentials to check, each seen as one function of points and maybe a context."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from flowzoo.conformance.probes.invariance import Function
from flowzoo.conformance.specimen import Specimen
from flowzoo.maps import LinearMap, Scaled
from flowzoo.traces import Exact
from flowzoo_cp_flow.convex import Convex

ROUNDING = 1e-10
NAMES = ("F", "at's F", "the gradient", "H p", "log det (H + I)")


def made(specimen: Specimen, dim: int | None = None, **options: Any) -> Convex:
    """Return a potential of dimension 3, or of dimension `dim` if given (`Specimen.sized`).

    What waits for a batch has had one: a network's curvature is then of the size that it has in
    use.
    """
    potential: Convex = specimen.sized(3, dim, **options)
    if potential.waits:
        dtype = next((w.dtype for w in potential.parameters()), torch.float64)
        potential.settle(*places(specimen, potential, 64, dtype))
    return potential


def places(
    specimen: Specimen, potential: Convex, n: int = 9, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Return points (n, d) and, where it takes one, a context (n, c)."""
    found = [specimen.points(n, potential.dim, dtype)]
    if potential.context_dim:
        found.append(specimen.points(n, potential.context_dim, dtype, seed=1))
    return found


def numbers(potential: Convex) -> Function:
    """Return all that a potential computes as one function, of what `NAMES` says."""
    return functools.partial(_numbers, potential)


def _numbers(potential: Convex, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
    point = potential.at(x, context)
    product = point.hessian.vjp(torch.cos(2 * x.detach()))
    return potential(x, context), point.value, point.gradient, product, log_det(point.hessian)


def log_det(hessian: LinearMap) -> Tensor:
    """Return log det (H + I) as (n,)."""
    return Exact()(Scaled(hessian, 1.0, 1.0), None, torch.log)


def slope(y: Tensor, x: Tensor, create_graph: bool = False) -> Tensor:
    """Return the derivative of a sum, 0 where it does not depend on x."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(
        y.sum(), x, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )[0]
