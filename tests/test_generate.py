"""From noise to data with costs: the points of decode, the costs of the way from data to noise."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import F64, GaussianOT, SmallPotential, SmallVelocity, gap, gradients
from tiny_flows import Shift
from variants import VARIANTS, integrator_of, small_gradient

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible
from flowzoo.field import Gradient
from flowzoo.flow import Chain
from flowzoo.integrators import RK4
from flowzoo.odeint import Adjoint
from flowzoo.regularizers import HJB, JacobianFrobenius, Transport
from flowzoo.traces import Exact

SMOOTH = [Transport(), HJB(power="squared"), JacobianFrobenius()]
COSTS = [*SMOOTH, HJB()]


def flow_of(variant="rk4", steps=6, context_dim=0, seed=0, **more):
    integrator = integrator_of(variant, steps) if isinstance(variant, str) else variant
    return Continuous(small_gradient(2, context_dim, seed), integrator, **more).double()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("running", [(), COSTS])
def test_the_points_are_those_of_decode(variant, running, places):
    flow, z = flow_of(variant, end_time=0.7), places(5, 2)
    made = flow.generate(z, running)
    assert gap(made.x, flow.decode(z)) < 1e-12
    assert made.costs.shape == (5, len(running))


@pytest.mark.parametrize("variant", VARIANTS)
def test_costs_are_those_of_the_way_to_noise(variant, places):
    flow, z = flow_of(variant, steps=24), places(5, 2)
    with torch.no_grad():
        made = flow.generate(z, SMOOTH)
        there = flow.encode(made.x, SMOOTH)
    accuracy = {"rk1": 0.2, "midpoint": 5e-3}.get(variant.partition(",")[0], 1e-4)
    assert gap(there.z, z) < accuracy
    assert gap(made.costs, there.costs) < accuracy
    assert made.costs.min() > 0


@pytest.mark.parametrize("s", [0.25, 1.0, 3.0])
def test_the_costs_of_gaussian_optimal_transport(s, places):
    """x = s z, transport |x - z|^2 / 2 = a^2 |x|^2 / 2 with a = 1/s - 1, and no HJB residual."""
    flow, z = Continuous(Gradient(GaussianOT(3, s)), RK4(64)), places(6, 3)
    made = flow.generate(z, [Transport(), HJB(), HJB(power="squared", detach=True)])
    assert gap(made.x, s * z) < 1e-5
    expected = 0.5 * (1 / s - 1) ** 2 * (s * z).square().sum(-1)
    assert (made.costs[:, 0] - expected).abs().max() < 1e-6 * (1 + expected.max())
    assert made.costs[:, 1:].abs().max() < 1e-12


def test_no_divergence_is_computed(places):
    class Refusing(Exact):
        def __call__(self, jacobian, probes):
            raise AssertionError("asked for a divergence")

    flow = Continuous(Gradient(SmallPotential(2)), RK4(2), Refusing())
    with pytest.raises(AssertionError, match="asked for a divergence"):
        flow.encode(places(3, 2))
    assert flow.generate(places(3, 2), [Transport()]).costs.shape == (3, 1)


def test_evaluations_are_counted(places):
    flow = flow_of("rk4, recompute", steps=5)
    made = flow.generate(places(3, 2), [Transport()])
    assert [(n.forward, n.backward) for n in made.nfe] == [(20, 0)]
    made.costs.sum().backward()
    assert [(n.forward, n.backward) for n in made.nfe] == [(20, 20)]


def test_evaluations_are_counted_without_costs(places):
    assert [n.forward for n in flow_of("rk4", 5).generate(places(3, 2)).nfe] == [20]


def test_a_chain_adds_up_costs_and_counts(places):
    z, blocks = places(4, 2), [flow_of(steps=s + 2, seed=s, end_time=0.5) for s in (0, 1)]
    last = blocks[1].generate(z, COSTS)
    first = blocks[0].generate(last.x, COSTS)
    chain = Chain(blocks)
    whole = chain.generate(z, COSTS)
    assert torch.equal(whole.x, first.x)
    assert torch.equal(whole.x, chain.decode(z))
    assert gap(whole.costs, first.costs + last.costs) < 1e-15
    assert [n.forward for n in whole.nfe] == [12, 8]
    assert torch.equal(chain.generate(z).x, whole.x)
    assert chain.generate(z).costs.shape == (4, 0)


def test_a_flow_without_trajectory_makes_points_and_refuses_costs(places):
    flow, z = Shift().double(), places(4, 2)
    made = flow.generate(z)
    assert torch.equal(made.x, flow.decode(z))
    assert made.costs.shape == (4, 0)
    assert made.costs.dtype == F64
    with pytest.raises(Incompatible, match=r"Shift has no trajectory .* Transport, HJB"):
        flow.generate(z, [Transport(), HJB()])
    chain = Chain([flow_of(), flow])
    assert torch.equal(chain.generate(z).x, chain.decode(z))
    with pytest.raises(Incompatible, match="Shift has no trajectory"):
        chain.generate(z, [Transport()])


def test_a_velocity_that_lacks_what_a_cost_needs_refuses_it(places):
    flow = Continuous(SmallVelocity(2), RK4(2))
    with pytest.raises(Incompatible, match="HJB needs phi_t"):
        flow.generate(places(3, 2), [HJB()])


@pytest.mark.parametrize("running", [(), COSTS])
def test_the_context_passes_through(running, places):
    z, context = places(4, 2), places(4, 3, seed=1)
    flow = flow_of(context_dim=3)
    made = flow.generate(z, running, context)
    assert torch.equal(made.x, flow.decode(z, context))
    assert not torch.equal(made.x, flow.generate(z, running, context.flip(0)).x)
    chain = Chain([flow_of(seed=1), flow])  # a block without a context gets none
    whole = chain.generate(z, running, context)
    assert torch.equal(whole.x, chain.blocks[0].decode(made.x))
    assert torch.equal(whole.x, chain.decode(z, context))


@pytest.mark.parametrize("running", [(), SMOOTH], ids=["points", "costs"])
@pytest.mark.parametrize("variant", ["rk4, recompute", "adjoint"])
def test_gradients_do_not_depend_on_how_they_are_taken(variant, running, places):
    z, context, found = places(4, 2), places(4, 2, seed=1), {}
    integrators = {
        "rk4": RK4(64 if variant == "adjoint" else 6),
        "rk4, recompute": RK4(6, recompute=True),
        "adjoint": Adjoint(rtol=1e-9, atol=1e-9),
    }
    for name in ("rk4", variant):
        flow = flow_of(integrators[name], context_dim=2, train_end_time=True)
        start, given = (y.clone().requires_grad_() for y in (z, context))
        made = flow.generate(start, running, given)
        loss = (made.x**2).sum() + sum(0.1 * k * c.mean() for k, c in enumerate(made.costs.mT, 1))
        found[name] = gradients(loss, [start, given, *flow.parameters()])
    accuracy = 1e-6 if variant == "adjoint" else 1e-12
    for a, b in zip(found[variant], found["rk4"], strict=True):
        assert (a - b).abs().max() < accuracy * (1 + b.abs().max())
    assert sum(bool(g.any()) for g in found["rk4"]) >= len(found["rk4"]) - 1  # a constant of Phi


def test_costs_without_gradients_are_the_same(places):
    flow, z = flow_of(), places(4, 2)
    with torch.no_grad():
        bare = flow.generate(z, [*COSTS, HJB(detach=True)])
    made = flow.generate(z, [*COSTS, HJB(detach=True)])
    assert gap(bare.x, made.x) < 1e-15
    assert gap(bare.costs, made.costs) < 1e-14
    assert not bare.costs.requires_grad
    assert made.costs.requires_grad


@pytest.mark.parametrize(
    "running",
    [
        (),
        COSTS,
    ],
)
def test_points_are_made_in_inference_mode(running, places):
    flow, z = flow_of(), places(4, 2)
    with torch.inference_mode():
        made = flow.generate(z, running)
    assert gap(made.x, flow.decode(z)) < 1e-15
    assert made.costs.shape == (4, len(running))


def test_no_points_have_no_costs():
    made = flow_of().generate(torch.zeros(0, 2, dtype=F64), COSTS)
    assert made.x.shape == (0, 2)
    assert made.costs.shape == (0, 4)


def test_the_volume_change_of_the_way_back_is_that_of_encode(places):
    """The determinant of z -> x, by differentiating generate, against ladj of its points."""
    flow, z = flow_of(steps=64), places(3, 2).requires_grad_()
    x = flow.generate(z, [Transport()]).x
    rows = [torch.autograd.grad(x[:, i].sum(), z, retain_graph=True)[0] for i in range(2)]
    ladj = -torch.linalg.slogdet(torch.stack(rows, 1))[1]
    assert gap(flow.encode(x.detach()).ladj, ladj) < 1e-6
    assert math.isfinite(ladj.sum().item())
