"""Running and endpoint costs against closed forms, with exact and with estimated traces."""

from __future__ import annotations

import math

import pytest
import torch
from components import load, make, make_integrator, names
from oracles import (
    F64,
    GaussianOT,
    Linear,
    Quadratic,
    SmallPotential,
    SmallVelocity,
    gap,
    gradients,
    jacobian,
    linear_ends,
    with_spectrum,
)

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible
from flowzoo.field import Gradient
from flowzoo.flow import Chain
from flowzoo.integrators import RK1, RK4
from flowzoo.odeint import Adjoint
from flowzoo.regularizers import (
    HJB,
    JKOW2,
    EndpointCost,
    FlowCost,
    JacobianFrobenius,
    RunningCost,
    Transport,
)
from flowzoo.traces import Exact, Hutchinson

Z = 5.0  # standard errors; a right estimator fails one in 1.7 million comparisons
A = torch.tensor([[0.3, 0.8, 0.0], [-0.6, 0.2, 0.1], [0.0, 0.4, -0.5]], dtype=F64)
REGULARIZERS = names("regularizer")


def running():
    return [n for n in REGULARIZERS if issubclass(load("regularizer", n), RunningCost)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("integrator", names("integrator"))
@pytest.mark.parametrize("end", [1.0, 0.4])
def test_costs_of_a_linear_field(integrator, end, places):
    x, steps = places(4, 3), 64
    flow = Continuous(Linear(A), make_integrator(integrator, steps), end_time=end)
    found = flow.encode(x, [Transport(), JacobianFrobenius()])
    z, ladj, transport, frobenius = linear_ends(A, x, end)
    order = getattr(getattr(flow.integrator, "tableau", None), "order", 4)
    accuracy = {1: 0.05, 2: 1e-3}.get(order, 1e-6)
    assert gap(found.z, z) < accuracy
    assert gap(found.ladj, ladj) < 1e-12
    assert gap(found.costs[:, 0], transport) < accuracy
    assert gap(found.costs[:, 1], frobenius) < 1e-12


def test_the_frobenius_penalty_of_probes_is_unbiased():
    """|A' p|^2 has mean |A|^2; and with a probe for each dimension it is |A|^2."""
    x, expected = torch.zeros(4000, 3, dtype=F64), A.square().sum().item()
    for noise in ("rademacher", "gaussian"):
        flow = Continuous(Linear(A), RK4(2), Hutchinson(noise))
        with torch.no_grad():
            found = flow.encode(x, [JacobianFrobenius()], generator=generator()).costs[:, 0]
        assert found.std() > 0.1
        assert abs(found.mean() - expected) < Z * found.std() / math.sqrt(4000)
    flow = Continuous(Linear(A), RK4(2), Hutchinson(samples=3))
    assert (
        gap(flow.encode(x[:4], [JacobianFrobenius()]).costs[:, 0], x.new_full((4,), expected))
        < 1e-13
    )


@pytest.mark.parametrize("trace", names("trace"))
def test_costs_do_not_depend_on_the_trace_but_for_its_noise(trace, places):
    """Transport and the HJB residual use no probes; the penalty's mean is the same."""
    x = places(3, 2).repeat(800, 1)
    velocity = Gradient(Quadratic(with_spectrum([0.5, -0.3])[0]))
    costs = [Transport(), HJB(), JacobianFrobenius()]
    with torch.no_grad():
        exact = Continuous(velocity, RK4(4), Exact()).encode(x, costs).costs
        flow = Continuous(velocity, RK4(4), make("trace", trace))
        found = flow.encode(x, costs, generator=generator()).costs
    assert gap(found[:, :2], exact[:, :2]) < 1e-13
    error = (found[:, 2].mean() - exact[:, 2].mean()).abs()
    assert error <= Z * found[:, 2].std() / math.sqrt(len(x)) + 1e-12


@pytest.mark.parametrize("s", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_gaussian_optimal_transport(s, scale, places):
    """z = x / s, ladj = -d ln s, transport |x - z|^2 / 2, and no HJB residual."""

    class Times(GaussianOT):  # scaled, so that -grad / scale is the transport's velocity
        def forward(self, t, x, context=None):
            return scale * super().forward(t, x)

    x, d = s * places(6, 3), 3
    flow = Continuous(Gradient(Times(d, s), scale), RK4(64))
    found = flow.encode(x, [Transport(), HJB(), HJB(power="squared")])
    assert gap(found.z, x / s) < 1e-6
    assert (found.ladj + d * math.log(s)).abs().max() < 1e-6
    expected = 0.5 * (1 / s - 1) ** 2 * x.square().sum(-1)
    assert (found.costs[:, 0] - expected).abs().max() < 1e-6 * (1 + expected.max())
    assert found.costs[:, 1:].abs().max() < 1e-12
    assert gap(flow.decode(x / s), x) < 1e-5


@pytest.mark.parametrize("power", ["absolute", "squared"])
def test_the_hjb_residual_of_a_potential_that_does_not_solve_it(power):
    """Phi = c t - |x|^2 / 2 has v = x and residual c - |x|^2 / 2, here of both signs."""

    class Drifting(Quadratic):
        def forward(self, t, x, context=None):
            return super().forward(t, x) + 2.0 * t

    x = torch.tensor([[0.5, 0.0], [3.0, 1.0]], dtype=F64)
    flow = Continuous(Gradient(Drifting(torch.eye(2, dtype=F64))), RK4(64), end_time=0.1)
    found = flow.encode(x, [HJB(power=power)]).costs[:, 0]
    nodes, weights = torch.linspace(0.0005, 0.0995, 100, dtype=F64), 0.001
    squares = x.square().sum(-1)[:, None] * torch.exp(2 * nodes)
    residual = 2.0 - 0.5 * squares
    expected = (residual.abs() if power == "absolute" else residual**2).sum(-1) * weights
    assert gap(found, expected) < 1e-5


# --- points taken as constants ---


def hjb(detach, power="squared"):
    return HJB(power=power, detach=detach)


def cost_and_gradients(integrator, costs, x):
    """Return the mean cost, and its gradients in x and in the weights."""
    flow, x = Continuous(Gradient(SmallPotential(2)), integrator), x.clone().requires_grad_()
    cost = flow.encode(x, costs).costs.sum(-1).mean()
    return cost.detach()[None], gradients(cost, [x, *flow.parameters()])


@pytest.mark.parametrize("power", ["absolute", "squared"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_detached_cost_learns_at_constant_points(power, recompute, places):
    """The same value; its gradient is the sum over Euler's points, none of which moves."""
    x, steps = places(5, 2), 4
    (still, found), (moving, other) = (
        cost_and_gradients(RK1(steps, recompute), [hjb(d, power)], x) for d in (True, False)
    )
    velocity, value = Gradient(SmallPotential(2)), 0.0
    y = x
    for k in range(steps):
        at = velocity.at(torch.tensor(k / steps, dtype=F64), y.detach())
        residual = at.phi_t - 0.5 * at.v.square().sum(-1)
        value = value + (residual.abs() if power == "absolute" else residual**2).mean() / steps
        y = y.detach() + at.v.detach() / steps
    assert gap(still, value.detach()[None]) < 1e-13
    assert gap(moving, still) < 1e-15
    expected = gradients(value, velocity.parameters())
    assert not found[0].any()
    assert gap(found[1:], expected) < 1e-12
    assert gap(other[1:], expected) > 0.05


def test_the_adjoint_of_a_detached_cost_learns_at_constant_points(places):
    x = places(5, 2)
    exact, adjoint = (
        cost_and_gradients(integrator, [hjb(True)], x)
        for integrator in (RK4(64), Adjoint(rtol=1e-9, atol=1e-9))
    )
    assert gap(adjoint[0], exact[0]) < 1e-6
    assert not adjoint[1][0].any()
    assert gap(adjoint[1], exact[1]) < 1e-6


@pytest.mark.parametrize(
    "integrator", [RK4(6), RK4(6, recompute=True), Adjoint(rtol=1e-9, atol=1e-9)]
)
def test_costs_beside_a_detached_one_still_move_the_points(integrator, places):
    x = places(5, 2)
    both = cost_and_gradients(integrator, [Transport(), hjb(True)], x)
    alone = [cost_and_gradients(integrator, [cost], x) for cost in (Transport(), hjb(True))]
    assert gap(both[0], alone[0][0] + alone[1][0]) < 1e-7
    for found, one, other in zip(both[1], alone[0][1], alone[1][1], strict=True):
        assert (found - one - other).abs().max() < 1e-6


@pytest.mark.parametrize("name", running())
def test_a_running_cost_is_per_sample_and_not_weighted(name, places):
    velocity = Gradient(SmallPotential(2))
    x = places(5, 2)
    costs = [make("regularizer", name, weight=w) for w in (1.0, 100.0)]
    flow = Continuous(velocity, RK4(3))
    together = flow.encode(x, costs).costs
    assert together.shape == (5, 2)
    assert torch.equal(together[:, 0], together[:, 1])
    alone = torch.cat([flow.encode(row[None], costs[:1]).costs for row in x])
    assert gap(together[:, :1], alone) < 1e-12
    assert (together >= 0).all()


@pytest.mark.parametrize("name", running())
def test_a_running_cost_does_not_disturb_the_solve(name, places):
    flow = Continuous(Gradient(SmallPotential(2)), make_integrator("dopri5", tol=1e-5))
    bare, full = (flow.encode(places(5, 2), costs) for costs in ([], [make("regularizer", name)]))
    assert torch.equal(bare.z, full.z)
    assert torch.equal(bare.ladj, full.ladj)
    assert bare.nfe == full.nfe
    assert bare.costs.shape == (5, 0)


@pytest.mark.parametrize("name", running())
def test_a_running_cost_says_what_it_needs(name):
    cost, flow = make("regularizer", name), Continuous(SmallVelocity(2))
    missing = cost.needs - flow.velocity.provides
    x = torch.zeros(1, 2, dtype=F64)
    if not missing:
        assert flow.encode(x, [cost]).costs.shape == (1, 1)
        return
    (need,) = missing
    with pytest.raises(Incompatible, match=f"{type(cost).__name__} needs {need} .*SmallVelocity"):
        flow.encode(x, [cost])


@pytest.mark.parametrize("name", REGULARIZERS)
def test_a_regularizer_is_paid_in_one_way(name):
    cls = load("regularizer", name)
    assert sum(issubclass(cls, sort) for sort in (RunningCost, EndpointCost, FlowCost)) == 1
    assert make("regularizer", name).weight == 1.0
    assert make("regularizer", name, weight=0.25).weight == 0.25


def test_the_proximal_cost_of_a_step():
    x, z = torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    assert JKOW2(step=0.5).between(x, z).tolist() == [9.0, 0.0]
    assert JKOW2().between(x, z).tolist() == [4.5, 0.0]
    with pytest.raises(Incompatible, match=r"jko-w2: step must be positive, got -1"):
        JKOW2(step=-1)


def test_a_chain_adds_up_densities_costs_and_counts(places):
    x = places(4, 2)
    blocks = [
        Continuous(Gradient(SmallPotential(2, seed=s)), RK4(s + 2), end_time=0.5) for s in (0, 1)
    ]
    costs = [Transport(), HJB(), JacobianFrobenius()]
    first = blocks[0].encode(x, costs)
    second = blocks[1].encode(first.z, costs)
    whole = Chain(blocks).encode(x.requires_grad_(), costs)
    assert torch.equal(whole.z, second.z)
    assert gap(whole.ladj, first.ladj + second.ladj) < 1e-15
    assert gap(whole.costs, first.costs + second.costs) < 1e-15
    assert [n.forward for n in whole.nfe] == [8, 12]
    assert gap(torch.linalg.slogdet(jacobian(whole.z, x))[1], whole.ladj) < 1e-3
