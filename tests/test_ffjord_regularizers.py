"""FFJORD's own running costs against values of its code and against their definitions."""

from __future__ import annotations

import pytest
import torch
from ffjord_golden import network, off, read
from oracles import gap, gradients

from flowzoo.continuous import Continuous
from flowzoo.field import Velocity
from flowzoo.integrators import RK4
from flowzoo.objective import Batch, Likelihood
from flowzoo.odeint import Adjoint
from flowzoo_ffjord.regularizers import (
    L1,
    L2,
    Diagonal,
    Directional,
    DirectionalSquared,
    Frobenius,
    OffDiagonal,
)
from flowzoo_ffjord.velocity import ODENet

NAMED = {
    "ffjord_l1": L1,
    "ffjord_l2": L2,
    "ffjord_dl2": Directional,
    "ffjord_JFrob": Frobenius,
}
ALL = [*NAMED.values(), Diagonal, OffDiagonal, DirectionalSquared]


@pytest.mark.parametrize("key", NAMED)
@pytest.mark.parametrize("i", range(3))
@pytest.mark.parametrize(
    ("name", "activation"),
    [("odenet_concatsquash_tanh_d6", "tanh"), ("odenet_concatsquash_softplus_d10", "softplus")],
)
def test_rates_at_points(name, activation, i, key):
    """The code has the batch's mean, we have every sample's."""
    golden = read(name)
    x = golden["x"]
    net = network(golden, x.shape[1], activation)
    for at in (net.at, lambda *args: Velocity.at(net, *args)):
        rate = NAMED[key]().rate(at(golden[f"t{i}"], x), golden["e_gauss"][None])
        assert rate.shape == (len(x),)
        assert off(rate.mean(), golden[f"{key}{i}"]) < 1e-11


@pytest.mark.parametrize("i", range(3))
@pytest.mark.parametrize(
    ("name", "activation"),
    [("odenet_concatsquash_tanh_d6", "tanh"), ("odenet_concatsquash_softplus_d10", "softplus")],
)
def test_the_diagonal_is_one_where_the_code_has_the_first_column(name, activation, i):
    golden = read(name)
    d = golden["x"].shape[1]
    point = network(golden, d, activation).at(golden[f"t{i}"], golden["x"])
    jacobian = golden[f"J{i}"]
    column = jacobian[:, :, 0].norm(dim=1) / d**0.5
    assert off(column.mean(), golden[f"ffjord_JdiagFrob{i}"]) < 1e-11
    squares = sum(jacobian[:, k, k].square() for k in range(d))
    assert off(Diagonal().rate(point, None), (squares / d).sqrt()) < 1e-11


def test_integrated_costs():
    """The code has batch means; |v|_1 has kinks, so that no solver integrates it to much more."""
    golden = read("cnf_d6_hutch_rnode")
    with torch.no_grad():
        flow = Continuous(network(golden, 6, "softplus"), RK4(128))
        out = flow.encode(golden["x"], [L1(), L2(), Directional()])
    assert off(out.z, golden["ffjord_reg_z"]) < 1e-8
    l1, l2, directional = out.costs.mean(0)
    assert off(l1, golden["ffjord_reg_l1int"]) < 2e-6
    assert off(l2, golden["ffjord_reg_l2int"]) < 1e-8
    assert off(directional, golden["ffjord_reg_dl2int"]) < 1e-8


def test_the_mean_square_off_the_diagonal(places):
    """Written out entry by entry; in one dimension there is none."""
    for d in (1, 4):
        net = ODENet(d, (5,)).double()
        point = net.at(torch.tensor(0.3, dtype=torch.float64), places(3, d))
        jacobian = point.jacobian.dense()
        entries = [jacobian[:, i, j].square() for i in range(d) for j in range(d) if i != j] or [
            torch.zeros(3, dtype=torch.float64)
        ]
        assert gap(OffDiagonal().rate(point, None), sum(entries) / len(entries)) < 1e-14


@pytest.mark.parametrize("cost", ALL)
def test_gradients_with_the_adjoint_are_those_of_the_steps(cost, places):
    x = places(4, 3)
    found = []
    net = ODENet(3, (6, 5)).double()
    tol = 1e-6 if cost is L1 else 1e-9  # |v|_1 has kinks
    for integrator in (Adjoint(rtol=tol, atol=tol), RK4(64)):
        flow = Continuous(net, integrator)
        loss = Likelihood(0.0, [cost(2.0)]).loss(flow, Batch(x))
        assert loss.total.item() == pytest.approx(2 * loss.terms[cost.__name__].item())
        found.append(gradients(loss.total, net.parameters()))
    assert gap(*found) < (1e-2 if cost is L1 else 1e-5)
    assert any(g.any() for g in found[0])


@pytest.mark.parametrize("cost", ALL)
def test_the_gradient_of_standing_still_is_zero_and_a_number(cost):
    """The last layer's weights and bias are zero, so that v and J are."""
    net = ODENet(3, (5,), layer="concat", zero_last=True).double()
    torch.nn.init.zeros_(net.layers[-1].linear.bias)
    x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    rate = cost().rate(net.at(torch.tensor(0.0, dtype=torch.float64), x), None)
    assert not rate.any()
    assert not any(g.any() for g in gradients(rate.sum(), [x, *net.parameters()]))


def test_costs_of_one_point_share_its_jacobian(places):
    point = ODENet(3, (5,)).double().at(torch.tensor(0.2, dtype=torch.float64), places(4, 3))
    assert point.jacobian.dense() is point.jacobian.dense()
