"""Scores: golden values, closed forms, and autograd of the log-density of every sort of flow."""

from __future__ import annotations

import pytest
import torch
from jko_golden import golden, network
from oracles import F64, GaussianOT, Linear, SmallVelocity, gap, jacobian, small_gradient
from scored_flows import FLOWS, by_autograd
from torch.distributions import MultivariateNormal

from flowzoo.adapters import adapt
from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible
from flowzoo.field import Gradient
from flowzoo.flow import Chain, log_normal
from flowzoo.integrators import RK4
from flowzoo.odeint import Dopri5
from flowzoo_cp_flow.triangular import Triangular

A = torch.tensor([[0.3, 0.8, 0.0], [-0.6, 0.2, 0.1], [0.0, 0.4, -0.5]], dtype=F64)


# --- golden values and closed forms --------------------------------------------------------------


def test_golden_scores_in_both_directions():
    values, expected = golden(), golden("score")
    flow = Continuous(network(values), Dopri5(1e-11, 1e-11))
    with torch.no_grad():
        there = flow.carry_score(values["x"], expected["start"], forwards=True)
        back = flow.carry_score(there.x, there.score)
    assert (there.x - expected["x_end"]).abs().max() < 1e-9
    assert (there.score - expected["end_ode"]).abs().max() < 1e-9
    assert (back.x - values["x"]).abs().max() < 1e-9
    assert (back.score - expected["start"]).abs().max() < 1e-9


@pytest.mark.parametrize("end", [1.0, 0.4])
def test_the_score_along_a_linear_field(end, places):
    """ds/dt = -A' s, so that s_t = exp(-A' t) s_0."""
    flow = Continuous(Linear(A), RK4(32), end_time=end)
    x, s = places(4, 3), places(4, 3, seed=1)
    grown = torch.linalg.matrix_exp(-A * end)
    there = flow.carry_score(x, s, forwards=True)
    assert gap(there.x, x @ torch.linalg.matrix_exp(A * end).T) < 1e-8
    assert gap(there.score, s @ grown) < 1e-8
    assert gap(flow.carry_score(there.x, s @ grown).score, s) < 1e-8
    assert gap(flow.pull_score(x, s @ grown), s) < 1e-8


@pytest.mark.parametrize("s", [0.4, 2.0])
def test_the_score_of_a_gaussian(s, places):
    x = s * places(5, 3)
    assert gap(Continuous(Gradient(GaussianOT(3, s)), RK4(32)).score(x), -x / s**2) < 1e-6
    forward = torch.linalg.matrix_exp(A)
    assert gap(Continuous(Linear(A), RK4(32)).score(x), -x @ forward.T @ forward) < 5e-5


# --- every sort of flow --------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOWS)
def test_the_score_is_the_gradient_of_the_density(name, places):
    flow, x = FLOWS[name]().eval(), places(5, 3)
    expected = by_autograd(flow, x)
    assert gap(flow.score(x), expected) < 5e-5
    with torch.no_grad():
        plain = flow.score(x)
    with torch.inference_mode():
        inside = flow.score(x.clone())
    assert not plain.requires_grad
    assert gap(plain, expected) < 5e-5
    assert torch.equal(inside, plain)


@pytest.mark.parametrize("name", FLOWS)
def test_any_score_is_pulled_back_by_the_jacobian(name, places):
    """J' s + grad ladj, from the whole Jacobian; the score is given as values or as a function."""
    flow, x, s = FLOWS[name]().eval(), places(4, 3).requires_grad_(), places(4, 3, seed=1)
    encoded = flow.encode(x)
    bend = 0 * x
    if encoded.ladj.requires_grad:
        found = torch.autograd.grad(encoded.ladj.sum(), x, retain_graph=True, allow_unused=True)[0]
        bend = bend if found is None else found
    expected = (jacobian(encoded.z, x).mT @ s[..., None])[..., 0] + bend
    assert gap(flow.pull_score(x, s), expected.detach()) < 5e-5
    at = []

    def score(z):
        at.append(z)
        return s

    assert gap(flow.pull_score(x, score), expected.detach()) < 5e-5
    assert len(at) == 1
    assert gap(at[0], encoded.z.detach()) < 5e-5


@pytest.mark.parametrize("make", [SmallVelocity, small_gradient])
def test_the_score_of_a_conditional_flow(make, places):
    x, context = places(5, 3), places(5, 2, seed=1)
    flow = Chain([FLOWS["layers"](), Continuous(make(3, 2), RK4(10))])
    found = flow.eval().score(x, context)
    assert gap(found, by_autograd(flow, x, context)) < 5e-5
    assert gap(found, flow.score(x, 0 * context)) > 1e-3
    with torch.inference_mode():
        assert torch.equal(flow.score(x.clone(), context.clone()), found.detach())


def test_a_chain_that_uses_some_of_its_blocks(places):
    class First(Chain):
        def flows(self):
            return super().flows()[:1]

    blocks, x = [Continuous(SmallVelocity(3, seed=k), RK4(4)) for k in range(2)], places(4, 3)
    assert torch.equal(First(blocks).score(x), blocks[0].score(x))
    assert gap(First(blocks).score(x), Chain(blocks).score(x)) > 1e-2


def test_every_block_of_a_chain_sends_the_points_on_once(places):
    calls = []

    class Noted(Triangular):
        def encode(self, *given, **more):
            calls.append(self)
            return super().encode(*given, **more)

    blocks = [Noted(3).double() for _ in range(3)]
    Chain(blocks).score(places(4, 3))
    assert calls == blocks


def test_densities_from_elsewhere(places):
    covariance = A @ A.T + torch.eye(3, dtype=F64)
    flow, x = adapt(MultivariateNormal(torch.zeros(3, dtype=F64), covariance)), places(4, 3)
    expected = -torch.linalg.solve(covariance, x.T).T
    assert gap(flow.score(x), expected) < 1e-12
    with torch.inference_mode():
        assert gap(flow.score(x.clone()), expected) < 1e-12


def test_a_density_without_gradient_says_so(places):
    class Opaque:
        dim = 3

        def log_prob(self, x):
            return log_normal(x.detach())

        def sample(self, n):
            return torch.randn(n, 3, dtype=F64)

    class Whole(Opaque):
        def encode(self, x):
            return x.detach(), torch.zeros(len(x), dtype=F64)

        def decode(self, z):
            return z

    with pytest.raises(Incompatible, match="Adapted computes without a gradient"):
        adapt(Opaque()).score(places(4, 3))
    with pytest.raises(Incompatible, match="Adapted computes without a gradient"):
        adapt(Whole()).score(places(4, 3))
