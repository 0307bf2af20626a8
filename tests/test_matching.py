"""The objective `matching`: what it asks of the velocity, what it draws, what it refuses."""

from __future__ import annotations

import pytest
import torch
from matching_oracles import F64, close
from oracles import load, make, names
from torch import nn

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible, UserError
from flowzoo.field import Gradient, Velocity
from flowzoo.flow import Chain
from flowzoo.integrators import Integrator
from flowzoo.networks import MLP, PotentialMLP
from flowzoo.objective import Batch
from flowzoo_matching.coupling import Coupling, Independent, Pairs
from flowzoo_matching.objective import Matching
from flowzoo_matching.path import Affine
from flowzoo_matching.schedule import OT, VP, Polynomial

TIME_LAWS = ["uniform", "stratified", "logit-normal", "beta", "u-shaped", "mode"]


class Refuses(Integrator):
    """Fails the test that solves."""

    def solve(self, field, state, t0, t1, params=()):
        raise AssertionError("matching solves no ODE")


@pytest.mark.parametrize("name", names("coupling"))
@pytest.mark.parametrize("potential", [False, True])
def test_every_parameter_gets_a_gradient_and_nothing_is_solved(name, potential, places, seeded):
    velocity = MLP(3, (8, 8), context_dim=2)
    if potential:
        velocity = Gradient(PotentialMLP(3, (8, 8), context_dim=2))
    flow = Continuous(velocity.to(F64), Refuses())
    (stage,) = Matching(coupling=make("coupling", name)).stages(flow)
    assert {id(p) for p in stage.parameters} == {id(p) for p in flow.parameters()}
    loss = stage.loss(Batch(places(64), places(64, 2, seed=1)), seeded(0))
    loss.total.backward()
    idle = [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
    # A potential's additive constant moves nothing.
    assert idle == (["velocity.potential.net.4.bias"] if potential else [])
    assert [(count.forward, count.backward) for count in loss.nfe] == [(1, 0)]
    assert not loss.terms["matching"].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("times", TIME_LAWS)
def test_draws_come_from_the_generator_alone(times, dtype, seeded, places):
    flow = Continuous(MLP(3, (8,)).to(dtype))
    batch, before = Batch(places(32).to(dtype)), torch.get_rng_state()
    first, second, other = (
        Matching(times=times).loss(flow, batch, seeded(seed)).total for seed in (3, 3, 4)
    )
    assert first.dtype == dtype
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("times", TIME_LAWS)
def test_times_stay_in_the_range_of_the_path(times, seeded):
    objective = Matching(Affine(OT(), t_range=(0.25, 0.5)), times=times)
    t = objective.draw_times(torch.zeros(4096, 1, dtype=F64), seeded(0))
    assert 0.25 <= t.min() < 0.27
    assert 0.48 < t.max() <= 0.5


def test_stratified_times_cover_and_are_shuffled(seeded):
    objective, noise, rows = Matching(times="stratified"), seeded(0), torch.zeros(64, 1, dtype=F64)
    draws = torch.stack([objective.draw_times(rows, noise) for _ in range(500)])
    strata = (draws * 64).floor()
    assert torch.equal(strata.sort(-1).values, torch.arange(64, dtype=F64).expand(500, 64))
    # Each row sees all times: its mean is that of U(0, 1), standard deviation 12^-1/2.
    assert (draws.mean(0) - 0.5).abs().max() < 4.5 * (1 / 12 / 500) ** 0.5


def test_uniform_and_logit_normal_laws(seeded):
    rows, quantiles = torch.zeros(20000, 1, dtype=F64), torch.linspace(0.05, 0.95, 19, dtype=F64)
    uniform = Matching().draw_times(rows, seeded(0)).quantile(quantiles)
    close(uniform, quantiles, 0.02)
    logits = Matching(times="logit-normal").draw_times(rows, seeded(1)).logit()
    close(logits.quantile(quantiles), torch.special.ndtri(quantiles), 0.07)


class Reversed(Coupling):
    """Pairs the first data point with the last noise point, and turns the order of the data."""

    def pair(self, x, z, context=None, generator=None):
        assert context is not None
        return Pairs(data=torch.arange(len(x)).flip(0), noise=(torch.arange(len(x)) + 1) % len(x))


class Recorder(Velocity):
    """v = 0, and remembers what it was asked."""

    def __init__(self, dim):
        super().__init__()
        self.dim = self.context_dim = dim
        self.idle = nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, t, x, context=None):
        self.t, self.x, self.context = t, x, context
        return self.idle.expand_as(x)


def test_the_context_follows_its_data_through_the_coupling(places, seeded):
    """With the data as their own context, place and target both tell which pairs were made."""
    x, velocity = places(16), Recorder(3)
    loss = Matching(coupling=Reversed()).loss(Continuous(velocity), Batch(x, x), seeded(0))
    assert torch.equal(velocity.context, x.flip(0))
    noise = torch.randn(16, 3, dtype=F64, generator=seeded(0)).roll(-1, 0)
    t = velocity.t[:, None]
    close(velocity.x, (1 - t) * velocity.context + t * noise)
    close(loss.total.detach(), (noise - velocity.context).square().mean())


def test_independent_pairs_are_the_rows_as_they_come(places):
    x, z = places(4), places(4, seed=1)
    pairs = Independent().pair(x, z)
    assert pairs.of_data(x) is x
    assert pairs.of_noise(z) is z


def test_flows_that_do_not_fit_are_refused_with_a_sentence():
    def refusal(flow):
        with pytest.raises(Incompatible) as refused:
            Matching().check(flow)
        return str(refused.value)

    net = MLP(2, (4,))
    assert "Chain does not have: use the flow `continuous`" in refusal(Chain([Continuous(net)]))
    assert "end_time 0.5: set end_time: 1" in refusal(Continuous(net, end_time=0.5))
    assert "a learned one" in refusal(Continuous(net, train_end_time=True))
    Matching().check(Continuous(net))


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="unknown times 'unifrm'; did you mean 'uniform'"):
        Matching(times="unifrm")
    for interval in [(-0.1, 1.0), (0.0, 1.1), (0.5, 0.5)]:
        with pytest.raises(Incompatible, match="t_range must satisfy 0 <= low < high <= 1"):
            Affine(t_range=interval)
    with pytest.raises(Incompatible, match="sigma_min must be in"):
        OT(1.0)
    with pytest.raises(Incompatible, match="power must be at least 1"):
        Polynomial(0.5)
    for rates in [(0.0, 1.0), (2.0, 1.0)]:
        with pytest.raises(Incompatible, match="beta_min must be positive"):
            VP(*rates)


def test_entry_points_name_the_parts():
    assert load("objective", "matching") is Matching
    assert load("path", "affine") is Affine
    assert load("coupling", "independent") is Independent
    assert {load("schedule", "ot"), load("schedule", "vp")} == {OT, VP}


@pytest.mark.gpu
def test_a_step_on_an_accelerator():
    flow = Continuous(MLP(2, (8,), time="fourier")).to("cuda")
    (stage,) = Matching(times="stratified").stages(flow)
    noise = torch.Generator("cuda").manual_seed(0)
    loss = stage.loss(Batch(torch.randn(16, 2, device="cuda")), noise)
    loss.total.backward()
    assert all(p.grad.device.type == "cuda" and p.grad.any() for p in stage.parameters)
