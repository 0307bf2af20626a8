"""JKO-iFlow's blocks against the official code: maps, losses, gradients, likelihood, inverse."""

from __future__ import annotations

import math

import pytest
import torch
from jko_golden import block, chain, golden

from flowzoo.flow import log_normal
from flowzoo.integrators import RK4
from flowzoo.objective import Batch
from flowzoo.odeint import Dopri5
from flowzoo_jko_iflow.growing import Growing
from flowzoo_jko_iflow.objective import JKO
from flowzoo_jko_iflow.push import Pushed, push
from flowzoo_jko_iflow.steps import Steps, reparametrised

TIGHT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(scope="module")
def values():
    return golden()


def near(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_a_block_moves_points_as_published(values, steps):
    encoded = block(values, steps).encode(values["x"])
    near(encoded.z, values[f"T_x_rk4_S{steps}"])
    near(-encoded.ladj, values[f"neg_int_div_exact_rk4_S{steps}"])


def test_other_solvers_move_them_as_theirs(values):
    one = block(values)
    near(one.with_numerics(RK4(3)).encode(values["x"]).z, values["T_x_rk4_classic_S3"])
    tight = one.with_numerics(Dopri5(**TIGHT)).encode(values["x"])
    near(tight.z, values["T_x_ref"])
    near(-tight.ladj, values["neg_int_div_exact_ref"])


def test_the_velocity_and_its_divergence(values):
    at = block(values).velocity.at(torch.tensor(0.3), values["x"])
    near(at.v, values["f_x"])
    near(at.jacobian.dense(), values["jac_x"])
    near(at.jacobian.trace(), values["div_exact"])
    near((at.jacobian.vjp(values["e"]) * values["e"]).sum(-1), values["div_hutchinson"])


def test_the_loss_and_its_gradient(values):
    flow = Growing([block(values)]).double()
    flow.step_sizes.fill_(values["h"])
    loss = JKO().loss(flow, 0, Batch(values["x"]))
    near(loss.terms["potential"], values["loss_V_exact"])
    near(loss.terms["divergence"], values["loss_div_exact"])
    near(loss.terms["movement"], values["loss_W2_exact"])
    near(loss.total, values["loss_total_exact"])
    near(values["h"] * loss.terms["movement"], values["raw_half_movement"])
    grads = torch.autograd.grad(loss.total, list(flow.parameters()))
    near(torch.cat([g.flatten() for g in grads]), values["grad_total_exact_backprop"])


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_a_chain_of_three(values, steps):
    flow = chain(values, steps)
    encoded = flow.encode(values["x"])
    near(encoded.z, values[f"model_z_S{steps}"])
    near(-(log_normal(encoded.z) + encoded.ladj), values[f"model_nll_S{steps}"])
    points = Pushed.of(Batch(values["x"]))
    found = [push(one, points, chunk=5, seed=0) for one in flow.flows()]
    moved = torch.tensor([0.5 * m.movement**2 for m in found], dtype=torch.float64)
    near(moved, values[f"model_half_movement_S{steps}"])
    near(points.x, encoded.z)
    near(points.ladj, encoded.ladj)
    assert found[-1].nll == pytest.approx(float(values[f"model_nll_S{steps}"].mean()), abs=1e-9)


def test_the_likelihood_is_that_of_the_whole_map(values):
    tight = chain(values).with_numerics(Dopri5(**TIGHT))
    near(-tight.log_prob(values["x"]), values["model_nll_ref"])
    near(tight.decode(values["sample_z"]), values["sample_x_ref"])
    x = values["x"][:1].clone().requires_grad_()
    encoded = tight.encode(x)
    rows = [torch.autograd.grad(z, x, retain_graph=True)[0][0] for z in encoded.z[0]]
    near(torch.linalg.slogdet(torch.stack(rows)).logabsdet, encoded.ladj[0], 1e-8)


def test_the_inverse_is_the_same_solver_backwards(values):
    one = block(values)
    near(one.decode(values["T_x_rk4_S3"]), values["Tinv_T_x_rk4_S3"])


def test_the_schedule(values):
    sizes = Steps(*(float(values[f"sched_{k}"]) for k in ("h0", "rho", "hmax")))
    near(torch.tensor(sizes.sizes(8), dtype=torch.float64), values["sched_h"], 1e-12)
    free = Steps(0.25, 1.4, free_last=True).sizes(3)
    assert free == [0.25, pytest.approx(0.35), math.inf]


def test_the_reparametrisation(values):
    new = reparametrised(
        values["sched_h"].tolist(),
        values["reparam_S"].tolist(),
        float(values["reparam_eta"]),
        float(values["reparam_hmax"]),
    )
    near(torch.tensor(new, dtype=torch.float64), values["reparam_h_new"], 1e-12)
