"""Gradients by weights, places, context and end time, under every integrator."""

from __future__ import annotations

import pytest
import torch
from components import integrator_options, make_integrator, methods, names
from oracles import F64, Linear, SmallVelocity, gap, gradients, slope
from variants import (
    TRACES,
    VARIANTS,
    VELOCITIES,
    all_gradients,
    costs_of,
    flow_of,
    integrator_of,
    loss_of,
)

from flowzoo.continuous import Continuous
from flowzoo.flow import Chain
from flowzoo.integrators import RK1, RK4, RK438, Midpoint
from flowzoo.odeint import Adjoint


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", VELOCITIES)
@pytest.mark.parametrize("trace", TRACES)
def test_gradients_under_every_integrator(variant, kind, trace, places):
    """Against RK4 in 60 steps; fixed grids against finite differences of their own solution."""
    x, context = places(4, 2), places(4, 2, seed=1)
    running = costs_of(kind)
    flow = flow_of(variant, kind, trace, end_time=0.8, train_end_time=True)
    found = all_gradients(flow, x, context, running)
    if "tableau" not in dir(flow.integrator):
        fine = flow.with_numerics(RK4(60))
        assert gap(found, all_gradients(fine, x, context, running)) < 2e-7
        return
    tensors = [x, context, *flow.parameters()]
    direction = [torch.randn_like(p) for p in tensors]
    values, epsilon = [], 1e-5
    for sign in (1, -1):
        with torch.no_grad():
            for p, q in zip(tensors, direction, strict=True):
                p.add_(sign * epsilon * q)
            values.append(loss_of(flow, x, context, running).item())
            for p, q in zip(tensors, direction, strict=True):
                p.sub_(sign * epsilon * q)
    slopes = [(g * q).sum() for g, q in zip(found, direction, strict=True)]
    assert sum(slopes).item() == pytest.approx((values[0] - values[1]) / (2 * epsilon), rel=1e-7)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_end_time_has_the_gradient_of_the_closed_form(variant):
    a = torch.tensor([[0.3, 0.5], [-0.2, 0.1]], dtype=F64)
    flow = Continuous(Linear(a), integrator_of(variant, 100), end_time=0.7, train_end_time=True)
    flow, x = flow.double(), torch.tensor([[1.0, -2.0], [0.5, 0.3]], dtype=F64)
    end = flow.encode(x)
    per_end = torch.sigmoid(flow.raw_end_time.detach())  # T = softplus(raw)
    (of_z,) = torch.autograd.grad(end.z.sum(), flow.raw_end_time, retain_graph=True)
    (of_ladj,) = torch.autograd.grad(end.ladj.sum(), flow.raw_end_time)
    order = getattr(getattr(flow.integrator, "tableau", None), "order", 4)
    accuracy = 0.01 ** min(order, 3)
    z = x @ torch.linalg.matrix_exp(0.7 * a).T
    assert of_z.item() == pytest.approx((per_end * (z @ a.T).sum()).item(), rel=accuracy)
    assert of_ladj.item() == pytest.approx((per_end * 2 * a.trace()).item(), rel=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_ends_of_a_solve_may_need_gradients(variant):
    """y' = y cos t: the derivative of y(1) is y(1) cos t1 by t1, and -y(1) cos t0 by t0."""
    t0, t1 = (torch.tensor(t, dtype=F64, requires_grad=True) for t in (0.2, 1.1))
    y0 = torch.ones(2, 1, dtype=F64, requires_grad=True)
    state = (y0, torch.zeros(2, dtype=F64))
    field = lambda t, s, stage=0: (s[0] * torch.cos(t), s[0].sum(-1) * 0)  # noqa: E731
    integrator = integrator_of(variant, 200)
    end = integrator.solve(field, state, t0, t1).state[0].sum()
    found = torch.stack(torch.autograd.grad(end, (t0, t1)))
    expected = end.detach() * torch.stack([-torch.cos(t0), torch.cos(t1)]).detach()
    order = getattr(getattr(integrator, "tableau", None), "order", 4)
    assert gap(found, expected) < 2 * 0.005 ** min(order, 3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_samples_carry_gradients(variant, places):
    z, context = places(3, 2), places(3, 2, seed=1)
    found = []
    for integrator in (integrator_of(variant, 40), RK4(60)):
        flow = flow_of(integrator, train_end_time=True)
        ends = [z.clone().requires_grad_(), context.clone().requires_grad_()]
        loss = flow.decode(*ends).square().sum()
        found.append(gradients(loss, [*ends, *flow.parameters()]))
    order = getattr(getattr(integrator_of(variant), "tableau", None), "order", 4)
    assert gap(*found) < {1: 0.2, 2: 2e-3}.get(order, 1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_forward_passes_before_one_backward(variant, places):
    flow = flow_of(variant, trace="hutchinson", context_dim=0)
    first, second = places(4, 2), places(3, 2, seed=2)
    parameters = list(flow.parameters())
    apart = [gradients(loss_of(flow, x, seed=s), parameters) for s, x in enumerate((first, second))]
    losses = [loss_of(flow, x, seed=s) for s, x in enumerate((first, second))]
    expected = [a + b for a, b in zip(*apart, strict=True)]
    assert gap(gradients(sum(losses), parameters), expected) < 1e-13


@pytest.mark.parametrize("variant", VARIANTS)
def test_blocks_that_share_weights(variant, places):
    x, velocity = places(3, 2), SmallVelocity(2)
    found = []
    for integrator in (integrator_of(variant, 40), RK4(60)):
        chain = Chain([Continuous(velocity, integrator), Continuous(velocity, integrator)])
        loss = -chain.log_prob(x).mean()
        found.append(gradients(loss, velocity.parameters()))
    order = getattr(getattr(integrator_of(variant), "tableau", None), "order", 4)
    assert gap(*found) < {1: 0.2, 2: 2e-3}.get(order, 1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_frozen_weights_stay_without_gradients(variant, places):
    flow = flow_of(variant, context_dim=0)
    everything = gradients(loss_of(flow, places(3, 2)), flow.parameters())
    flow.velocity.net[0].requires_grad_(False)
    loss_of(flow, places(3, 2)).backward()
    for expected, p in zip(everything, flow.parameters(), strict=True):
        assert p.grad is None if not p.requires_grad else gap(p.grad, expected) < 1e-6


# --- discretize-then-optimize and the adjoint ----------------------------------------------------


@pytest.mark.parametrize(
    ("method", "grid"), [("euler", RK1), ("midpoint", Midpoint), ("rk4", RK438)]
)
@pytest.mark.parametrize("kind", VELOCITIES)
def test_adjoint_and_discrete_gradients_meet_as_steps_grow(method, grid, kind, places):
    x, context = places(4, 2), places(4, 2, seed=1)
    steps, gaps = [4, 8, 16, 32], []
    for n in steps:
        discrete = all_gradients(flow_of(grid(n), kind), x, context)
        adjoint = all_gradients(flow_of(Adjoint(method, steps=n), kind), x, context)
        gaps.append(gap(adjoint, discrete))
    # Nothing is gained by a coincidence, so the order may be passed but not missed.
    assert slope(steps[1:], gaps[1:]) > grid.tableau.order - 0.3
    assert gaps[-1] < 1.5 / steps[-1] ** grid.tableau.order


@pytest.mark.parametrize(
    "name", [n for n in names("integrator") if "rtol" in integrator_options(n)]
)
def test_adaptive_gradients_follow_the_tolerance(name, places):
    x, context = places(4, 2), places(4, 2, seed=1)
    exact = all_gradients(flow_of(RK4(80)), x, context)
    for tol in (1e-4, 1e-6, 1e-8):
        flow = flow_of(make_integrator(name, tol=tol))
        assert gap(all_gradients(flow, x, context), exact) < 10 * tol


@pytest.mark.parametrize("method", [m for m in methods("adjoint") if "adams" not in m])
def test_every_method_of_the_adjoint_gives_gradients(method, places):
    x, context = places(3, 2), places(3, 2, seed=1)
    exact = all_gradients(flow_of(RK4(60)), x, context)
    fixed = method in ("euler", "midpoint", "heun2", "heun3", "rk4")
    size = {"steps": 24} if fixed else {"rtol": 1e-6, "atol": 1e-6}
    found = all_gradients(flow_of(Adjoint(method, **size)), x, context)
    assert gap(found, exact) < {"euler": 0.2, "midpoint": 2e-3, "heun2": 2e-3}.get(method, 1e-4)


def test_the_seminorm_leaves_weights_out_of_error_control(places):
    """v = -x + w sin(40 t) at w = 0: nothing oscillates but the weight's adjoint."""
    found, counts = [], []
    for seminorm in (False, True):
        w = torch.zeros(2, dtype=F64, requires_grad=True)
        x = places(4, 2).requires_grad_()
        solution = Adjoint(rtol=1e-6, atol=1e-6, seminorm=seminorm).solve(
            lambda t, s, stage=0, w=w: (w * torch.sin(40 * t) - s[0], 0 * s[1]),
            (x, torch.zeros(4, dtype=F64)),
            0.0,
            1.0,
            (w,),
        )
        found.append(torch.autograd.grad(solution.state[0].sum(), (x, w)))
        counts.append(solution.nfe.backward)
    assert counts[1] < counts[0] / 2
    assert gap(found[1][0], found[0][0]) < 1e-6


def test_the_adjoint_has_tolerances_of_its_own(places):
    x = places(4, 2)
    counts = {}
    for tol in (None, 1e-3, 1e-9):
        flow = flow_of(
            Adjoint(rtol=1e-6, atol=1e-6, adjoint_rtol=tol, adjoint_atol=tol), context_dim=0
        )
        end = flow.encode(x)
        (end.z.sum() + end.ladj.sum()).backward()
        counts[tol] = (end.nfe[0].forward, end.nfe[0].backward)
    assert len({forward for forward, _ in counts.values()}) == 1
    assert counts[1e-3][1] < counts[None][1] < counts[1e-9][1]
