"""JKO learns what it should: closed forms of steps between Gaussians, densities block by block."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from jko_chains import F64, QUICK, trained
from jko_oracles import gaussian_chain, kl_to_normal, reparametrised_chain
from tiny_flows import Shift

from flowzoo.continuous import Continuous
from flowzoo.data.pictures import Rose
from flowzoo.data.toys import EightGaussians
from flowzoo.integrators import RK438
from flowzoo.objective import Batch
from flowzoo.odeint import Dopri5
from flowzoo.settings import Optimizer, Schedule
from flowzoo_ffjord.velocity import ODENet
from flowzoo_jko_iflow.growing import Growing
from flowzoo_jko_iflow.joint import FineTuning
from flowzoo_jko_iflow.objective import JKO
from flowzoo_jko_iflow.steps import Refinement, Reparametrisation, Steps
from flowzoo_jko_iflow.stopping import Stopping

LEARNING = replace(
    QUICK,
    batch_size=256,
    optimizer=Optimizer(lr=0.02),
    schedule=Schedule("cosine"),
    clip=1.0,
    precision="float32",
)
WHOLE = replace(LEARNING, batch_size=10_000, clip=None, precision="float64")


def normal(n, mean, covariance):
    """Return n points with exactly this mean and covariance, float64."""
    mean, covariance = (torch.as_tensor(each, dtype=F64) for each in (mean, covariance))
    x = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(0), dtype=F64)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / n), x.T, upper=False)
    return Batch(mean + (torch.linalg.cholesky(covariance) @ white).T)


def nets(blocks, width=16, steps=2):
    torch.manual_seed(0)
    return Growing(
        [
            Continuous(ODENet(2, (width, width), layer="ignore", activation="tanh"), RK438(steps))
            for _ in range(blocks)
        ]
    )


# --- Gaussians -----------------------------------------------------------------------------------


@pytest.mark.parametrize("h", [0.5, 10.0])
def test_a_trained_block_is_the_closed_form_of_its_step(h):
    train, flow = normal(4000, [0, 0], [[7, 5], [5, 7]]), nets(1)
    result = trained(flow, JKO(Steps(h)), 200, LEARNING, train=train)
    exact = gaussian_chain(torch.zeros(2, dtype=F64), torch.tensor([2, 12], dtype=F64), [h])
    half = 0.5 * result.stages[0]["movement"] ** 2
    assert half == pytest.approx(exact.half_movements.item(), rel=0.03)
    with torch.no_grad():
        z = flow.encode(train.x.float()).z
    variances = torch.linalg.eigvalsh(torch.cov(z.T)).tolist()
    assert variances == pytest.approx(exact.variances[1].tolist(), rel=0.04)
    gained = kl_to_normal(exact.means[0], exact.variances[0]) - exact.kl[0]
    assert result.stages[0]["kl_decrease"] == pytest.approx(gained.item(), rel=0.02)


MEAN, VAR = torch.tensor([3.0, 0.0], dtype=F64), torch.tensor([12.0, 2.0], dtype=F64)


def affine(blocks):
    """Return a chain in which the exact steps of Gaussians with diagonal covariance are found."""
    return Growing([Shift() for _ in range(blocks)])


def test_a_chain_takes_the_steps_of_the_scheme():
    train = normal(500, MEAN, torch.diag(VAR))
    sizes = Steps(0.25, 1.4)
    flow = affine(4)
    rows = trained(flow, JKO(sizes), 800, WHOLE, train=train).stages
    exact = gaussian_chain(MEAN, VAR, sizes.sizes(4))
    moved = [row["movement"] for row in rows]
    assert moved == pytest.approx(exact.movements.tolist(), rel=0.01)
    entropy = 0.5 * (1 + torch.log(2 * torch.pi * VAR)).sum()
    assert [row["nll"] for row in rows] == pytest.approx((entropy + exact.kl).tolist(), abs=0.01)
    z = flow.encode(train.x).z
    assert z.mean(0).tolist() == pytest.approx(exact.means[-1].tolist(), abs=0.01)
    assert z.var(0).tolist() == pytest.approx(exact.variances[-1].tolist(), rel=0.01)


def test_reparametrisation_evens_out_the_movements_as_the_closed_form_does():
    train, flow = normal(500, MEAN, torch.diag(VAR)), affine(5)
    rounds = Reparametrisation(rounds=3, largest=5.0, even=0.0)
    rows = trained(
        flow, JKO(Steps(1.0, 1.0), reparametrise=rounds), 5 * 4 * 150, WHOLE, train=train
    ).stages
    uneven = [1e9]
    for r in range(4):
        found = torch.tensor([row["movement"] for row in rows[5 * r : 5 * r + 5]], dtype=F64)
        sizes, exact = reparametrised_chain(MEAN, VAR, [1.0] * 5, r)
        assert [row["h"] for row in rows[5 * r : 5 * r + 5]] == pytest.approx(sizes, rel=0.03)
        uneven.append(float(found.std(correction=0) / found.mean()))
        assert uneven[-1] == pytest.approx(exact.unevenness, rel=0.03)
        assert uneven[-1] < 0.97 * uneven[-2]


def test_refined_blocks_take_half_steps():
    train = normal(1000, [0, 0], [[7, 5], [5, 7]])
    flow = nets(2)
    objective = JKO(Steps(2.0), refine=Refinement())
    rows = trained(flow, objective, 450, LEARNING, train=train).stages
    exact = gaussian_chain(torch.zeros(2, dtype=F64), torch.tensor([2, 12], dtype=F64), [1.0, 1.0])
    moved = [row["movement"] for row in rows[1:]]
    assert moved == pytest.approx(exact.movements.tolist(), rel=0.03)


def test_enough_blocks_is_where_the_scheme_has_converged():
    train, flow = normal(500, MEAN, torch.diag(VAR)), affine(8)
    sizes, stop = Steps(1.0, 1.0), Stopping(ratio=0.1, decrease=None)
    rows = trained(flow, JKO(sizes, stop=stop), 1600, WHOLE, train=train).stages
    exact = gaussian_chain(MEAN, VAR, sizes.sizes(8))
    left = (exact.variances + exact.means.square()).sum(1)[1:]
    ratios = 2 * exact.half_movements / left
    assert len(rows) == 1 + int((ratios >= 0.1).sum())
    assert 2 < len(rows) < 8


# --- densities -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [EightGaussians, Rose])
def test_the_likelihood_falls_at_every_block(make):
    data = make(train=8000, val=2000, test=2).load()
    train, held = Batch(data.train), Batch(data.val.float())
    flow = nets(4, 32, 3)
    slower = replace(LEARNING, optimizer=Optimizer(lr=0.01))
    training = replace(slower, validate_every=1000, keep="last")
    objective = JKO(Steps(0.25, 1.4), fine_tune=FineTuning(0.2))
    rows = trained(flow, objective, 480, training, train=train, validation=held).stages
    nll = [row["nll"] for row in rows]
    assert len(nll) == 5
    assert all(after < before - 0.01 for before, after in itertools.pairwise(nll))
    with torch.no_grad():
        tight = flow.with_numerics(Dopri5()).log_prob(held.x)
    assert nll[-1] == pytest.approx(-tight.mean().item(), abs=0.02)  # no error of the grid
