"""The divergence without derivatives: golden values, closed forms, and that none is taken."""

from __future__ import annotations

import math

import pytest
import torch
from jko_golden import golden, network
from judge_subjects import Rows
from oracles import F64, Linear, SmallVelocity, gap, gradients, small_gradient
from torch import nn

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible, UserError
from flowzoo.field import Velocity
from flowzoo.integrators import RK4, RK438
from flowzoo.judge import evaluate
from flowzoo.judge.likelihood import NLL
from flowzoo.judge.traces import TraceError
from flowzoo.objective import Batch, Likelihood
from flowzoo.regularizers import JKOW2, JacobianFrobenius, Transport
from flowzoo.traces import Exact, Hutchinson
from flowzoo_jko_iflow.difference import FiniteDifference

Z = 5.0  # standard errors; a right estimator fails one in 1.7 million comparisons
A = torch.tensor([[0.3, 0.8, 0.0], [-0.6, 0.2, 0.1], [0.0, 0.4, 0.9]], dtype=F64)
T = torch.tensor(0.3, dtype=F64)


@pytest.fixture(scope="module")
def values():
    return golden()


class Given(FiniteDifference):
    """The estimate with probes that are given, for a whole solve."""

    def __init__(self, e, sigma0=0.02):
        super().__init__(sigma0)
        self.e = e

    def probes(self, x, generator=None):
        return self.e[None]


# --- the published numbers -----------------------------------------------------------------------


def test_golden_divergences(values):
    net, trace, x = network(values), FiniteDifference(values["sigma0"].item()), values["x"]
    assert trace.sigma0 == FiniteDifference().sigma0
    found = trace.divergence(net, net.at(T, x), values["e"][None])
    assert (found - values["div_fd_hutchinson"]).abs().max() < 1e-7
    # Of the linear map it is Hutchinson's estimate.
    found = trace(net.at(T, x).jacobian, values["e"][None])
    assert (found - values["div_hutchinson"]).abs().max() < 1e-9


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_golden_volume_changes(steps, grad, values):
    flow = Continuous(network(values), RK438(steps), Given(values["e"]))
    with torch.set_grad_enabled(grad):
        found = flow.encode(values["x"])
    assert (-found.ladj - values[f"neg_int_div_fd_rk4_S{steps}"]).abs().max() < 1e-7
    assert (found.z - values[f"T_x_rk4_S{steps}"]).abs().max() < 1e-9


@pytest.mark.parametrize("recompute", [False, True])
def test_the_golden_loss_and_its_gradient(recompute, values):
    net, h = network(values), values["h"].item()
    flow = Continuous(net, RK438(3, recompute), Given(values["e"]))
    loss = Likelihood(regularizers=[JKOW2(h)]).loss(flow, Batch(values["x"])).total
    constant = 1.5 * math.log(2 * math.pi)
    assert loss.item() - constant == pytest.approx(values["loss_total_fd"].item(), abs=1e-7)
    found = torch.cat([g.flatten() for g in gradients(loss, net.parameters())])
    assert (found - values["grad_total_fd_backprop"]).abs().max() < 1e-7


# --- what it estimates ---------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_of_a_linear_field_it_is_hutchinsons_estimate(noise, samples, places, seeded):
    field, x = Linear(A), places(6, 3)
    found = FiniteDifference(0.5, noise, samples)
    probes = found.probes(x, seeded())
    assert torch.equal(probes, Hutchinson(noise, samples).probes(x, seeded()))
    at = field.at(T, x)
    expected = Hutchinson(noise, samples)(at.jacobian, probes)
    assert gap(found(at.jacobian, probes), expected) < 1e-14
    assert gap(found.divergence(field, at, probes), expected) < 1e-13


class Waves(Velocity):
    """v_i = c sin(x_i), whose divergence averages to c exp(-s^2 / 2) sum cos x_i over N(x, s^2)."""

    def __init__(self, dim):
        super().__init__()
        self.dim, self.c = dim, nn.Parameter(torch.tensor(2.0, dtype=F64))

    def forward(self, t, x, context=None):
        return self.c * x.sin()


def test_its_mean_is_the_smoothed_divergence(places, seeded):
    """Stein's identity; with this step the divergence itself is out of reach of the noise."""
    x, n, sigma0 = places(1, 4), 20_000, 2.0
    field, trace = Waves(4), FiniteDifference(sigma0)
    many = x.expand(n, -1)
    with torch.no_grad():
        found = trace.divergence(field, field.at(T, many), trace.probes(many, seeded()))
    divergence = 2 * x.cos().sum().item()
    error = found.std().item() / math.sqrt(n)
    assert abs(found.mean().item() - math.exp(-(sigma0**2) / 8) * divergence) < Z * error
    assert abs(found.mean().item() - divergence) > 2 * Z * error


@pytest.mark.parametrize("t", [T, torch.linspace(0, 1, 5, dtype=F64)])
@pytest.mark.parametrize("make", [SmallVelocity, small_gradient])
def test_it_is_the_mean_of_difference_quotients(make, t, places, seeded):
    """Written out probe by probe, for one time and for a time each, with a context."""
    field, x, context = make(3, 2), places(5, 3), places(5, 2, seed=1)
    trace = FiniteDifference(0.1, samples=2)
    probes = trace.probes(x, seeded())
    found = trace.divergence(field, field.at(t, x, context), probes, context)
    sigma = 0.1 / math.sqrt(3)
    quotients = [(field(t, x + sigma * e, context) - field(t, x, context)) / sigma for e in probes]
    expected = sum((e * q).sum(-1) for e, q in zip(probes, quotients, strict=True)) / 2
    assert gap(found, expected) < 1e-12


@pytest.mark.parametrize("make", [SmallVelocity, small_gradient])
def test_a_small_step_gives_hutchinsons_log_density(make, places, seeded):
    velocity, x = make(3), places(5, 3)
    found = Continuous(velocity, RK4(4), FiniteDifference(1e-5, redraw="stage"))
    expected = Continuous(velocity, RK4(4), Hutchinson("gaussian", redraw="stage"))
    values = [flow.log_prob(x, generator=seeded()) for flow in (found, expected)]
    assert gap(*values) < 1e-4
    scores = [flow.score(x, generator=seeded()) for flow in (found, expected)]
    assert gap(*scores) < 1e-4
    assert gap(scores[1], Continuous(velocity, RK4(4)).score(x)) > 1e-3


# --- how it is computed --------------------------------------------------------------------------


class Plain(SmallVelocity):
    """Refuses derivatives, and counts evaluations."""

    count = 0

    def forward(self, t, x, context=None):
        self.count += 1
        assert torch.is_grad_enabled() == self.training
        return super().forward(t, x, context)

    def at(self, t, x, context=None):
        raise AssertionError("asked for a Jacobian")


@pytest.mark.parametrize("training", [True, False])
def test_no_derivative_in_the_places_is_taken(training, places):
    """Two evaluations of the network at each of the 12 stages."""
    flow = Continuous(Plain(3), RK4(3), FiniteDifference()).train(training)
    with torch.set_grad_enabled(training):
        density = flow.log_prob(places(4, 3))
    assert flow.velocity.count == 24
    if training:
        assert any(g.any() for g in gradients(density.sum(), flow.parameters()))


def test_a_trace_that_asks_nevertheless_is_told_so(places):
    class Wrong(FiniteDifference):
        def divergence(self, velocity, at, probes, context=None):
            return self(at.jacobian, probes)

    with pytest.raises(Incompatible, match="must not say otherwise"):
        Continuous(SmallVelocity(3), RK4(2), Wrong()).log_prob(places(4, 3))


@pytest.mark.parametrize("grad", [True, False])
def test_running_costs_take_products_of_their_own(grad, places, seeded):
    velocity, x = SmallVelocity(3), places(5, 3)
    costs = [Transport(), JacobianFrobenius()]
    with torch.set_grad_enabled(grad):
        found = Continuous(velocity, RK4(3), FiniteDifference()).encode(
            x, costs, generator=seeded()
        )
        bare = Continuous(velocity, RK4(3), FiniteDifference()).encode(x, generator=seeded())
        other = Continuous(velocity, RK4(3), Hutchinson("gaussian")).encode(
            x, costs, generator=seeded()
        )
    assert gap(found.costs, other.costs) < 1e-13
    assert gap(found.ladj, bare.ladj) < 1e-13
    assert gap(found.ladj, other.ladj) > 1e-6


def test_redrawn_probes_are_repeated_when_a_step_is_recomputed(places, seeded):
    velocity, x, found = SmallVelocity(3), places(5, 3), []
    for recompute in (False, True):
        flow = Continuous(velocity, RK4(3, recompute), FiniteDifference(redraw="stage"))
        loss = flow.log_prob(x, generator=seeded()).square().sum()
        found.append(gradients(loss, velocity.parameters()))
    assert gap(*found) < 1e-12


def test_the_judge_scores_by_the_exact_divergence(places):
    velocity, data = SmallVelocity(3), Rows(places(40, 3))
    metrics = [NLL(), TraceError(subsample=40)]
    found = evaluate(Continuous(velocity, RK4(4), FiniteDifference()), data, metrics=metrics)
    exact = evaluate(Continuous(velocity, RK4(4), Exact()), data, metrics=metrics)
    assert found["nll"].value == exact["nll"].value
    assert found["trace-error"].value > 0.01 > exact["trace-error"].value


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="sigma0 must be positive, got 0"):
        FiniteDifference(0.0)
    with pytest.raises(Incompatible, match="samples must be at least 1, got 0"):
        FiniteDifference(samples=0)
    with pytest.raises(Incompatible, match=r"finite-difference.*use slq or exact"):
        FiniteDifference()(Linear(A).at(T, A).jacobian, None, torch.log)
