"""The generative objective: its formula, its gradients, and what it teaches."""

from __future__ import annotations

import pytest
import torch
from oracles import (
    F64,
    Quadratic,
    SmallPotential,
    SmallVelocity,
    gap,
    gradients,
    with_spectrum,
)
from tiny_flows import Shift

from flowzoo.adapters import adapt
from flowzoo.continuous import Continuous
from flowzoo.errors import BadData, Incompatible, UserError
from flowzoo.field import Gradient
from flowzoo.flow import Chain
from flowzoo.integrators import RK1, RK4
from flowzoo.objective import Batch
from flowzoo.regularizers import HJB, JKOW2, Regularizer, Transport
from flowzoo_pfg.discrepancy import MMD, Discrepancy, Energy, SlicedW2
from flowzoo_pfg.objective import Generative


def potential_flow(steps=3, context_dim=0):
    return Continuous(Gradient(SmallPotential(2, context_dim)), RK4(steps))


class Kept(Discrepancy):
    """Keeps what it is given."""

    def __call__(self, x, y, generator=None):
        self.x, self.y = x, y
        return (x.mean(0) - y.mean(0)).square().sum()


# --- the formula ---------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum(places, seeded):
    flow, x = potential_flow(), places(6, 2)
    parts = [Transport(0.5), JKOW2(0.2, weight=0.7), HJB(3.0, "squared")]
    loss = Generative(Energy(), 2.0, parts).loss(flow, Batch(x), seeded(4))
    z = torch.randn(6, 2, dtype=F64, generator=seeded(4))
    made = flow.generate(z, [parts[0], parts[2]])
    transport, hjb = made.costs.mean(0)
    proximal = (made.x - z).square().sum(-1).mean() / 0.4
    energy = Energy()(made.x, x)
    total = 2 * energy + 0.5 * transport + 3 * hjb + 0.7 * proximal
    assert loss.total.item() == pytest.approx(total.item(), rel=1e-13)
    expected = {"Energy": energy, "Transport": transport, "HJB": hjb, "JKOW2": proximal}
    assert loss.terms.keys() == expected.keys()
    for name, value in expected.items():
        assert loss.terms[name].item() == pytest.approx(value.item(), rel=1e-13)
        assert loss.terms[name].shape == ()
        assert not loss.terms[name].requires_grad
    assert [n.forward for n in loss.nfe] == [12]


def test_the_default_is_sliced_w2(places, seeded):
    flow, x = potential_flow(), places(6, 2)
    loss = Generative().loss(flow, Batch(x), seeded(4))
    source = seeded(4)
    z = torch.randn(6, 2, dtype=F64, generator=source)
    assert loss.total == SlicedW2()(flow.decode(z), x, source)
    assert list(loss.terms) == ["SlicedW2"]


def test_two_costs_of_one_sort_are_both_reported(places, seeded):
    costs = [HJB(0.1, "absolute"), HJB(0.2, "squared")]
    loss = Generative(regularizers=costs).loss(potential_flow(), Batch(places(4, 2)), seeded())
    assert list(loss.terms) == ["SlicedW2", "HJB", "HJB 2"]


@pytest.mark.parametrize("samples", [None, 2, 5, 11])
def test_as_many_points_are_generated_as_asked_for(samples, places, seeded):
    kept, x = Kept(), places(6, 2)
    Generative(kept, samples=samples).loss(potential_flow(), Batch(x), seeded())
    assert kept.x.shape == (samples or 6, 2)
    assert torch.equal(kept.y, x)


@pytest.mark.parametrize(
    ("samples", "rows"), [(None, [0, 1, 2, 3]), (2, [0, 2]), (8, [0, 0, 1, 1, 2, 2, 3, 3])]
)
def test_with_a_context_pairs_are_compared(samples, rows, places, seeded):
    kept, x, context = Kept(), places(4, 2), places(4, 3, seed=1)
    flow = potential_flow(context_dim=3)
    Generative(kept, samples=samples).loss(flow, Batch(x, context), seeded(2))
    z = torch.randn(len(rows), 2, dtype=F64, generator=seeded(2))
    assert torch.equal(kept.x, torch.cat([flow.decode(z, context[rows]), context[rows]], 1))
    assert torch.equal(kept.y, torch.cat([x, context], 1))


def test_noise_follows_the_points_and_the_generator(places, seeded):
    flow, x = potential_flow().float(), places(4, 2).float()
    values = [Generative().loss(flow, Batch(x), seeded(s)).total for s in (1, 1, 2)]
    assert values[0].dtype == torch.float32
    assert values[0] == values[1] != values[2]


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("discrepancy", [SlicedW2(), MMD(), Energy()])
@pytest.mark.parametrize("costs", [[], [HJB(power="squared"), Transport()]])
def test_every_weight_gets_a_gradient(discrepancy, costs, places, seeded):
    blocks = [
        Continuous(Gradient(SmallPotential(2, seed=s)), RK1(2), train_end_time=True) for s in (0, 1)
    ]
    flow = Chain(blocks).double()
    loss = Generative(discrepancy, 1.0, costs).loss(flow, Batch(places(8, 2)), seeded())
    loss.total.backward()
    missing = [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == [f"blocks.{k}.velocity.potential.net.2.bias" for k in (0, 1)]


def test_the_gradient_is_that_of_finite_differences(places, seeded):
    flow, batch = potential_flow(2), Batch(places(6, 2))
    objective = Generative(SlicedW2(16), 2.0, [HJB(0.3, "squared"), JKOW2()])
    weight = flow.velocity.potential.net[0].weight

    def total(value):
        name = "velocity.potential.net.0.weight"
        kept = flow.get_parameter(name).data
        flow.get_parameter(name).data = value
        found = objective.loss(flow, batch, seeded()).total
        flow.get_parameter(name).data = kept
        return found.item()

    (found,) = gradients(objective.loss(flow, batch, seeded()).total, [weight])
    along = torch.randn_like(weight)
    fine = (total(weight + 1e-6 * along) - total(weight - 1e-6 * along)) / 2e-6
    assert (found * along).sum().item() == pytest.approx(fine, rel=1e-6)


def quadratic(seed=0):
    s = with_spectrum([0.8, -0.5], seed=seed)[0]
    return s, Continuous(Gradient(Quadratic(s)), RK1(4))


def hjb_by_hand(s, z, steps=4):
    """Return places and the squared HJB costs of Phi = -x'Sx/2 on Euler's way from noise.

    v = S x and dPhi/dt = 0, so the residual is -|S x|^2 / 2.
    """
    x, cost, places = z, 0.0, []
    for _ in range(steps):
        places.append(x)
        cost = cost + 0.25 * (x @ s).square().sum(-1).square() / steps
        x = x - x @ s / steps
    return places, x, cost


def test_generation_by_rk1_is_eulers(places):
    s, flow = quadratic()
    z = places(5, 2)
    made = flow.generate(z, [HJB(power="squared")])
    _, x, cost = hjb_by_hand(s, z)
    assert gap(made.x, x) < 1e-14
    assert gap(made.costs[:, 0], cost) < 1e-13


@pytest.mark.parametrize("detach", [False, True])
def test_a_detached_hjb_cost_does_not_move_the_points(detach, places, seeded):
    """d/dS of |Sx|^4/4 at a constant x is |Sx|^2 (Sx)x'; otherwise the points' part is added."""
    s, flow = quadratic()
    objective = Generative(Energy(), 0.0, [HJB(1.0, "squared", detach)])
    loss = objective.loss(flow, Batch(places(6, 2)), seeded(3))
    (found,) = gradients(loss.total, [flow.velocity.potential.s])
    z = torch.randn(6, 2, dtype=F64, generator=seeded(3))
    with torch.no_grad():
        points, _, _ = hjb_by_hand(s, z)
        still = sum(
            torch.einsum("n,ni,nj->ij", (x @ s).square().sum(-1), x @ s, x) / (4 * 6)
            for x in points
        )
        still = 0.5 * (still + still.mT)  # the potential sees the symmetric part of S
    free = s.clone().requires_grad_()
    _, _, cost = hjb_by_hand(0.5 * (free + free.mT), z)
    (moving,) = gradients(cost.mean(), [free])
    assert gap(found, still if detach else moving) < 1e-13
    assert gap(moving, still) > 0.1


# --- what it refuses -----------------------------------------------------------------------------


def test_what_cannot_be_trained_is_refused_before_it_is_tried():
    objective = Generative(regularizers=[HJB()])
    with pytest.raises(Incompatible, match=r"HJB needs phi_t .*SmallVelocity"):
        objective.check(Continuous(SmallVelocity(2)))
    with pytest.raises(Incompatible, match=r"Shift has no trajectory .* HJB"):
        objective.check(Shift())
    objective.check(potential_flow())
    Generative(regularizers=[JKOW2()]).check(Shift())


def test_a_density_without_a_map_is_refused():
    flow = adapt(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    with pytest.raises(Incompatible, match="generative moves noise to data, which Adapted cannot"):
        Generative().check(flow)


def test_points_without_a_gradient_are_refused(places, seeded):
    class Cut(Shift):
        def decode(self, z, context=None):
            return super().decode(z, context).detach()

    flow, batch = Cut().double(), Batch(places(4, 2))
    with pytest.raises(Incompatible, match="the points that Cut generates carry no gradient"):
        Generative().loss(flow, batch, seeded())
    with torch.no_grad():
        assert Generative().loss(flow, batch, seeded()).total.isfinite()


def test_an_empty_batch_is_refused(seeded):
    for samples in (None, 4):
        with pytest.raises(BadData, match="the batch has none"):
            Generative(samples=samples).loss(
                potential_flow(), Batch(torch.zeros(0, 2, dtype=F64)), seeded()
            )


def test_odd_options_are_refused():
    class Neither(Regularizer):
        pass

    with pytest.raises(Incompatible, match="Neither"):
        Generative(regularizers=[Neither()])
    with pytest.raises(UserError, match="samples must be at least 1, got 0"):
        Generative(samples=0)
