"""Integrators as numerical methods: orders, times, counts, tolerances, and named failures."""

from __future__ import annotations

import math

import pytest
import torch
from components import fixed_grids, integrator_options, load, make_integrator, methods, names
from oracles import F64, gap, slope
from scipy.linalg import expm

ORDERS = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}  # textbook orders
ADAMS = ["explicit_adams", "implicit_adams"]


def scalar(value):
    return torch.tensor(float(value), dtype=F64)


def pendulum(t, state, stage=0):
    """y' = y cos t, so that y = y(0) e^{sin t}; and its running integral y' = y."""
    return (state[0] * torch.cos(t), state[0].sum(-1))


def pendulum_at(t, y0):
    return y0 * math.exp(math.sin(t))


def start(n=3, d=2):
    y0 = 1.0 + torch.arange(n * d, dtype=F64).view(n, d) / 4
    return y0, torch.zeros(n, dtype=F64)


def every(name, **more):
    """Return the integrators that a registered name can mean: one per method where it has any."""
    found = []
    for method in methods(name):
        fixed = method in ORDERS or method in ADAMS
        size = {"steps": 12} if fixed else {"rtol": 1e-6, "atol": 1e-6}
        found.append((method, load("integrator", name)(method=method, **size, **more)))
    return found or [(name, make_integrator(name, 12, 1e-6, **more))]


# --- orders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", fixed_grids())
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0), (0.3, 1.7)])
def test_the_order_is_the_one_claimed(name, ends):
    y0, zero = start()
    expected = pendulum_at(ends[1], y0) / math.exp(math.sin(ends[0]))
    grid, errors = [16, 32, 64, 128], []
    for steps in grid:
        integrator = make_integrator(name, steps)
        errors.append(gap(integrator.solve(pendulum, (y0, zero), *ends).state[0], expected))
    assert slope(grid, errors) == pytest.approx(integrator.tableau.order, abs=0.15)


@pytest.mark.parametrize("name", fixed_grids())
def test_the_order_on_a_linear_system(name):
    a = torch.tensor([[0.2, 1.0, 0.0], [-1.0, 0.1, 0.5], [0.3, 0.0, -0.4]], dtype=F64)
    y0 = torch.eye(3, dtype=F64)
    expected = torch.from_numpy(expm(a.numpy().T * 1.5))
    grid, errors = [8, 16, 32, 64], []
    for steps in grid:
        solution = make_integrator(name, steps).solve(
            lambda t, s, i=0: (s[0] @ a.T,), (y0,), 0.0, 1.5
        )
        errors.append(gap(solution.state[0], expected))
    assert slope(grid, errors) == pytest.approx(load("integrator", name).tableau.order, abs=0.15)


@pytest.mark.parametrize("name", fixed_grids())
def test_the_tableau_is_consistent(name):
    tableau = load("integrator", name).tableau
    assert math.fsum(tableau.b) == pytest.approx(1, abs=1e-15)
    assert [math.fsum(row) for row in tableau.a] == pytest.approx(tableau.c[1:], abs=1e-15)
    for power in range(1, tableau.order):  # the quadrature conditions
        moment = math.fsum(b * c**power for b, c in zip(tableau.b, tableau.c, strict=True))
        assert moment == pytest.approx(1 / (power + 1), abs=1e-15)


@pytest.mark.parametrize("name", [n for n in names("integrator") if methods(n)])
@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)])
def test_fixed_methods_of_torchdiffeq_have_their_order(name, method, ends):
    y0, zero = start()
    expected = pendulum_at(ends[1], y0) / math.exp(math.sin(ends[0]))
    grid, errors = [8, 16, 32, 64], []
    for steps in grid:
        integrator = load("integrator", name)(method=method, steps=steps)
        errors.append(gap(integrator.solve(pendulum, (y0, zero), *ends).state[0], expected))
    assert slope(grid, errors) == pytest.approx(ORDERS[method], abs=0.2)


@pytest.mark.parametrize("name", names("integrator"))
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)])
def test_every_integrator_and_method_solves_the_problem(name, ends):
    y0, zero = start()
    expected = pendulum_at(ends[1], y0) / math.exp(math.sin(ends[0]))
    for method, integrator in every(name):
        order = ORDERS.get(method, getattr(getattr(integrator, "tableau", None), "order", 3))
        tolerance = {1: 0.1, 2: 4e-3}.get(order, 5e-4)
        assert gap(integrator.solve(pendulum, (y0, zero), *ends).state[0], expected) < tolerance, (
            method
        )


def test_kuttas_rule_is_that_of_torchdiffeq():
    y0, zero = start()
    ours = make_integrator("rk4-38", 7).solve(pendulum, (y0, zero), 0.0, 1.0).state
    theirs = load("integrator", "torchdiffeq")(method="rk4", steps=7)
    assert gap(ours, theirs.solve(pendulum, (y0, zero), 0.0, 1.0).state) < 1e-14


# --- times, counts, tolerances -------------------------------------------------------------------


def recorded(into):
    def field(t, state, stage=0):
        assert t.dim() == 0
        assert t.dtype == state[0].dtype
        into.append((t.item(), stage))
        return pendulum(t, state)

    return field


@pytest.mark.parametrize("name", fixed_grids())
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0), (0.25, 2.0)])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_fixed_grid_evaluates_at_its_times(name, ends, recompute):
    steps, seen = 6, []
    integrator = make_integrator(name, steps, recompute=recompute)
    y0, zero = start()
    y0.requires_grad_()
    solution = integrator.solve(recorded(seen), (y0, zero), *ends)
    (t0, t1), c = ends, integrator.tableau.c
    times = [t0 + (i + cj) * (t1 - t0) / steps for i in range(steps) for cj in c]
    assert [t for t, _ in seen] == pytest.approx(times, abs=1e-14)
    assert [stage for _, stage in seen] == list(range(steps * len(c)))
    assert integrator.evaluations == solution.nfe.forward == len(seen)
    assert (solution.accepted, solution.rejected, solution.nfe.backward) == (steps, 0, 0)
    solution.state[0].sum().backward()
    again = seen[len(times) :]
    assert solution.nfe.backward == len(again) == (len(times) if recompute else 0)
    assert sorted(again) == (sorted(seen[: len(times)]) if recompute else [])


@pytest.mark.parametrize("name", names("integrator"))
def test_every_evaluation_is_counted(name):
    for method, integrator in every(name):
        for grad in (False, True):
            seen = []
            y0, zero = start()
            y0.requires_grad_()
            with torch.set_grad_enabled(grad):
                solution = integrator.solve(recorded(seen), (y0, zero), 0.0, 1.0)
            assert solution.nfe.forward == len(seen), method
            if grad:
                solution.state[0].sum().backward()
                nfe = solution.nfe
                assert nfe.forward + nfe.backward == len(seen), method


@pytest.mark.parametrize("name", names("integrator"))
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)])
def test_no_field_is_evaluated_outside_its_interval(name, ends):
    for method, integrator in every(name):
        seen = []
        y0, zero = start()
        y0.requires_grad_()
        solution = integrator.solve(recorded(seen), (y0, zero), *ends)
        forward = len(seen)
        (solution.state[0].sum() + solution.state[1].sum()).backward()
        times = [t for t, _ in seen]
        assert min(times) >= -1e-12, method
        assert max(times) <= 1 + 1e-12, method
        assert times[0] == ends[0]
        if solution.accepted and method not in ADAMS:  # the end is reached, not interpolated to
            furthest = max(times[:forward]) if ends[1] > ends[0] else min(times[:forward])
            assert abs(furthest - ends[1]) < 1 / 6, method


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("tol", [1e-3, 1e-6, 1e-9])
def test_dopri5_counts_six_evaluations_a_step(grad, tol):
    """One evaluation starts it, one chooses the first step; with gradients that is done apart."""
    y0, zero = start()
    with torch.set_grad_enabled(grad):
        solution = make_integrator("dopri5", tol=tol).solve(
            lambda t, s, i=0: (torch.sin(20 * t) * s[0] ** 2, s[0].sum(-1)), (y0, zero), 0.0, 1.0
        )
    start_up = solution.nfe.forward - 6 * (solution.accepted + solution.rejected)
    assert start_up == (3 if grad else 2)


@pytest.mark.parametrize(
    "name", [n for n in names("integrator") if "rtol" in integrator_options(n)]
)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)])
def test_the_error_follows_the_tolerance(name, ends):
    y0, zero = start()
    expected = pendulum_at(ends[1], y0) / math.exp(math.sin(ends[0]))
    counts, tolerances = [], (1e-4, 1e-6, 1e-8, 1e-10)
    for tol in tolerances:
        solution = make_integrator(name, tol=tol).solve(pendulum, (y0, zero), *ends)
        assert gap(solution.state[0], expected) < 10 * tol
        counts.append(solution.nfe.forward)
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


def forced(t, state, stage=0):
    """Places that are easy, a ladj that is harder, and a cost that is stiff."""
    y, ladj, *costs = state
    slopes = (-y, torch.sin(30 * t).expand_as(ladj))
    return (*slopes, *(1e6 * torch.cos(300 * t) * torch.ones_like(cost) for cost in costs))


@pytest.mark.parametrize(
    "name", [n for n in names("integrator") if "norm" in integrator_options(n)]
)
def test_error_control_looks_at_places_and_ladj_alone(name):
    y0, zero = start()
    costs = torch.zeros(len(zero), 2, dtype=F64)
    taken = {}
    for norm in ("joint", "state"):
        integrator = make_integrator(name, tol=1e-6, norm=norm)
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                bare = integrator.solve(forced, (y0, zero), 0.0, 1.0)
                full = integrator.solve(forced, (y0, zero, costs), 0.0, 1.0)
            assert torch.equal(bare.state[0], full.state[0])
            assert torch.equal(bare.state[1], full.state[1])
            assert bare.nfe == full.nfe
        taken[norm] = bare.accepted + bare.rejected
    assert taken["state"] < taken["joint"]
