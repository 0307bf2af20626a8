"""Options of torchdiffeq's solvers: the first step, and a backward solve of its own."""

from __future__ import annotations

import pytest
import torch
from components import integrator_options, load, make_integrator, names
from oracles import F64, gap


def pendulum(t, state, stage=0):
    """y' = y cos t."""
    return (state[0] * torch.cos(t), state[0].sum(-1))


def start(n=3, d=2):
    y0 = 1.0 + torch.arange(n * d, dtype=F64).view(n, d) / 4
    return y0, torch.zeros(n, dtype=F64)


@pytest.mark.parametrize(
    "name", [n for n in names("integrator") if "first_step" in integrator_options(n)]
)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("grad", [False, True])
def test_the_first_step_is_the_one_given(name, ends, grad):
    y0, zero = start()
    seen = []
    with torch.set_grad_enabled(grad):
        solution = make_integrator(name, tol=1e-6, first_step=0.01).solve(
            lambda t, s, stage=0: seen.append(t.item()) or pendulum(t, s), (y0, zero), *ends
        )
    # The second stage of dopri5 is at a fifth of the step.
    assert abs(seen[1] - ends[0]) == pytest.approx(0.01 / 5)
    assert solution.nfe.forward == 1 + 6 * (solution.accepted + solution.rejected)
    long = make_integrator(name, tol=1e-1, first_step=7.0)
    assert long.solve(pendulum, (y0, zero), *ends).accepted == 1, "it ends where the solve ends"


def backward(integrator, ends=(0.0, 1.0), watch=None):
    """Return gradients in the start and in a weight, and the solution."""
    y0, zero = start()
    y0.requires_grad_()
    w = torch.ones(2, dtype=F64, requires_grad=True)

    def field(t, state, stage=0):
        if watch is not None:
            watch.append(t.item())
        return (state[0] * torch.cos(t) * w, (w * state[0]).sum(-1))

    solution = integrator.solve(field, (y0, zero), *ends, (w,))
    loss = solution.state[0].square().sum() + solution.state[1].sum()
    return torch.autograd.grad(loss, (y0, w)), solution


@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize(
    ("options", "evaluations"),
    [
        ({"rtol": 1e-8, "atol": 1e-8, "adjoint_method": "rk4", "adjoint_steps": 20}, 80),
        ({"method": "rk4", "steps": 30, "adjoint_method": "midpoint", "adjoint_steps": 100}, 200),
        ({"method": "midpoint", "steps": 200, "adjoint_method": "rk4"}, 800),
        ({"method": "rk4", "steps": 30, "adjoint_method": "dopri5", "adjoint_rtol": 1e-7}, None),
    ],
)
def test_the_backward_solve_may_have_a_method_of_its_own(options, evaluations, ends):
    adjoint, seen = load("integrator", "adjoint"), []
    exact, _ = backward(adjoint(rtol=1e-11, atol=1e-11), ends)
    found, solution = backward(adjoint(**options), ends, seen)
    assert gap(found, exact) < 1e-4
    assert -1e-12 < min(seen) <= max(seen) < 1 + 1e-12
    assert solution.nfe.forward + solution.nfe.backward == len(seen)
    if evaluations is not None:
        assert solution.nfe.backward == evaluations
    else:
        assert solution.nfe.backward % 6 == 2


def test_the_adjoint_looks_at_no_gradient_of_time_unless_it_is_wanted():
    """v = x + sin(60 t) is smooth in x, and its gradient in t is not."""

    def field(t, state, stage=0):
        return (0.1 * state[0] + 60 * torch.sin(60 * t).detach(), 0 * state[1])

    def timed(t, state, stage=0):
        slopes = field(t, state)
        return (slopes[0] + 1e3 * (torch.sin(60 * t) - torch.sin(60 * t).detach()), slopes[1])

    counts = []
    for fn in (field, timed):
        y0, zero = start()
        y0.requires_grad_()
        solution = make_integrator("adjoint", tol=1e-6).solve(fn, (y0, zero), 0.0, 1.0)
        torch.autograd.grad(solution.state[0].sum(), y0)
        counts.append(solution.nfe.backward)
    assert counts[0] == counts[1]
    y0, zero = start()
    y0.requires_grad_()
    end = torch.tensor(1.0, dtype=F64, requires_grad=True)
    solution = make_integrator("adjoint", tol=1e-6).solve(timed, (y0, zero), 0.0, end)
    (slope_in_time,) = torch.autograd.grad(solution.state[0].sum(), end)
    assert gap(slope_in_time, timed(end, solution.state)[0].sum().detach()) < 1e-9
