"""The closed form of JKO steps between Gaussians: stored values, minimality, and what follows."""

from __future__ import annotations

import math

import pytest
import torch
from jko_oracles import (
    F64,
    gaussian_chain,
    gaussian_step,
    golden,
    half_movement,
    kl_to_normal,
    objective,
    reparametrised_chain,
    reparametrised_steps,
    schedule,
)

from flowzoo_jko_iflow.steps import Steps, reparametrised

STEPS = [0.01, 0.25, 1.0, 10.0]
MEAN, VAR = torch.tensor([3.0, 0.0], dtype=F64), torch.tensor([12.0, 2.0], dtype=F64)
CONSTANT, GROWING = schedule(1.0, 1.0, 8), schedule(0.25, 1.4, 8)


@pytest.fixture(scope="module")
def stored():
    return golden()


def vector(*values):
    return torch.tensor(values, dtype=F64)


# stored values


def test_golden_paths(stored):
    var, mean = vector(12.0, 2.0, 0.25), vector(3.0, 3.0, 3.0)
    chain = gaussian_chain(mean, var, stored["gauss_h"].tolist())
    torch.testing.assert_close(stored["gauss_h"], vector(*GROWING), rtol=1e-12, atol=0)
    for i, start in enumerate(("12.0", "2.0", "0.25")):
        path = stored[f"gauss_var_path_from_{start}"]
        torch.testing.assert_close(chain.variances[:, i], path, rtol=1e-12, atol=0)
    path = stored["gauss_mean_path_from_3"]
    torch.testing.assert_close(chain.means[:, 0], path, rtol=1e-12, atol=0)


def test_golden_slope(stored):
    _, _, slope = gaussian_step(vector(0.0, 0.0), vector(12.0, 2.0), 10.0)
    torch.testing.assert_close(slope, stored["gauss_main_sub_h10_scale"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("new", [reparametrised_steps, reparametrised], ids=["oracle", "plugin"])
def test_golden_reparametrisation(stored, new):
    steps, movements = stored["sched_h"].tolist(), stored["reparam_S"].tolist()
    found = new(steps, movements, float(stored["reparam_eta"]), float(stored["reparam_hmax"]))
    assert found == pytest.approx(stored["reparam_h_new"].tolist(), rel=1e-12)


def test_golden_schedule(stored):
    first, growth, largest = (float(stored[f"sched_{k}"]) for k in ("h0", "rho", "hmax"))
    expected = pytest.approx(stored["sched_h"].tolist(), rel=1e-12)
    assert schedule(first, growth, 8, largest) == expected
    assert Steps(first=first, growth=growth, largest=largest).sizes(8) == expected


# the step


@pytest.mark.parametrize("h", STEPS)
def test_the_step_minimises_the_objective(h):
    mean, var = vector(3.0, -1.0, 0.0), vector(12.0, 1.0, 0.25)
    moved, new, slope = gaussian_step(mean, var, h)
    at = [moved.clone().requires_grad_(), slope.clone().requires_grad_()]
    gradients = torch.autograd.grad(objective(mean, var, h, *at), at)
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros(3, dtype=F64), rtol=0, atol=1e-11)
    best = objective(mean, var, h, moved, slope)
    for shift, turn in torch.cartesian_prod(vector(-0.1, 0.0, 0.1), vector(-0.1, 0.0, 0.1)):
        for unit in torch.eye(3, dtype=F64):
            other = objective(mean, var, h, moved + shift * unit, slope + turn * unit)
            assert other > best or shift == turn == 0
    torch.testing.assert_close(new, slope.square() * var)


def test_no_map_that_is_not_affine_does_better():
    # bent by c: T(x) = moved + slope u + c sin u, by quadrature over u = x - mean
    mean, var, h = vector(1.0), vector(4.0), 0.7
    moved, _, slope = gaussian_step(mean, var, h)
    u = torch.linspace(-16, 16, 4001, dtype=F64)
    p = torch.exp(-(u**2) / (2 * var) - 0.5 * (2 * math.pi * var).log()) * (u[1] - u[0])

    def bent(c):
        image, x = moved + slope * u + c * u.sin(), mean + u
        cost = 0.5 * image**2 - (slope + c * u.cos()).log() + (x - image) ** 2 / (2 * h)
        return float((p * cost).sum())

    assert bent(0.0) == pytest.approx(float(objective(mean, var, h, moved, slope)), abs=1e-9)
    assert min(bent(0.02), bent(-0.02)) > bent(0.0) + 1e-5


@pytest.mark.parametrize("h", STEPS)
def test_the_objective_falls_by_the_kl_and_the_movement(h):
    moved, new, slope = gaussian_step(MEAN, VAR, h)
    identity = objective(MEAN, VAR, h, MEAN, torch.ones_like(VAR))
    torch.testing.assert_close(identity, 0.5 * (MEAN.square() + VAR).sum())
    fall = identity - objective(MEAN, VAR, h, moved, slope)
    gained = kl_to_normal(MEAN, VAR) - kl_to_normal(moved, new)
    torch.testing.assert_close(fall, gained - half_movement(MEAN, VAR, h) / h)
    assert fall > 0


def test_kl_is_that_of_the_distributions():
    ours = torch.distributions.Normal(MEAN, VAR.sqrt())
    normal = torch.distributions.Normal(torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64))
    expected = torch.distributions.kl_divergence(ours, normal).sum()
    torch.testing.assert_close(kl_to_normal(MEAN, VAR), expected)


def test_movement_is_that_of_draws():
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(200_000, 2, generator=generator, dtype=F64)
    moved, _, slope = gaussian_step(MEAN, VAR, 0.5)
    there = 0.5 * (u * VAR.sqrt() * (slope - 1) + moved - MEAN).square().sum(-1)
    error = float(there.std()) / math.sqrt(len(u))
    assert float(half_movement(MEAN, VAR, 0.5)) == pytest.approx(float(there.mean()), abs=4 * error)


def test_the_trained_blocks_of_the_published_code_are_near():
    # a block of the official loss and solver, 300 steps, on variances 12 and 2: measured once
    zero = torch.zeros(2, dtype=F64)
    for h, variances, movement in ((0.5, (6.068, 1.512), 0.5443), (10.0, (1.287, 1.075), 2.8472)):
        _, new, _ = gaussian_step(zero, VAR, h)
        assert new.tolist() == pytest.approx(variances, rel=0.04)
        assert float(half_movement(zero, VAR, h)) == pytest.approx(movement, rel=0.03)


# chains


@pytest.mark.parametrize("h", STEPS)
def test_near_the_target_means_and_deviations_contract_at_their_rates(h):
    mean, var = vector(1e-4), vector((1 + 1e-5) ** 2)
    moved, new, _ = gaussian_step(mean, var, h)
    assert float(moved / mean) == pytest.approx(1 / (1 + h), rel=1e-12)
    assert float((new.sqrt() - 1) / 1e-5) == pytest.approx(1 / (1 + 2 * h), rel=1e-4)


def test_small_steps_follow_the_steepest_flow():
    # f(x) = -x - grad log p(x): a mean falls like e^-t, and dv/dt = 2 (1 - v)
    h, count = 1e-3, 700
    chain = gaussian_chain(MEAN, VAR, [h] * count)
    decay = math.exp(-h * count)
    torch.testing.assert_close(chain.means[-1], MEAN * decay, rtol=1e-3, atol=0)
    torch.testing.assert_close(chain.variances[-1], 1 + (VAR - 1) * decay**2, rtol=1e-3, atol=0)


@pytest.mark.parametrize("steps", [CONSTANT, GROWING], ids=["constant", "growing"])
def test_a_chain_is_its_steps_and_comes_nearer(steps):
    chain = gaussian_chain(MEAN, VAR, steps)
    mean, var = MEAN, VAR
    for k, h in enumerate(steps):
        assert chain.half_movements[k] == half_movement(mean, var, h)
        mean, var, slope = gaussian_step(mean, var, h)
        assert torch.equal(chain.slopes[k], slope)
        assert chain.kl[k] == kl_to_normal(mean, var)
    assert (chain.kl.diff() < 0).all()
    assert chain.kl[0] < kl_to_normal(MEAN, VAR)


# movements, unevenness and last KL before and after seven rounds with eta 0.5 and steps of at most
# 5, to two digits; the movements are those of the whole vector
TABLE = {
    "constant": (
        CONSTANT,
        ([2.12, 0.98, 0.44, 0.21, 0.10, 0.05, 0.02, 0.01], 1.40, 6.9e-5),
        ([0.54, 0.59, 0.68, 0.94, 0.96, 0.20, 0.03, 0.005], 0.72, 5.4e-7),
    ),
    "growing": (
        GROWING,
        ([0.87, 0.89, 0.80, 0.62, 0.40, 0.22, 0.10, 0.04], 0.66, 1.1e-4),
        ([0.50, 0.51, 0.53, 0.56, 0.65, 0.81, 0.33, 0.05], 0.42, 5.5e-5),
    ),
}


@pytest.mark.parametrize(("steps", "before", "after"), TABLE.values(), ids=TABLE)
def test_reparametrisation_evens_the_movements(steps, before, after):
    for rounds, (movements, unevenness, kl) in ((0, before), (7, after)):
        final, chain = reparametrised_chain(MEAN, VAR, steps, rounds)
        assert chain.movements.tolist() == pytest.approx(movements, abs=6e-3)
        assert chain.unevenness == pytest.approx(unevenness, abs=5.1e-3)
        assert float(chain.kl[-1]) == pytest.approx(kl, rel=0.01)
        assert rounds == 0 or max(final) == 5, "the tail sits at the largest step"


def test_the_plugin_reparametrises_as_the_oracle():
    steps = GROWING
    for _ in range(7):
        movements = gaussian_chain(MEAN, VAR, steps).movements.tolist()
        expected = reparametrised_steps(steps, movements)
        steps = reparametrised(steps, movements, 0.5, 5.0)
        assert steps == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("steps", [CONSTANT, GROWING], ids=["constant", "growing"])
def test_halving_the_steps_comes_nearer(steps):
    chain = gaussian_chain(MEAN, VAR, steps)
    halved = gaussian_chain(MEAN, VAR, [h / 2 for h in steps for _ in range(2)])
    assert halved.kl[-1] < chain.kl[-1] / 5
