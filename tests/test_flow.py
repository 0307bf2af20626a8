"""Flows as densities: closed forms, shapes, dtypes, scores, contexts, samples, other numerics."""

from __future__ import annotations

import math

import pytest
import torch
from components import make_integrator, names
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    F64,
    Drift,
    Explosive,
    GaussianOT,
    Linear,
    SmallVelocity,
    gap,
    small_gradient,
    standard_normal,
)

from flowzoo.continuous import Continuous
from flowzoo.errors import Diverged, Incompatible
from flowzoo.field import Gradient
from flowzoo.flow import Chain, Flow, log_normal
from flowzoo.integrators import RK1, RK4
from flowzoo.logdet import SLQ
from flowzoo.odeint import Adjoint, Dopri5
from flowzoo.regularizers import Transport
from flowzoo.traces import Exact, Hutchinson

VELOCITIES = {"velocity": SmallVelocity, "gradient": small_gradient}
INTEGRATORS = names("integrator")


def accuracy_of(integrator, steps=64):
    order = getattr(getattr(integrator, "tableau", None), "order", 4)
    return {1: 2.0, 2: 1.0}.get(order, 0.5) / steps ** min(order, 3)


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize(("d", "s"), [(1, 0.3), (2, 2.0), (10, 0.5)])
def test_the_density_of_gaussian_transport_is_gaussian(integrator, d, s, places):
    flow = Continuous(Gradient(GaussianOT(d, s)), make_integrator(integrator, 64))
    x = s * places(6, d)
    expected = torch.distributions.Normal(0.0, s).log_prob(x).sum(-1)
    with torch.no_grad():
        assert (flow.log_prob(x) - expected).abs().max() < d * accuracy_of(flow.integrator)
        assert gap(flow.decode(flow.encode(x).z), x) < accuracy_of(flow.integrator)


def test_the_density_of_a_linear_flow_is_gaussian(places):
    a = torch.tensor([[0.3, 0.8], [-0.6, 0.2]], dtype=F64)
    forward = torch.linalg.matrix_exp(a)
    covariance = torch.linalg.inv(forward.T @ forward)
    gaussian = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=F64), covariance)
    flow, x = Continuous(Linear(a), RK4(64)), places(5, 2)
    assert gap(flow.log_prob(x), gaussian.log_prob(x)) < 1e-8


def test_the_density_integrates_to_one():
    axis = torch.linspace(-12, 12, 161, dtype=F64)
    x = torch.cartesian_prod(axis, axis)
    for velocity in (SmallVelocity(2), small_gradient(2)):
        with torch.no_grad():
            mass = Continuous(velocity, RK4(16)).log_prob(x).exp().sum() * (axis[1] - axis[0]) ** 2
        assert mass.item() == pytest.approx(1.0, abs=2e-4)


def test_log_normal_is_that_of_torch(places):
    z = places(4, 3)
    assert gap(log_normal(z), standard_normal(z)) < 1e-14


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from(["velocity", "gradient"]))
def test_shapes(n, d, kind):
    flow, x = Continuous(VELOCITIES[kind](d), RK4(2)), torch.randn(n, d, dtype=F64)
    end = flow.encode(x, [Transport(), Transport()])
    assert (end.z.shape, end.ladj.shape, end.costs.shape) == ((n, d), (n,), (n, 2))
    assert flow.log_prob(x).shape == (n,)
    sample, density = flow.sample_and_log_prob(n)
    assert (sample.shape, density.shape) == ((n, d), (n,))


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("grad", [True, False])
def test_an_empty_batch(integrator, grad):
    flow = Continuous(SmallVelocity(2), make_integrator(integrator))
    with torch.set_grad_enabled(grad):
        assert flow.log_prob(torch.zeros(0, 2, dtype=F64)).shape == (0,)
        assert flow.decode(torch.zeros(0, 2, dtype=F64)).shape == (0, 2)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_a_batch_of_one_is_like_any_row(integrator, places):
    flow = Continuous(SmallVelocity(2), make_integrator(integrator, 8, 1e-9))
    x = places(3, 2)
    alone = torch.cat([flow.log_prob(row[None]) for row in x])
    assert gap(alone, flow.log_prob(x)) < 1e-7


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_the_density_repeats_with_the_generator(integrator, places, seeded):
    flow = Continuous(SmallVelocity(3), make_integrator(integrator, 4, 1e-4), Hutchinson())
    values = [flow.log_prob(places(4, 3), generator=seeded(s)) for s in (1, 1, 2)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    samples = [flow.sample(4, generator=seeded(s)) for s in (1, 1, 2)]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


def test_samples_come_from_the_density(seeded):
    """A linear flow: sample covariance against the true one, 5 standard errors for each entry."""
    a, n = torch.tensor([[0.3, 0.8], [-0.6, 0.2]], dtype=F64), 20_000
    flow = Continuous(Linear(a), RK4(16))
    with torch.no_grad():
        x = flow.sample(n, generator=seeded())
    forward = torch.linalg.matrix_exp(a)
    c = torch.linalg.inv(forward.T @ forward)
    deviation = ((c.square() + c.diagonal()[:, None] * c.diagonal()) / n).sqrt()
    assert ((torch.cov(x.T) - c).abs() < 5 * deviation).all()
    assert (x.mean(0).abs() < 5 * (c.diagonal() / n).sqrt()).all()


def test_sample_and_log_prob_agree(seeded):
    flow = Continuous(SmallVelocity(2, 1), RK4(8))
    context = torch.linspace(-1, 1, 6, dtype=F64)[:, None]
    x, density = flow.sample_and_log_prob(6, context, seeded())
    assert gap(flow.log_prob(x, context), density) < 1e-13
    assert gap(flow.sample(6, context, seeded()), x) < 1e-13


def test_the_context_changes_the_density(places):
    flow, x = Continuous(SmallVelocity(2, 1), RK4(4)), places(3, 2)
    one, two = (flow.log_prob(x, torch.full((3, 1), c, dtype=F64)) for c in (0.0, 1.0))
    assert (one - two).abs().min() > 1e-3


def test_other_numerics_share_the_weights(places):
    flow, x = Continuous(SmallVelocity(2), RK1(2), Hutchinson()), places(3, 2)
    fine = flow.with_numerics(Dopri5(1e-9, 1e-9), Exact())
    assert isinstance(flow.integrator, RK1)
    assert isinstance(flow.trace, Hutchinson)
    assert [id(p) for p in fine.parameters()] == [id(p) for p in flow.parameters()]
    assert gap(fine.log_prob(x), Continuous(flow.velocity, RK4(64)).log_prob(x)) < 1e-7
    assert isinstance(flow.with_numerics(trace=Exact()).integrator, RK1)
    with pytest.raises(Incompatible, match="SLQ needs symmetric"):
        flow.with_numerics(trace=SLQ())
    with pytest.raises(Incompatible, match=r"Adjoint .*redraw: solve"):
        flow.with_numerics(Adjoint(), Hutchinson(redraw="stage"))
    chain = Chain([flow, Continuous(SmallVelocity(2, seed=1), RK1(2))]).eval()
    finer = chain.with_numerics(RK4(16), Exact())
    assert not finer.training
    assert [n.forward for n in finer.encode(x).nfe] == [64, 64]
    assert [n.forward for n in chain.encode(x).nfe] == [2, 2]


def test_chains_of_what_does_not_fit_are_refused():
    with pytest.raises(Incompatible, match="at least one block"):
        Chain([])
    with pytest.raises(Incompatible, match=r"agree in dimension, got \[2, 3\]"):
        Chain([Continuous(SmallVelocity(2)), Continuous(SmallVelocity(3))])


def test_a_chain_gives_context_to_the_blocks_that_take_it(places):
    blocks = [Continuous(SmallVelocity(2, 2), RK4(8)), Continuous(SmallVelocity(2), RK4(8))]
    chain, x, context = Chain(blocks), places(3, 2), places(3, 2, seed=1)
    first = blocks[0].encode(x, context=context)
    expected = first.ladj + blocks[1].log_prob(first.z)
    assert chain.context_dim == 2
    assert gap(chain.log_prob(x, context), expected) < 1e-13
    assert gap(chain.decode(chain.encode(x, context=context).z, context), x) < 1e-3


class Shift(Flow):
    """A flow without a trajectory: two abstract methods are all."""

    dim = 2

    def encode(self, x, running=(), context=None, generator=None):
        self.requires(running)
        from flowzoo.flow import Encoded

        return Encoded(x + 1, x.new_zeros(x.shape[0]), x.new_zeros(x.shape[0], 0))

    def decode(self, z, context=None):
        return z - 1


def test_a_flow_without_a_trajectory_refuses_running_costs(places):
    flow, x = Shift(), places(3, 2)
    assert gap(flow.log_prob(x), standard_normal(x + 1)) < 1e-14
    assert flow.sample(3).shape == (3, 2)
    assert flow.with_numerics(RK4()) is flow
    with pytest.raises(Incompatible, match=r"Shift has no trajectory .*Transport"):
        flow.encode(x, [Transport()])
    with pytest.raises(Incompatible, match="Shift has no trajectory"):
        Chain([Continuous(SmallVelocity(2)), flow]).requires([Transport()])


def test_a_constant_velocity_translates(places):
    flow, x = Continuous(Drift(3), RK4(2), end_time=0.5), places(4, 3)
    end = flow.encode(x, [Transport()])
    assert gap(end.z, x + 0.5 * torch.tensor([1.0, 2.0, 3.0])) < 1e-14
    assert not end.ladj.any()
    assert gap(end.costs, torch.full((4, 1), 0.5 * 0.5 * 14, dtype=F64)) < 1e-14


@pytest.mark.parametrize("integrator", ["dopri5", "adjoint", "torchdiffeq"])
def test_an_explosion_is_named(integrator):
    flow = Continuous(Explosive(), make_integrator(integrator, tol=1e-6))
    for x in (torch.ones(2, 1, dtype=F64), torch.ones(2, 1, dtype=F64, requires_grad=True)):
        with pytest.raises(Diverged, match=r"dopri5: .*tolerances"):
            flow.log_prob(x)


def test_the_base_is_a_standard_normal_whatever_the_end_time():
    flow = Continuous(Linear(torch.zeros(2, 2, dtype=F64)), RK4(1), end_time=7.0)
    assert flow.log_prob(torch.zeros(1, 2, dtype=F64)).item() == pytest.approx(
        -math.log(2 * math.pi)
    )
