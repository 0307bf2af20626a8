"""Divergence: NaN, infinity and solvers that give up are named with their step."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_flows import QUICK, Loud, fitted, points, swirl

from flowzoo.errors import Diverged
from flowzoo.objective import Likelihood
from flowzoo.odeint import Adjoint, Dopri5
from flowzoo.settings import Budget


@pytest.mark.parametrize("step", [1, 13, 20, 21, 47])
def test_a_nan_is_named_with_its_term_and_step(step):
    objective = Loud(before=lambda k, nll: nll * math.nan if k == step else nll)
    with pytest.raises(Diverged, match=rf"loss term nll became nan at step {step} \(lr 0.05\)"):
        fitted(objective=objective, budget=Budget(steps=50))


def test_a_nan_is_found_before_it_is_saved(tmp_path):
    objective = Loud(before=lambda k, nll: nll * math.nan if k == 3 else nll)
    with pytest.raises(Diverged, match="step 3"):
        fitted(objective=objective, folder=tmp_path, checkpoint_every=0.0)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["spent"]["steps"] == 2
    assert state["weights"]["mu"].isfinite().all()


def test_a_gradient_that_is_not_finite_is_found_at_the_end():
    # The loss is finite, the derivative of sqrt at 0 is not.
    objective = Loud(before=lambda k, nll: nll + (0 * nll).sqrt() if k == 20 else nll)
    with pytest.raises(Diverged, match="weights are no longer finite after step 20"):
        fitted(objective=objective)


def test_a_weight_that_is_not_finite_is_found_before_it_is_saved(tmp_path):
    objective = Loud(before=lambda k, nll: nll + (0 * nll).sqrt() if k == 3 else nll)
    with pytest.raises(Diverged, match="weights are no longer finite after step 3"):
        fitted(objective=objective, folder=tmp_path, checkpoint_every=0.0)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["spent"]["steps"] == 2


def test_an_error_that_an_earlier_nan_explains_is_a_divergence():
    def before(step, nll):
        if step == 7:
            raise torch.linalg.LinAlgError("did not converge")
        return nll * math.nan if step == 4 else nll

    with pytest.raises(Diverged, match="step 4"):
        fitted(objective=Loud(before=before))


def test_an_error_of_another_kind_passes():
    def before(step, nll):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fitted(objective=Loud(before=before))


@pytest.mark.parametrize(
    "integrator",
    [Dopri5(max_steps=5), Adjoint(adjoint_rtol=1e-13, adjoint_atol=1e-13, max_steps=20)],
)
def test_a_solver_that_gives_up_is_named_with_its_step(integrator):
    # The adjoint gives up in the backward pass.
    flow = swirl(integrator)
    with torch.no_grad():
        flow.velocity.a.weight.mul_(20)
    with pytest.raises(Diverged, match=r"at step \d \(lr 0.05\): .*max_num_steps"):
        fitted(flow, Likelihood())


def test_a_validation_that_is_not_finite_is_a_divergence():
    validation = points(5)
    validation.x[0] = 1e30
    with pytest.raises(Diverged, match="validation nll became inf at step 5"):
        fitted(training=replace(QUICK, validate_every=5), validation=validation)
