"""The steepest-descent residual against closed forms, and costs that ask the flow in objectives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from jko_golden import golden, network
from oracles import F64, Linear, SmallVelocity, gap, gradients, small_gradient, standard_normal
from torch import nn

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible, UserError
from flowzoo.field import Velocity
from flowzoo.flow import Chain
from flowzoo.integrators import RK4, Evaluations
from flowzoo.objective import Batch, Costs, Likelihood
from flowzoo.odeint import Adjoint, Dopri5
from flowzoo.regularizers import FlowCost, JacobianFrobenius, Transport
from flowzoo.traces import Hutchinson
from flowzoo_ffjord.batchnorm import MovingBatchNorm
from flowzoo_jko_iflow.steepest import SteepestDescent, residual
from flowzoo_pfg.objective import Generative

FINE = {"rtol": 1e-9, "atol": 1e-9}


def paid(flow, z, context=None, generator=None, **options):
    """Return the cost of the trajectories that end at z."""
    return SteepestDescent(**options).cost(flow, z, z, context, generator)[0]


# --- values --------------------------------------------------------------------------------------


def test_the_golden_residual():
    values, expected = golden(), golden("score")
    x, net = expected["x_end"], network(values)
    found = residual(x, net(torch.ones((), dtype=F64), x), expected["end_ode"])
    assert gap(found, expected["steepest_residual_sq_end"]) < 1e-9


class Descent(Velocity):
    """v = -x - grad log p_t, p_t the law of an Ornstein-Uhlenbeck process from N(m, S) on."""

    def __init__(self, m, s):
        super().__init__()
        self.dim, self.m, self.s = len(m), nn.Parameter(m.clone()), nn.Parameter(s.clone())

    def forward(self, t, x, context=None):
        eye = torch.eye(self.dim, dtype=x.dtype)
        decay = torch.exp(-t)
        covariance = decay**2 * self.s + (1 - decay**2) * eye
        return -x + torch.linalg.solve(covariance, (x - decay * self.m).T).T


@pytest.mark.parametrize("fade", [0, 1, 3])
def test_the_steepest_field_leaves_nothing(fade, places):
    """It comes to rest at N(0, I) but for exp(-T); the residual is zero all the way."""
    m = torch.tensor([1.0, -0.5], dtype=F64)
    s = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=F64)
    flow, z = Continuous(Descent(m, s), Dopri5(**FINE), end_time=8.0), places(4, 2)
    with torch.no_grad():
        assert paid(flow, z, fade=fade).max() < 1e-4
        x = flow.decode(z)
        expected = -torch.linalg.solve(s, (x - m).T).T
        assert gap(flow.score(x), expected) < 1e-3
        other = Continuous(Linear(-0.5 * torch.eye(2, dtype=F64)), RK4(16), end_time=8.0)
        assert paid(other, z, fade=fade).min() > 0.1


@pytest.mark.parametrize("fade", [0, 1, 2])
@pytest.mark.parametrize("end", [1.0, 1.7])
def test_a_linear_field_in_closed_form(fade, end, places):
    """x_t = exp(-a r) z and s_t = -exp(a r) z, r = T - t; the integral by Gauss and Legendre."""
    a, z = 0.6, places(5, 1)
    flow = Continuous(Linear(torch.tensor([[a]], dtype=F64)), RK4(32), end_time=end)
    u, w = (torch.from_numpy(y) for y in np.polynomial.legendre.leggauss(30))
    t, r = end * (1 + u) / 2, end * (1 - u) / 2
    rate = ((a + 1) * torch.exp(-a * r) - torch.exp(a * r)) ** 2
    weights = (fade + 1) * (1 - t / end) ** fade
    expected = (end / 2 * w * weights * rate).sum() * z[:, 0] ** 2
    assert gap(paid(flow, z, fade=fade), expected) < 1e-6


def test_what_stands_still_is_left_alone(places):
    flow = Continuous(Linear(torch.zeros(3, 3, dtype=F64)), RK4(2))
    assert not paid(flow, places(4, 3)).any()


def test_more_weight_away_from_the_noise(places):
    """Near the noise R asks for rest: there a field that does not rest is forgiven first."""
    flow = Continuous(SmallVelocity(3), RK4(8))
    costs = [paid(flow, places(4, 3), fade=k) for k in (0, 1)]
    assert gap(*costs) > 1e-2
    assert SteepestDescent().fade == 1


@pytest.mark.parametrize("fade", [0, 2])
def test_a_chain_is_one_way(fade, places):
    """Two equal blocks, one of them in a chain of its own, are one block for twice the time."""
    velocity, z = Linear(torch.tensor([[0.3, 0.8], [-0.6, 0.2]], dtype=F64)), places(5, 2)
    one = Continuous(velocity, RK4(16))
    whole = Continuous(velocity, RK4(32), end_time=2.0)
    expected = paid(whole, z, fade=fade)
    assert gap(paid(Chain([one, Chain([one])]), z, fade=fade), expected) < 1e-12
    assert gap(paid(Chain([one]), z, fade=fade), paid(one, z, fade=fade)) < 1e-14
    assert gap(paid(one, z, fade=fade), expected) > 0.1


def test_the_context_reaches_every_block_that_has_one(places):
    z, context = places(5, 3), places(5, 2, seed=1)
    with_context = Continuous(SmallVelocity(3, 2), RK4(4))
    flow = Chain([Continuous(SmallVelocity(3), RK4(4)), with_context])
    assert gap(paid(flow, z, context), paid(flow, z, 0 * context)) > 1e-3


def test_probes_come_from_the_generator(places, seeded):
    flow, z = Continuous(SmallVelocity(3), RK4(4), Hutchinson()), places(5, 3)
    first, again, other = (paid(flow, z, generator=seeded(k)) for k in (1, 1, 2))
    assert torch.equal(first, again)
    assert gap(first, other) > 1e-6


# --- gradients -----------------------------------------------------------------------------------


def difference(fn, parameter, direction, h=1e-5):
    """Return the derivative of fn along a direction, by central differences of order 4."""
    at = []
    for k in (-2, -1, 1, 2):
        with torch.no_grad():
            parameter.add_(k * h * direction)
            at.append(fn().item())
            parameter.sub_(k * h * direction)
    return (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h)


@pytest.mark.parametrize("make", [SmallVelocity, small_gradient])
def test_gradients_against_finite_differences(make, places):
    """Of the whole regulariser on data: through the noise that they become, and the end time."""
    x, context = places(4, 2), places(4, 1, seed=1)
    flow = Continuous(make(2, 1), RK4(4), end_time=0.8, train_end_time=True).double()
    costs = Costs("test", [SteepestDescent(fade=2)])

    def value():
        return costs.encode(flow, x, context).costs.sum()

    leaves = [*flow.parameters(), context.requires_grad_()]
    found = gradients(value(), leaves)
    for p, g in zip(leaves, found, strict=True):
        along = torch.randn(p.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
        expected = difference(value, p, along)
        assert (g * along).sum().item() == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert sum(g.any() for g in found) >= len(leaves) - 1  # a constant in a potential is of no use


@pytest.mark.parametrize("integrator", [RK4(12, recompute=True), Dopri5(**FINE), Adjoint(**FINE)])
def test_gradients_by_other_integrators(integrator, places):
    x, found = places(4, 2), []
    velocity = SmallVelocity(2)
    for each in (RK4(12), integrator):
        flow = Continuous(velocity, each, end_time=0.8, train_end_time=True).double()
        loss = Likelihood(0.0, [SteepestDescent()]).loss(flow, Batch(x)).total
        found.append([*gradients(loss, flow.parameters())])
    for a, b in zip(*found, strict=True):
        assert gap(a, b) < 1e-4


# --- in objectives -------------------------------------------------------------------------------


def test_the_likelihood_adds_it(places, seeded):
    flow, x = Continuous(SmallVelocity(2), RK4(3)), places(6, 2)
    steepest, transport = SteepestDescent(0.3), Transport(0.5)
    loss = Likelihood(2.0, [steepest, transport]).loss(flow, Batch(x), seeded())
    end = flow.encode(x, [transport])
    nll = -(standard_normal(end.z) + end.ladj).mean()
    cost = paid(flow, end.z).mean()
    total = 2 * nll + 0.5 * end.costs.mean() + 0.3 * cost
    assert loss.total.item() == pytest.approx(total.item(), rel=1e-12)
    assert loss.terms["SteepestDescent"].item() == pytest.approx(cost.item(), rel=1e-12)
    assert loss.terms["Transport"].item() == pytest.approx(end.costs.mean().item(), rel=1e-12)
    assert [n.forward for n in loss.nfe] == [12, 12]


def test_generation_adds_it(places, seeded):
    flow = Continuous(SmallVelocity(2), RK4(3))
    loss = Generative(regularizers=[SteepestDescent(0.3)]).loss(flow, Batch(places(6, 2)), seeded())
    z = torch.randn(6, 2, dtype=F64, generator=seeded())
    assert loss.terms["SteepestDescent"].item() == pytest.approx(paid(flow, z).mean().item())
    assert [n.forward for n in loss.nfe] == [12, 12]
    assert any(g.any() for g in gradients(loss.total, flow.parameters()))


class Offset(FlowCost):
    """A constant, that says what it was asked with."""

    def cost(self, flow, x, z, context=None, generator=None):
        self.given = (flow, x, z, context, generator)
        return x.new_full((len(x),), 3.0), (Evaluations(7),)


def test_what_a_cost_is_asked_with(places, seeded):
    flow, x, context = Continuous(SmallVelocity(2, 1), RK4(3)), places(6, 2), places(6, 1, seed=1)
    cost, draws = Offset(2.0), seeded()
    loss = Likelihood(0.0, [cost, JacobianFrobenius(0.0)]).loss(flow, Batch(x, context), draws)
    assert loss.total.item() == 6.0
    assert loss.terms["Offset"].item() == 3.0
    assert [n.forward for n in loss.nfe] == [12, 7]
    assert (cost.given[0], cost.given[1], cost.given[4]) == (flow, x, draws)
    assert torch.equal(cost.given[2], flow.encode(x, context=context).z)
    assert cost.given[3] is context


def test_a_cost_that_was_not_paid_is_not_forgotten(places):
    flow, x = Continuous(SmallVelocity(2), RK4(3)), places(6, 2)
    costs, end = Costs("test", [SteepestDescent()]), flow.encode(x)
    with pytest.raises(ValueError, match="shorter"):
        costs.added(x.sum(), {}, end.costs, x, end.z)


def test_flows_without_trajectories_are_refused_before_training():
    moving = Continuous(SmallVelocity(2), RK4(3))
    flow = Chain([moving, MovingBatchNorm(2).double()])
    for objective in (Likelihood, Generative):
        with pytest.raises(Incompatible, match=r"steepest-descent follows .* MovingBatchNorm"):
            objective(regularizers=[SteepestDescent()]).check(flow)
        objective(regularizers=[SteepestDescent()]).check(Chain([moving, Chain([moving])]))
    with pytest.raises(UserError, match="fade must not be negative, got -1"):
        SteepestDescent(fade=-1)


def test_training_on_it_brings_a_flow_nearer_to_the_steepest(places, seeded):
    """The residual falls while the likelihood is kept: the flow changes its way, not its ends."""
    x = 2 * places(32, 2)
    ends = {}
    for weight in (0.0, 0.3):
        flow = Continuous(SmallVelocity(2), RK4(4))
        objective = Likelihood(1.0, [SteepestDescent(weight)])
        optimizer = torch.optim.Adam(flow.parameters(), 0.05)
        for _ in range(30):
            loss = objective.loss(flow, Batch(x), seeded())
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
        ends[weight] = loss.terms
    assert ends[0.3]["SteepestDescent"] < 0.7 * ends[0.0]["SteepestDescent"]
    assert ends[0.3]["nll"] < ends[0.0]["nll"] + 0.15
