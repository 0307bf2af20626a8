"""RNODE: its costs, its loss and their gradients against its formulas on FFJORD's network.

Its costs are means over dimensions, ours are sums; its loss is in bits per dimension. So its loss
is ours in nats over d ln 2, with weights 0.01 ln 2 in place of 0.01.
"""

from __future__ import annotations

import math

import pytest
import torch
from ffjord_golden import Given, like_ours, network, off, read
from oracles import gap, gradients
from torchdiffeq import odeint_adjoint

from flowzoo.continuous import Augmented, Continuous
from flowzoo.integrators import RK438
from flowzoo.objective import Batch, Likelihood
from flowzoo.odeint import Adjoint, Dopri5
from flowzoo.regularizers import JacobianFrobenius, Transport
from flowzoo.traces import Exact
from flowzoo_ffjord.regularizers import DirectionalSquared

D = 6


@pytest.fixture(params=["gauss", "rad"])
def noise(request):
    return request.param


@pytest.fixture
def golden():
    return read("cnf_d6_hutch_rnode")


def flow_of(golden, noise, integrator):
    net = network(golden, D, "softplus")
    return Continuous(net, integrator, Given(golden[f"e_{noise}"]), golden["T"].item())


def costs_of(golden):
    return [
        Transport(golden["lambda_kinetic"].item() * math.log(2)),
        JacobianFrobenius(golden["lambda_frob"].item() * math.log(2)),
    ]


@pytest.mark.parametrize(
    "integrator", [Adjoint(rtol=1e-10, atol=1e-10), Dopri5(1e-10, 1e-10)], ids=["adjoint", "dopri5"]
)
def test_loss_and_gradient(golden, noise, integrator):
    flow, costs = flow_of(golden, noise, integrator), costs_of(golden)
    out = flow.encode(golden["x"], costs)
    assert off(out.z, golden[f"{noise}::z"]) < 1e-8
    assert off(-out.ladj[:, None], golden[f"{noise}::delta_logp"]) < 1e-8
    integrated = torch.stack([golden[f"{noise}::kinetic"], golden[f"{noise}::frob"]], -1)
    assert off(out.costs / D, integrated) < 1e-8
    loss = Likelihood(regularizers=costs).loss(flow, Batch(golden["x"]))
    assert loss.terms["nll"].item() == pytest.approx(golden[f"{noise}::nll"].item(), rel=1e-8)
    total = loss.total / (D * math.log(2))
    assert total.item() == pytest.approx(golden[f"{noise}::loss_bpd_plus_reg"].item(), rel=1e-8)
    found = gradients(total, flow.parameters())
    assert gap(found, like_ours(flow.velocity, golden, f"{noise}::grad::")) < 1e-8


@pytest.mark.parametrize(
    "integrator", [RK438(4), RK438(4, recompute=True), Adjoint("rk4", steps=4)],
    ids=["rk4-38", "recomputed", "adjoint"],
)  # fmt: skip
def test_its_four_steps(golden, noise, integrator):
    """Values are to rounding; gradients are near those of the converged solution."""
    flow, costs, key = flow_of(golden, noise, integrator), costs_of(golden), "rk4_38_step0.25::"
    out = flow.encode(golden["x"], costs)
    assert off(out.z, golden[f"{noise}::{key}z"]) < 1e-12
    assert off(-out.ladj[:, None], golden[f"{noise}::{key}delta_logp"]) < 1e-12
    integrated = [golden[f"{noise}::{key}{name}"] for name in ("kinetic", "frob")]
    assert off(out.costs / D, torch.stack(integrated, -1)) < 1e-12
    total = Likelihood(regularizers=costs).loss(flow, Batch(golden["x"])).total / (D * math.log(2))
    found = gradients(total, flow.parameters())
    assert gap(found, like_ours(flow.velocity, golden, f"{noise}::grad::")) < 1e-3


def test_its_gradient_is_that_of_its_call(golden, noise):
    """RNODE's call of torchdiffeq, with a step of 1/4, has our gradient with four steps."""
    flow, costs = flow_of(golden, noise, Adjoint("rk4", steps=4)), costs_of(golden)
    x, params = golden["x"], tuple(flow.parameters())
    likelihood = Likelihood(regularizers=costs)
    ours = gradients(likelihood.loss(flow, Batch(x)).total, params)
    z, ladj, integrated = odeint_adjoint(
        Augmented(flow.velocity, flow.trace, [golden[f"e_{noise}"][None]], costs, None),
        (x, x.new_zeros(len(x)), x.new_zeros(len(x), 2)),
        torch.tensor([0.0, 1.0], dtype=torch.float64),
        method="rk4",
        options={"step_size": 0.25},
        adjoint_params=params,
    )
    log_z = -0.5 * (z[1].square().sum(-1) + D * math.log(2 * math.pi))
    total = -(log_z + ladj[1]).mean()
    for cost, value in zip(costs, integrated[1].mean(0), strict=True):
        total = total + cost.weight * value
    assert gap(ours, gradients(total, params)) < 1e-12


def test_the_cost_of_its_directional_derivative(golden):
    """|J^T v|^2 / 2 from the whole Jacobian; RNODE's is its mean over dimensions."""
    point = network(golden, D, "softplus").at(golden["T"] / 3, golden["x"])
    product = torch.einsum("nij,ni->nj", point.jacobian.dense(), point.v)
    mean = 0.5 * product.square().mean(-1)
    for probes in (None, golden["e_gauss"][None]):
        assert off(DirectionalSquared().rate(point, probes) / D, mean) < 1e-12
    forward = torch.einsum("nij,nj->ni", point.jacobian.dense(), point.v)
    assert off(0.5 * forward.square().mean(-1), mean) > 1e-3, "it is not the product along v"


def test_one_product_serves_divergence_and_penalty(golden):
    """The two terms of a step cost no more than the divergence alone."""
    point = network(golden, D, "softplus").at(golden["T"], golden["x"])
    probes, trace, calls = golden["e_rad"][None], Given(golden["e_rad"]), []
    pull = point.jacobian.maps[-1].__class__.pull
    try:
        point.jacobian.maps[-1].__class__.pull = lambda *a: calls.append(1) or pull(*a)
        trace(point.jacobian, probes)
        alone = len(calls)
        JacobianFrobenius().rate(point, probes)
    finally:
        point.jacobian.maps[-1].__class__.pull = pull
    assert alone == 3
    assert len(calls) == alone


def test_the_exact_costs_are_what_its_noise_estimates(golden):
    """With an exact trace the penalty is that of the whole Jacobian, near the mean over probes."""
    x = golden["x"][:2]
    net = network(golden, D, "softplus")
    exact = Continuous(net, RK438(8), Exact()).encode(x, costs_of(golden)).costs[:, 1]
    basis = torch.eye(D, dtype=x.dtype) * D**0.5
    each = [
        Continuous(net, RK438(8), Given(e.expand_as(x))).encode(x, costs_of(golden)).costs[:, 1]
        for e in basis
    ]
    assert gap(torch.stack(each).mean(0), exact) < 1e-12
