"""Potentials and the velocities that they make, against torch.func and a closed form."""

from __future__ import annotations

import pytest
import torch
from components import make_velocity, names
from oracles import F64, GaussianOT, SmallPotential, gap, row_by_row

from flowzoo.field import Gradient, Potential
from flowzoo.networks import PotentialMLP

DIM = 3


def potential_of(name, context_dim=0):
    if name == "small":
        return SmallPotential(DIM, context_dim)
    if name == "mlp without time":
        return PotentialMLP(DIM, (7, 5), time="none", context_dim=context_dim).to(F64)
    velocity = make_velocity(f"gradient/{name}", DIM, context_dim)
    if velocity is None:
        pytest.skip("takes no context")
    return velocity.potential


def arguments(n=4, dim=DIM, context_dim=0, rows=False):
    x = torch.randn(n, dim, dtype=F64)
    t = torch.rand(n, dtype=F64) if rows else torch.tensor(0.3, dtype=F64)
    return t, x, torch.randn(n, context_dim, dtype=F64) if context_dim else None


@pytest.mark.parametrize("name", ["small", "mlp without time", *names("potential")])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(("context_dim", "rows"), [(0, False), (0, True), (2, True)])
def test_a_potential_knows_its_derivatives(name, grad, context_dim, rows):
    potential = potential_of(name, context_dim=context_dim)
    t, x, context = arguments(context_dim=context_dim, rows=rows)

    def derivative(which):
        def one(t, x, c):
            phi = lambda s, y: potential(s, y[None], c)[0]  # noqa: E731
            return torch.func.grad(phi, which)(t, x[0])[None]

        return row_by_row(one, t, x, context).detach()

    with torch.set_grad_enabled(grad):
        at = potential.at(t, x, context)
        assert gap(at.gradient, derivative(1)) < 1e-12
        assert gap(at.phi_t, derivative(0)) < 1e-12
        assert gap(potential.gradient(t, x, context), derivative(1)) < 1e-12
        velocity = Gradient(potential, scale=2.0)
        point = velocity.at(t, x, context)
    assert gap(point.v, -derivative(1) / 2) < 1e-12
    assert gap(point.phi_t, derivative(0) / 2) < 1e-12


@pytest.mark.parametrize("name", names("potential"))
def test_what_a_potential_overrides_equals_what_is_derived(name, places):
    potential, x, t = potential_of(name), places(4, DIM), torch.tensor(0.7, dtype=F64)
    own, derived = potential.at(t, x), Potential.at(potential, t, x)
    assert gap(own.gradient, derived.gradient) < 1e-12
    assert gap(own.phi_t, derived.phi_t) < 1e-12
    assert gap(own.hessian.dense(), derived.hessian.dense()) < 1e-12
    losses = [(at.hessian.dense().square().sum() + at.phi_t.sum()) for at in (own, derived)]
    found = [
        torch.autograd.grad(y, list(potential.parameters()), allow_unused=True) for y in losses
    ]
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None) or max(
            y.abs().max() for y in (a, b) if y is not None
        ) == 0
        if a is not None and b is not None and b.abs().max() > 0:
            assert gap(a, b) < 1e-10


def test_the_potential_of_gaussian_transport_solves_its_equation(places):
    velocity, x = Gradient(GaussianOT(3, 0.4)), places(5, 3)
    for time in (0.0, 0.5, 1.0):
        at = velocity.at(torch.tensor(time, dtype=F64), x)
        a = 1 / 0.4 - 1
        assert gap(at.v, a * x / (1 + a * time)) < 1e-13
        assert gap(at.phi_t, 0.5 * at.v.square().sum(-1)) < 1e-13
