"""Checks of potentials: gradient, time derivative and Hessian."""

from __future__ import annotations

import torch
from torch import Tensor

from flowzoo.conformance.check import check, off_by, require
from flowzoo.conformance.probes.fields_made import ROUNDING, made, places
from flowzoo.conformance.probes.linear import against_autograd
from flowzoo.conformance.specimen import Specimen
from flowzoo.field import Potential


@check("potential")
def gradient(specimen: Specimen) -> str:
    """`gradient` is the derivative of `forward` in space, recorded or not."""
    field, said = made(specimen), ""
    t, x, *context = places(specimen, field)
    for time in (t, t[3]):
        expected, _ = _slopes(field, time, x, *context)
        for recorded in (True, False):
            with torch.set_grad_enabled(recorded):
                found = field.gradient(time, x, *context)
            said = off_by(found.detach(), expected, ROUNDING, "the gradient")
    return said


@check("potential")
def at(specimen: Specimen) -> str:
    """A point's gradient and time derivative are the derivatives of `forward`, recorded or not."""
    field, said = made(specimen), ""
    t, x, *context = places(specimen, field)
    for time in (t, t[3]):
        gradient, phi_t = _slopes(field, time, x, *context)
        for recorded in (True, False):
            with torch.set_grad_enabled(recorded):
                point = field.at(time, x, *context)
            off_by(point.gradient.detach(), gradient, ROUNDING, "the point's gradient")
            said = off_by(point.phi_t.detach(), phi_t, ROUNDING, "phi_t")
            require(point.hessian.symmetric, "its Hessian does not say that it is symmetric")
    return said


@check("potential")
def hessian(specimen: Specimen) -> str:
    """The Hessian, its products and its trace are those of automatic differentiation."""

    def gradient(field: Potential, t: Tensor, x: Tensor, *context: Tensor) -> Tensor:
        return torch.autograd.grad(field(t, x, *context).sum(), x, create_graph=True)[0]

    return against_autograd(specimen, gradient, "H")


def _slopes(field: Potential, t: Tensor, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
    """Return the derivatives of `forward` in space and, for each place, in time."""
    t, x = t.expand(len(x)).clone().requires_grad_(), x.clone().requires_grad_()
    value = field(t, x, *context).sum()
    in_x, in_t = torch.autograd.grad(value, (x, t), allow_unused=True, materialize_grads=True)
    return in_x, in_t
