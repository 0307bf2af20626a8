"""What a flow promises of its density: that it integrates to one, and is that of its samples.

With a latent space it is integrated by the substitution x = decode(z): the integral of p(x) over x
is that of p(decode(z)) |det decode'(z)| over z, by the trapezoidal rule on [-5, 5]^d, outside of
which lies 1e-6 of the mass. The determinant is that of automatic differentiation, not the flow's
own. Where all is well the integrand is N(z; 0, I), whatever the shape of p, and a spacing of 0.625
integrates it to 1e-11. Without a latent space the rule is applied in x, on a box around samples.

The error of the quadrature is what every second point alone would change.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flowzoo.conformance.check import Skipped, check, off_by, require
from flowzoo.conformance.probes.flows_made import (
    INTEGRALS,
    Accuracy,
    TooRough,
    log_abs_det,
    made,
    solved,
)
from flowzoo.conformance.probes.moments import ERRORS, standard_normal
from flowzoo.conformance.specimen import Specimen
from flowzoo.flow import Flow, log_normal

_RADIUS = 5.0
_PIECE = 128  # points at once: a graph of the solve is kept for each
_DRAWS = 2048  # twice
_SAMPLED = (Accuracy(1e-4, 1e-2, 1000),)  # finer than moments of that many samples
_POINTS, _BOXED = {1: 65, 2: 17}, 257  # per axis, with a latent space and without

Integrand = Callable[[Tensor], Tensor]


@check("flow")
def mass_1d(specimen: Specimen) -> str:
    """In one dimension the density integrates to one."""
    return _integrates_to_one(specimen, 1)


@check("flow")
def mass_2d(specimen: Specimen) -> str:
    """In two dimensions the density integrates to one."""
    return _integrates_to_one(specimen, 2)


@check("flow")
def samples(specimen: Specimen) -> str:
    """Samples have the density that log_prob states, which is N(z) |det dz/dx| of encode.

    Samples, sent to noise, have the moments of N(0, I); without a latent space, samples have those
    that the density gives by quadrature.
    """

    def promise(flow: Flow, by: Accuracy) -> str:
        with torch.no_grad():
            drawn = flow.sample(_DRAWS, generator=specimen.generator(1))
            x, log_p = flow.sample_and_log_prob(_DRAWS, generator=specimen.generator(2))
            stated = flow.log_prob(x)
            off_by(log_p, stated, by.allowed, "log p of sample_and_log_prob, against log_prob,")
            if not flow.latent:
                return _has_density(specimen, flow, torch.cat([drawn, x]))
            one, other = flow.encode(drawn), flow.encode(x)
            through = log_normal(other.z) + other.ladj
            off_by(stated, through, by.allowed, "log_prob, against log N(z) + ladj of encode,")
            return standard_normal(torch.cat([one.z, other.z]), "samples sent to noise")

    return solved(made(specimen), promise, _SAMPLED)


def _has_density(specimen: Specimen, flow: Flow, drawn: Tensor) -> str:
    """Compare first and second moments of samples with the density's, on a box around them."""
    if flow.dim not in _POINTS:
        raise Skipped(f"it has {flow.dim} dimensions, too many for a quadrature")
    density, low, high = _boxed(specimen, flow)
    drawn, worst = drawn.double(), 0.0
    middle, spread = drawn.mean(0), drawn.std(0)
    for axis in range(flow.dim):
        for power in (1, 2):

            def moment(x: Tensor, axis: int = axis, power: int = power) -> Tensor:
                return ((x - middle) / spread)[:, axis] ** power

            expected, _ = _trapezoid(lambda x, f=moment: density(x) * f(x), low, high, _BOXED)
            values = moment(drawn)
            off = float((values.mean() - expected).abs() / (values.std() / len(values) ** 0.5))
            require(off <= ERRORS, f"moment {power} of samples is {off:.3g} errors from log_prob's")
            worst = max(worst, off)
    return f"moments of samples within {worst:.2g} errors of log_prob's, allowed {ERRORS:g}"


def _integrates_to_one(specimen: Specimen, dim: int) -> str:
    def promise(flow: Flow, by: Accuracy) -> str:
        return _mass(specimen, flow, by.allowed)

    return solved(made(specimen, dim), promise, INTEGRALS)


def _mass(specimen: Specimen, flow: Flow, allowed: float) -> str:
    integrand, low, high = _substituted(flow) if flow.latent else _boxed(specimen, flow)
    points = _POINTS[flow.dim] if flow.latent else _BOXED
    mass, error = _trapezoid(integrand, low, high, points)
    require(math.isfinite(float(mass)), f"the density is not finite: its integral is {mass:g}")
    if error > allowed / 3 and abs(mass - 1) <= 3 * error:
        raise TooRough(f"its mass is {mass:g}, by {points}^{flow.dim} points to {error:.1g} only")
    said = off_by(mass, torch.ones_like(mass), allowed, "mass")
    return f"{said}; quadrature by {error:.0e}"


def _substituted(flow: Flow) -> tuple[Integrand, Tensor, Tensor]:
    """Return z -> p(decode(z)) |det decode'(z)|, and the ends of a box of noise."""

    def integrand(z: Tensor) -> Tensor:
        z = z.clone().requires_grad_()
        x = flow.decode(z)
        volume = log_abs_det(x, z, "decode")
        with torch.no_grad():
            return (flow.log_prob(x.detach()) + volume).exp()

    high = torch.full((flow.dim,), _RADIUS, dtype=torch.float64)
    return integrand, -high, high


def _boxed(specimen: Specimen, flow: Flow) -> tuple[Integrand, Tensor, Tensor]:
    """Return the density, and the ends of a box twice as large as samples need."""
    drawn = flow.sample(1024, generator=specimen.generator()).detach().double()
    low, high = drawn.amin(0), drawn.amax(0)
    margin = 0.5 * (high - low)
    return lambda x: flow.log_prob(x).detach().exp(), low - margin, high + margin


def _trapezoid(
    integrand: Integrand, low: Tensor, high: Tensor, points: int
) -> tuple[Tensor, float]:
    """Return an integral (), and by how much every second point alone would change it."""
    d, axis = len(low), torch.linspace(0, 1, points, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * d).view(-1, d)
    at = low + (high - low) * grid
    values = torch.cat([integrand(piece) for piece in at.split(_PIECE)]).double()
    values = values.view([points] * d)  # and zero, nearly, at the ends
    cell = (high - low).prod() / (points - 1) ** d
    every_second = values[tuple([slice(None, None, 2)] * d)]
    mass, coarse = values.sum() * cell, every_second.sum() * cell * 2**d
    return mass, float((mass - coarse).abs().nan_to_num(nan=0.0))
