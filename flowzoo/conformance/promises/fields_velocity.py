"""Checks of velocities: what their points say of the velocity itself."""

from __future__ import annotations

import torch

from flowzoo.conformance.check import Skipped, check, off_by, require
from flowzoo.conformance.probes.fields_made import ROUNDING, made, places, slope
from flowzoo.conformance.probes.linear import against_autograd
from flowzoo.conformance.specimen import Specimen
from flowzoo.field import Gradient

DIFFERENCES = 1e-6  # what finite differences may be off by


@check("velocity")
def point(specimen: Specimen) -> str:
    """A point has the velocity that `forward` gives, and the time and places asked about."""
    field, said = made(specimen), ""
    t, x, *context = places(specimen, field)
    for time in (t, t[3]):
        for recorded in (True, False):
            with torch.set_grad_enabled(recorded):
                at, v = field.at(time, x, *context), field(time, x, *context)
            said = off_by(at.v.detach(), v.detach(), ROUNDING, "the point's v")
            require(torch.equal(at.x, x), "the point is at other places")
            require(bool((at.t == time).all()), "the point is at another time")
    return said


@check("velocity")
def jacobian(specimen: Specimen) -> str:
    """The Jacobian, its products and its trace are those of automatic differentiation."""
    return against_autograd(specimen, lambda field, t, x, *c: field(t, x, *c), "A")


@check("velocity")
def symmetric(specimen: Specimen) -> str:
    """Where the Jacobian says that it is symmetric, it is; it says so where the velocity does."""
    field = made(specimen)
    t, x, *context = places(specimen, field)
    a = field.at(t, x, *context).jacobian
    promised = "symmetric" in field.provides
    require(a.symmetric or not promised, "provides symmetric, which its Jacobian denies")
    if not a.symmetric:
        raise Skipped("its Jacobian does not say that it is symmetric")
    dense = a.dense().detach()
    return off_by(dense, dense.mT, ROUNDING, "A - A^T")


@check("velocity")
def phi_t(specimen: Specimen) -> str:
    """phi_t is the time derivative of the potential: its gradient in space is -dv/dt."""
    field = made(specimen)
    if "phi_t" not in field.provides:
        raise Skipped("it provides no phi_t")
    t, x, *context = places(specimen, field)
    at, u = field.at(t, x, *context), specimen.points(len(x), field.dim, seed=2)
    require(at.phi_t is not None, "provides phi_t, which its points lack")
    require(at.phi_t.shape == t.shape, f"phi_t is {tuple(at.phi_t.shape)}, not (n,)")
    in_space = slope(lambda s: field.at(t, x + s * u, *context).phi_t)
    in_time = slope(lambda s: (field(t + s, x, *context) * u).sum(-1))
    said = off_by(in_space, -in_time, DIFFERENCES, "grad phi_t")
    if isinstance(field, Gradient):  # whose potential is known, and so phi_t itself
        phi = slope(lambda s: field.potential(t + s, x, *context) / field.scale)
        said = off_by(at.phi_t.detach(), phi, DIFFERENCES, "phi_t")
    return said
