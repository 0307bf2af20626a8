"""How integrators fail, by name, and what they leave alone: dtypes, inputs, empty batches."""

from __future__ import annotations

import pytest
import torch
from components import fixed_grids, integrator_options, load, make_integrator, methods, names
from oracles import F64, gap

from flowzoo.errors import Diverged, Incompatible, UserError
from flowzoo.integrators import FixedGrid, Integrator

STEPPED = [n for n in names("integrator") if methods(n)]
FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams"]


def pendulum(t, state, stage=0):
    """y' = y cos t."""
    assert t.dtype == state[0].dtype
    return (state[0] * torch.cos(t), state[0].sum(-1))


def start(n=3, d=2):
    y0 = 1.0 + torch.arange(n * d, dtype=F64).view(n, d) / 4
    return y0, torch.zeros(n, dtype=F64)


def explosive(t, state, stage=0):
    return (50 * state[0] ** 2, state[0].sum(-1))


ADAPTIVE = [n for n in names("integrator") if "max_steps" in integrator_options(n)]


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("grad", [False, True])
def test_an_explosion_is_named(name, grad):
    with (
        torch.set_grad_enabled(grad),
        pytest.raises(
            Diverged, match=r"dopri5: (underflow in dt|non-finite).*loosen rtol and atol"
        ),
    ):
        make_integrator(name, tol=1e-6).solve(explosive, start(), 0.0, 1.0)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_too_many_steps_are_named(name):
    with pytest.raises(Diverged, match="max_num_steps exceeded"):
        make_integrator(name, tol=1e-10, max_steps=3).solve(pendulum, start(), 0.0, 1.0)


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("grad", [False, True])
def test_a_field_that_is_not_a_number_is_named(name, value, grad):
    """torchdiffeq calls it an underflow of the step size."""

    def nowhere(t, state, stage=0):
        return tuple(y + value for y in state)

    with (
        torch.set_grad_enabled(grad),
        pytest.raises(Diverged, match="dopri5: non-finite values of the field"),
    ):
        make_integrator(name).solve(nowhere, start(), 0.0, 1.0)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_jump_without_end_underflows_the_step(name):
    """The field is finite everywhere, and no step at the jump is small enough."""

    def jumping(t, state, stage=0):
        return tuple(torch.full_like(y, 1e30) * (t > 0.3) for y in state)

    with pytest.raises(Diverged, match=r"dopri5: (underflow in dt|max_num_steps)"):
        make_integrator(name, tol=1e-6).solve(jumping, start(), 0.0, 1.0)


def test_errors_of_a_field_are_not_renamed():
    def wrong(t, state, stage=0):
        raise AssertionError("the field's own")

    with pytest.raises(AssertionError, match="the field's own"):
        make_integrator("dopri5").solve(wrong, start(), 0.0, 1.0)


@pytest.mark.parametrize("name", STEPPED)
def test_steps_and_methods_have_to_fit(name):
    with pytest.raises(Incompatible, match=r"dopri5 .*leave out steps=4"):
        load("integrator", name)(method="dopri5", steps=4)
    for method in FIXED:
        with pytest.raises(Incompatible, match=f"{method} .*number of steps"):
            load("integrator", name)(method=method)


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"first_step": 0.0}, "first_step must be positive, got 0.0"),
        ({"rtol": -1e-3}, "rtol and atol must not be negative nor both zero, got -0.001"),
        ({"rtol": 0.0, "atol": 0.0}, "nor both zero, got 0.0 and 0.0"),
        ({"atol": float("nan")}, "rtol and atol must not be negative"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(name, options, said):
    with pytest.raises(UserError, match=said):
        load("integrator", name)(**options)


@pytest.mark.parametrize("name", STEPPED)
def test_a_fixed_grid_has_no_first_step(name):
    with pytest.raises(Incompatible, match=r"rk4 has a fixed grid; leave out first_step=0.1"):
        load("integrator", name)(method="rk4", steps=4, first_step=0.1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adjoint_method": "rk4"}, "rk4 has a fixed grid: .* e.g. adjoint_steps: 8"),
        ({"adjoint_steps": 4}, "dopri5 chooses its steps .*leave out adjoint_steps=4"),
        ({"adjoint_method": "rk4", "adjoint_steps": 0}, "adjoint_steps: 8"),
    ],
)
def test_a_backward_solve_has_to_fit(options, said):
    with pytest.raises(Incompatible, match=said):
        load("integrator", "adjoint")(**options)
    with pytest.raises(UserError, match="adjoint_rtol and adjoint_atol must not be negative"):
        load("integrator", "adjoint")(adjoint_rtol=-1.0)


@pytest.mark.parametrize("name", fixed_grids())
def test_a_grid_has_a_step(name):
    with pytest.raises(Incompatible, match="at least one step, got steps=0"):
        make_integrator(name, 0)


# --- manners -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("integrator"))
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_dtype_is_that_of_the_state(name, dtype):
    state = tuple(y.to(dtype) for y in start())
    end = torch.tensor(1.0, dtype=F64)  # a double end must not promote a single state
    integrator = make_integrator(name, 8, 1e-4)
    for t1 in (1.0, end.to(dtype)):
        found = integrator.solve(pendulum, state, 0.0, t1).state
        assert [y.dtype for y in found] == [dtype, dtype]
    assert gap(found[0].to(F64), integrator.solve(pendulum, start(), 0.0, 1.0).state[0]) < 1e-4


@pytest.mark.parametrize("name", names("integrator"))
def test_inputs_are_left_as_they_were(name):
    y0, zero = start()
    kept, versions = (y0.clone(), zero.clone()), (y0._version, zero._version)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            make_integrator(name).solve(pendulum, (y0, zero), 0.0, 1.0)
    assert torch.equal(y0, kept[0])
    assert torch.equal(zero, kept[1])
    assert (y0._version, zero._version) == versions
    assert not y0.requires_grad


@pytest.mark.parametrize("name", names("integrator"))
def test_a_batch_of_none_is_solved(name):
    state = (torch.zeros(0, 2, dtype=F64), torch.zeros(0, dtype=F64))
    found = make_integrator(name).solve(pendulum, state, 0.0, 1.0).state
    assert [y.shape for y in found] == [(0, 2), (0,)]


def test_the_interfaces_are_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Integrator()
    assert FixedGrid.evaluations is None
