"""Matching from end to end: Gaussian data, where all is known, and networks that others trained."""

from __future__ import annotations

import math

import pytest
import torch
from matching_oracles import (
    F64,
    MEMBERS,
    GaussianVelocity,
    close,
    divergence,
    gauss_hermite,
    golden,
)
from oracles import make, names

from flowzoo.continuous import Continuous
from flowzoo.integrators import RK4
from flowzoo.networks import MLP
from flowzoo.objective import Batch
from flowzoo.regularizers import Transport
from flowzoo_matching.objective import Matching
from flowzoo_matching.path import Affine
from flowzoo_matching.schedule import OT, VP, Cosine

TIME_LAWS = ["uniform", "stratified", "logit-normal"]


@pytest.fixture(scope="module")
def gaussian():
    return golden("gaussian_flow")


@pytest.mark.parametrize(
    ("key", "schedule"), [("", OT()), ("sched_cosine_", Cosine()), ("sched_vp_", VP())]
)
def test_closed_form_velocity_of_gaussian_data(key, schedule, gaussian):
    """The tests' own oracle, before it is used to judge."""
    velocity = GaussianVelocity(schedule, gaussian["m"], gaussian["s"])
    t = 1 - gaussian[f"{key}t"]
    with torch.no_grad():
        close(velocity(t, gaussian["x"]), -gaussian[f"{key}u"], 1e-8)
        if not key:
            close(divergence(velocity, t, gaussian["x"]), -gaussian["div"], 1e-8)


def test_gaussian_flow(gaussian):
    m, s = gaussian["m"], gaussian["s"]
    flow = Continuous(GaussianVelocity(OT(), m, s), RK4(200))
    with torch.no_grad():
        close(flow.decode(gaussian["x"]), gaussian["map_x1"], 1e-8)
        close(flow.log_prob(gaussian["x"]), gaussian["logp1_at_x"], 1e-8)
        nodes, weights = gauss_hermite(2)
        energy = 2 * flow.encode(m + s * nodes, [Transport()]).costs[:, 0] @ weights
    close(energy, gaussian["path_energy"], 1e-8)


@pytest.mark.parametrize("key", MEMBERS)
def test_likelihood_of_the_exact_velocity_costs_what_the_ends_cost(key):
    """Starting from N(0, I), not from the path's end, costs their divergence and nothing else."""
    schedule, m, s = MEMBERS[key], torch.tensor([3.0, -1.0], dtype=F64), torch.tensor([0.5, 2.0])
    flow = Continuous(GaussianVelocity(schedule, m, s.to(F64)), RK4(400))
    nodes, weights = gauss_hermite(2)
    x = m + s * nodes
    true = (-0.5 * nodes.square() - s.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
    with torch.no_grad():
        excess = (true - flow.log_prob(x)) @ weights
    end = schedule.at(torch.ones((), dtype=F64))
    variance = end.alpha**2 * s.square() + end.sigma**2
    divergence = 0.5 * (variance + (end.alpha * m).square() - 1 - variance.log()).sum()
    assert excess.item() == pytest.approx(divergence.item(), abs=2e-6)
    if key == "vp":  # what the docstring says: 2e-5 |m|^2
        assert divergence.item() == pytest.approx(2.2e-5 * 10, rel=0.05)


@pytest.mark.parametrize("times", TIME_LAWS)
@pytest.mark.parametrize("name", names("schedule"))
def test_the_minimiser_is_the_marginal_velocity(name, times, seeded):
    """At the exact conditional expectation the mean gradient vanishes; beside it, it does not."""
    m, s = torch.tensor([1.5, -0.5], dtype=F64), torch.tensor([0.5, 2.0], dtype=F64)
    schedule = make("schedule", name)
    velocity, objective = GaussianVelocity(schedule, m, s), Matching(Affine(schedule), times=times)
    flow, noise = Continuous(velocity), seeded(7)

    def surprise():
        grads = []
        for _ in range(40):
            x = m + s * torch.randn(2048, 2, dtype=F64, generator=noise)
            loss = objective.loss(flow, Batch(x), noise).total
            grads.append(torch.cat(torch.autograd.grad(loss, [velocity.a, velocity.b])))
        grads = torch.stack(grads)
        return (grads.mean(0) / (grads.std(0) / 40**0.5)).abs()

    assert surprise().max() < 4
    with torch.no_grad():
        velocity.a += 0.1
        velocity.b += 0.1
    assert surprise().min() > 4


def test_the_loss_is_the_mean_over_batch_and_dimensions(seeded):
    """At its minimum the loss is the variance of the target given the place, per dimension."""
    m, s = torch.tensor([1.5, -0.5], dtype=F64), torch.tensor([0.5, 2.0], dtype=F64)
    t = torch.linspace(0, 1, 20001, dtype=F64)[:, None]
    variance = ((1 - t) * s).square() + t.square()
    left = s.square() + 1 - (t - (1 - t) * s.square()).square() / variance
    want = torch.trapezoid(left, t[:, 0], dim=0).mean().item()
    flow, noise = Continuous(GaussianVelocity(OT(), m, s)), seeded(1)
    x = m + s * torch.randn(400_000, 2, dtype=F64, generator=noise)
    loss = Matching(times="stratified").loss(flow, Batch(x), noise)
    assert loss.total.item() == pytest.approx(want, rel=0.01)
    assert loss.terms == {"matching": loss.total}


@pytest.mark.parametrize("name", names("schedule"))
def test_training_reaches_the_entropy(name):
    m, s = torch.tensor([1.5, -0.5]), torch.tensor([0.5, 2.0])
    noise, steps = torch.Generator().manual_seed(0), 1500
    flow = Continuous(MLP(2, (32, 32)), RK4(25))
    (stage,) = Matching(Affine(make("schedule", name))).stages(flow)
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


def theirs(stored, activation):
    """Return a stored network as ours: v(t, x) = -w(1 - t, x), by its first and last layers."""
    weights = {k[2:]: v.clone() for k, v in stored.items() if k.startswith("w/")}
    weights["net.0.bias"] += weights["net.0.weight"][:, -1]
    weights["net.0.weight"][:, -1] *= -1
    weights["net.6.weight"] *= -1
    weights["net.6.bias"] *= -1
    velocity = MLP(2, activation=activation).to(F64)
    velocity.load_state_dict(weights)
    return velocity


@pytest.mark.parametrize(
    ("name", "activation"), [("net_gauss_icfm_s0_silu", "silu"), ("net_gauss_otcfm_s0", "selu")]
)
def test_trained_networks_pointwise(name, activation):
    stored = golden(name)
    velocity, t = theirs(stored, activation), 1 - stored["t"]
    y = stored["y"][: len(t)]
    with torch.no_grad():
        close(velocity(t, y), -stored["v"])
        close(divergence(velocity, t, y), -stored["div"])


def test_trained_network_end_to_end():
    stored = golden("net_gauss_icfm_s0_silu")
    flow = Continuous(theirs(stored, "silu"), RK4(100))
    with torch.no_grad():
        encoded = flow.encode(stored["y"])
        close(flow.log_prob(stored["y"]), stored["logp"], 1e-6)
        close(encoded.z, stored["z_of_y"], 1e-6)
        x = flow.decode(stored["x0"])
        close(x, stored["x1_of_x0"], 1e-6)
        energy = 2 * flow.encode(x, [Transport()]).costs.mean()
    close(energy, stored["path_energy_x0"], 1e-6)
    displacement = (x - stored["x0"]).square().sum(-1).mean()
    close(displacement, stored["disp_x0"], 1e-6)
