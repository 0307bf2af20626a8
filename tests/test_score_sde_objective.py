"""The objective `score`: its law of times, its value and gradient where known, what it teaches."""

from __future__ import annotations

import math

import pytest
import torch
from score_sde_oracles import F64, KINDS, beta, gaussian, variance

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible, UserError
from flowzoo.flow import Chain
from flowzoo.integrators import RK4, Integrator
from flowzoo.networks import MLP
from flowzoo.objective import Batch
from flowzoo_matching.diffusion import ProbabilityFlow
from flowzoo_matching.schedule import VP
from flowzoo_matching.score import Score

TIMES = ("uniform", "debiased")


class Refuses(Integrator):
    """Fails the test that solves."""

    def solve(self, field, state, t0, t1, params=()):
        raise AssertionError("score solves no ODE")


def density(times, start, hold=1e-3, points=400_001):
    """Return times and weights of the expectation over a law of times, by a fine grid."""
    edges = torch.cat(
        [
            torch.linspace(start, hold, points // 8, dtype=F64),
            torch.logspace(math.log10(hold), 0, points, dtype=F64)[1:],
        ]
    )
    t = 0.5 * (edges[1:] + edges[:-1])
    held = t.clamp(min=hold)
    w = edges.diff() * (beta(held) / variance(held) if times == "debiased" else 1.0)
    return t, w / w.sum()


# --- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", TIMES)
def test_the_law_of_times(times, seeded):
    velocity = ProbabilityFlow(MLP(2), start=1e-5)
    draws = Score(times).draw_times(velocity, torch.zeros(20_000, 2, dtype=F64), seeded(1))
    assert draws.min() >= 1e-5
    assert draws.max() <= 1
    t, w = density(times, 1e-5)
    below = w.cumsum(0)[torch.searchsorted(t, draws.sort().values).clamp(max=len(t) - 1)]
    steps = torch.linspace(0, 1, len(draws), dtype=F64)
    assert (below - steps).abs().max() < 1.95 / len(draws) ** 0.5  # Kolmogorov's test at 0.1 %


@pytest.mark.parametrize("start", [0.0, 1e-4, 0.2])
def test_debiased_times_begin_at_the_start(start, seeded):
    velocity = ProbabilityFlow(MLP(2), start=start)
    draws = Score("debiased").draw_times(velocity, torch.zeros(20_000, 2), seeded(1))
    assert draws.dtype == torch.float32
    assert draws.min() >= start
    assert draws.max() <= 1
    share = (draws < 0.5).double().mean().item()
    t, w = density("debiased", start, max(start, 1e-3) + 1e-12)
    assert share == pytest.approx(w[t < 0.5].sum().item(), abs=0.015)


# --- closed forms --------------------------------------------------------------------------------


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_at_linear_scores(kind, times, seeded):
    """For Gaussian data and the score (1 + a) s*, with V the variance of x_t:

    the loss is half the mean over t of sum (1 - (1 - a^2) sigma^2 / V), its slope a sigma^2 / V.
    """
    velocity, a = gaussian(kind, 1e-3), 0.2
    net, noise = velocity.net, seeded(5)
    t, w = density(times, 1e-3, 1e-3 + 1e-12)
    part = (variance(t)[:, None] / net.moments(t[:, None])[1]).sum(-1) @ w
    values, slopes = [], []
    for shift in (0.0, a):
        with torch.no_grad():
            net.a.fill_(shift)
        found = []
        for _ in range(50):
            x = net.mean + net.std * torch.randn(4000, 2, dtype=F64, generator=noise)
            loss = Score(times).loss(velocity, Batch(x), noise).total
            found.append(torch.stack([loss, *torch.autograd.grad(loss, net.a)]).detach())
        found = torch.stack(found)
        mean, error = found.mean(0), found.std(0) / 50**0.5
        values.append((mean[0] - 0.5 * (2 - (1 - shift**2) * part)) / error[0])
        slopes.append((mean[1] - shift * part) / error[1])
        assert error[1] < 0.01  # so that a missing factor would be seen
    assert torch.stack(values).abs().max() < 4
    assert torch.stack(slopes).abs().max() < 4


@pytest.mark.parametrize("times", TIMES)
def test_training_reaches_the_entropy(times):
    m, s = torch.tensor([1.5, -0.5]), torch.tensor([0.5, 2.0])
    noise, steps = torch.Generator().manual_seed(0), 1200
    flow = Continuous(ProbabilityFlow(MLP(2, (32, 32))), RK4(40))
    (stage,) = Score(times).stages(flow)
    optimizer = torch.optim.Adam(stage.parameters)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    for _ in range(steps):
        x = m + s * torch.randn(512, 2, generator=noise)
        optimizer.zero_grad()
        stage.loss(Batch(x), noise).total.backward()
        optimizer.step()
        rate.step()
    z = torch.randn(4000, 2, generator=noise)
    true = (-0.5 * z.square() - s.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
    with torch.no_grad():
        excess = (true - flow.log_prob(m + s * z)).mean().item()
    assert -1e-3 < excess < 0.04  # 0.02 nats per dimension


# --- manners -------------------------------------------------------------------------------------


def test_one_evaluation_and_every_parameter_gets_a_gradient(places, seeded):
    net = MLP(3, (8, 8), context_dim=2).to(F64)
    flow = Continuous(ProbabilityFlow(net), Refuses())
    (stage,) = Score().stages(flow)
    assert {id(p) for p in stage.parameters} == {id(p) for p in flow.parameters()}
    loss = stage.loss(Batch(places(64), places(64, 2, seed=1)), seeded(0))
    loss.total.backward()
    assert all(p.grad is not None and p.grad.any() for p in flow.parameters())
    assert [(count.forward, count.backward) for count in loss.nfe] == [(1, 0)]
    assert loss.terms == {"score": loss.total}
    assert not loss.terms["score"].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("times", TIMES)
def test_draws_come_from_the_generator_alone(times, dtype, seeded, places):
    velocity = ProbabilityFlow(MLP(3, (8,)).to(dtype))
    batch, before = Batch(places(32).to(dtype)), torch.get_rng_state()
    first, second, other = (
        Score(times).loss(velocity, batch, seeded(seed)).total for seed in (3, 3, 4)
    )
    assert first.dtype == dtype
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_what_it_cannot_train():
    flow = Continuous(ProbabilityFlow(MLP(2)))
    cases = {
        "MLP is none: use the flow `continuous`": Continuous(MLP(2)),
        "Chain is none": Chain([flow]),
        "end_time 2.0: set end_time: 1": Continuous(ProbabilityFlow(MLP(2)), end_time=2.0),
        "a learned one": Continuous(ProbabilityFlow(MLP(2)), train_end_time=True),
    }
    Score().check(flow)
    for match, wrong in cases.items():
        with pytest.raises(Incompatible, match=match):
            Score().check(wrong)
    with pytest.raises(UserError, match=r"unknown times 'debias'.*debiased"):
        Score("debias")  # pyright: ignore[reportArgumentType]
    with pytest.raises(Incompatible, match="hold"):
        Score("debiased", hold=0.0)


def test_other_rates_of_noise_are_learnt_by_the_same_formula(seeded):
    """Standard normal data stay so under every `vp`, and their score is -x: nothing is left."""
    net = MLP(2, ()).to(F64)
    with torch.no_grad():
        net.net[0].weight.copy_(torch.tensor([[-1.0, 0, 0], [0, -1.0, 0]]))
        net.net[0].bias.zero_()
    velocity = ProbabilityFlow(net, VP(0.3, 5.0), "score")
    x = torch.randn(1000, 2, dtype=F64, generator=seeded(2))
    flow = Continuous(velocity, RK4(2))
    with torch.no_grad():
        torch.testing.assert_close(flow.encode(x).z, x, atol=1e-12, rtol=0.0)
