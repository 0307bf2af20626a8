"""Fields to check: velocities and potentials, each seen as one function of times and places."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from flowzoo.conformance.probes.invariance import Function
from flowzoo.conformance.specimen import Specimen
from flowzoo.field import Potential, Velocity
from flowzoo.maps import LinearMap
from flowzoo.traces import Exact

Field: TypeAlias = Velocity | Potential
ROUNDING = 1e-11
SINGLE = 1e-4  # what second derivatives in float32 may be off by


def made(specimen: Specimen, dim: int | None = None, **options: Any) -> Any:
    """Return a field of dimension 3, or of dimension `dim` if given (`Specimen.sized`)."""
    return specimen.sized(3, dim, **options)


def places(
    specimen: Specimen, field: Field, n: int = 9, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Return times (n,) in (0, 1), places (n, d) and, where it takes one, context (n, c)."""
    found = [torch.linspace(0.03, 0.94, n, dtype=dtype), specimen.points(n, field.dim, dtype)]
    if field.context_dim:
        found.append(specimen.points(n, field.context_dim, dtype, seed=1))
    return found


def map_at(field: Field, t: Tensor, x: Tensor, context: Tensor | None = None) -> LinearMap:
    """Return the Jacobian of a velocity, or the Hessian of a potential."""
    if isinstance(field, Velocity):
        return field.at(t, x, context).jacobian
    return field.at(t, x, context).hessian


def probe(x: Tensor) -> Tensor:
    """Return a probe for each place that is a function of it."""
    return torch.cos(2 * x.detach())


def slope(fn: Callable[[float], Tensor], h: float = 1e-3) -> Tensor:
    """Return the derivative of a function at 0 by a central difference of fourth order."""
    far, near = (fn(2 * h) - fn(-2 * h)).detach(), (fn(h) - fn(-h)).detach()
    return (8 * near - far) / (12 * h)


def numbers(field: Field) -> tuple[Function, tuple[str, ...]]:
    """Return all that a field computes as one function of t, x and maybe context, with names."""
    if not isinstance(field, Velocity):
        names = ("Phi", "the gradient", "at's gradient", "phi_t", "tr H", "H p")
        return functools.partial(_of_potential, field), names
    phi_t = ("phi_t",) if "phi_t" in field.provides else ()
    return functools.partial(_of_velocity, field), ("v", "at's v", "tr A", "A^T p", "A p", *phi_t)


def _of_velocity(
    field: Velocity, t: Tensor, x: Tensor, context: Tensor | None = None
) -> tuple[Tensor, ...]:
    at, p = field.at(t, x, context), probe(x)
    trace, pulled, pushed = Exact()(at.jacobian, None), at.jacobian.vjp(p), at.jacobian.jvp(p)
    found = (field(t, x, context), at.v, trace, pulled, pushed)
    if "phi_t" not in field.provides:
        return found
    return (*found, x.new_zeros(len(x)) if at.phi_t is None else at.phi_t)  # which `phi-t` reports


def _of_potential(
    field: Potential, t: Tensor, x: Tensor, context: Tensor | None = None
) -> tuple[Tensor, ...]:
    at, alone = field.at(t, x, context), field.gradient(t, x, context)
    trace, product = Exact()(at.hessian, None), at.hessian.vjp(probe(x))
    return (field(t, x, context), alone, at.gradient, at.phi_t, trace, product)
