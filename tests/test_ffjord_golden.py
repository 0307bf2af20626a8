"""FFJORD against values of its published code; sources in golden/ffjord/README.md."""

from __future__ import annotations

import pytest
from ffjord_golden import like_ours, network, off, read
from oracles import gap, gradients

from flowzoo.continuous import Continuous
from flowzoo.flow import Chain
from flowzoo.integrators import RK1, RK4, RK438
from flowzoo.odeint import Adjoint, Dopri5, TorchDiffEq
from flowzoo.regularizers import JacobianFrobenius, Transport
from flowzoo.traces import Exact, Hutchinson
from flowzoo_ffjord.batchnorm import MovingBatchNorm
from flowzoo_ffjord.layers import LAYERS
from flowzoo_ffjord.official import load_official


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    golden = read("layers_linear")
    layer = LAYERS[name](3, 4).double()
    load_official(layer, golden, f"{name}::w::")
    x, t, y = golden["x"], golden["t"], golden[f"{name}::y"]
    assert off(layer.at(t)(x), y) < 1e-12
    assert off(layer.at(t.expand(len(x)))(x), y) < 1e-12, "with a time for each sample"


@pytest.mark.parametrize("i", range(3))
@pytest.mark.parametrize(
    ("name", "activation"),
    [("odenet_concatsquash_tanh_d6", "tanh"), ("odenet_concatsquash_softplus_d10", "softplus")],
)
def test_network(name, activation, i):
    golden = read(name)
    x, d = golden["x"], golden["x"].shape[1]
    net = network(golden, d, activation)
    point = net.at(golden[f"t{i}"], x)
    assert off(point.v, golden[f"v{i}"]) < 1e-11
    assert off(net(golden[f"t{i}"], x), golden[f"v{i}"]) < 1e-11
    assert off(point.jacobian.dense(), golden[f"J{i}"]) < 1e-11
    assert off(Exact()(point.jacobian, None), golden[f"div_bf{i}"]) < 1e-11
    # RNODE's rates are means over dimensions, ours are sums.
    assert off(Transport().rate(point, None) / d, golden[f"rnode_kinetic{i}"]) < 1e-11
    assert off(JacobianFrobenius().rate(point, None), golden[f"frob_sq_exact{i}"]) < 1e-11
    for noise in ("gauss", "rad"):
        probes = golden[f"e_{noise}"][None]
        assert off(point.jacobian.vjp(probes)[0], golden[f"eTJ_{noise}{i}"]) < 1e-11
        assert off(Hutchinson()(point.jacobian, probes), golden[f"div_{noise}{i}"]) < 1e-11
        frobenius = JacobianFrobenius().rate(point, probes) / d
        assert off(frobenius, golden[f"rnode_frob_{noise}{i}"]) < 1e-11


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("name", "activation"),
    [("odenet_concatsquash_tanh_d6", "tanh"), ("odenet_concatsquash_softplus_d10", "softplus")],
)
def test_right_hand_side(name, activation, residual):
    """The code takes d from the estimate of a residual network, we take |e|^2, of the same mean."""
    golden, key = read(name), f"res{int(residual)}_"
    x, e = golden["x"], golden["e_gauss"]
    net = network(golden, x.shape[1], activation, residual=residual)
    point = net.at(golden["t1"], x)
    assert off(point.v, golden[f"rhs_train_gauss_{key}dx"]) < 1e-11
    trace = Exact()(point.jacobian, None)
    assert off(-trace[:, None], golden[f"rhs_bf_{key}dlogp"]) < 1e-11
    estimate = Hutchinson()(point.jacobian, e[None])
    if residual:
        estimate = estimate + e.square().sum(-1) - x.shape[1]
    assert off(-estimate[:, None], golden[f"rhs_train_gauss_{key}dlogp"]) < 1e-11


def encoded(golden, integrator, key="", trace=None):
    """Encode golden data and compare; returns the flow."""
    net = network(golden, 2, "tanh")
    flow = Continuous(net, integrator, trace, end_time=golden["T"].item())
    out = flow.encode(golden["x"])
    assert out.nfe[0].forward > 0
    return flow, off(out.z, golden[f"{key}z"]), off(-out.ladj[:, None], golden[f"{key}delta_logp"])


@pytest.mark.parametrize(
    "integrator",
    [Adjoint(rtol=1e-10, atol=1e-10), Dopri5(1e-10, 1e-10), RK4(128)],
    ids=["adjoint", "dopri5", "rk4"],
)
def test_converged_flow(integrator):
    """All ways of solving reach the official values, loss, gradient and way back."""
    golden = read("cnf_2d_tanh")
    flow, z, ladj = encoded(golden, integrator)
    assert max(z, ladj) < 1e-8
    log_prob = flow.log_prob(golden["x"])
    assert off(log_prob, golden["logpx"][:, 0]) < 1e-8
    assert -log_prob.mean().item() == pytest.approx(golden["loss"].item(), rel=1e-8)
    found = gradients(-log_prob.mean(), flow.velocity.parameters())
    assert gap(found, like_ours(flow.velocity, golden, "grad_adjoint::")) < 1e-8
    x = flow.decode(golden["z"])
    assert off(x, golden["x_reconstructed"]) < 1e-8
    assert off(flow.encode(x).ladj[:, None], golden["delta_logp_reverse"]) < 1e-8


@pytest.mark.parametrize("tol", ["0.001", "1e-05", "1e-07"])
def test_flow_at_a_tolerance(tol):
    """At the same tolerance we are nearer the truth, because no end value is interpolated."""
    golden = read("cnf_2d_tanh")
    _, z, ladj = encoded(golden, Adjoint(rtol=float(tol), atol=float(tol)))
    assert z < off(golden[f"dopri5_{tol}::z"], golden["z"])
    assert ladj < off(golden[f"dopri5_{tol}::delta_logp"], golden["delta_logp"])
    assert ladj < 100 * float(tol)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("n", [1, 4, 8])
def test_classic_runge_kutta(n, recompute):
    golden, key = read("cnf_2d_tanh"), f"rk4classic_{n}::"
    flow, z, ladj = encoded(golden, RK4(n, recompute), key)
    assert max(z, ladj) < 1e-11
    loss = -flow.log_prob(golden["x"]).mean()
    assert loss.item() == pytest.approx(golden[key + "loss"].item(), rel=1e-11)
    found = gradients(loss, flow.velocity.parameters())
    assert gap(found, like_ours(flow.velocity, golden, key + "grad::")) < 1e-11


@pytest.mark.parametrize("n", [1, 4, 8])
@pytest.mark.parametrize(
    ("make", "key"),
    [
        (RK438, "rk4_38"),
        (lambda n: TorchDiffEq("rk4", steps=n), "rk4_38"),
        (lambda n: Adjoint("rk4", steps=n), "rk4_38"),
        (RK1, "euler"),
        (lambda n: TorchDiffEq("euler", steps=n), "euler"),
    ],
    ids=["rk4-38", "torchdiffeq-rk4", "adjoint-rk4", "rk1", "torchdiffeq-euler"],
)
def test_other_fixed_grids(make, key, n):
    _, z, ladj = encoded(read("cnf_2d_tanh"), make(n), f"{key}_{n}::")
    assert max(z, ladj) < 1e-11


def test_exact_trace_in_six_dimensions():
    golden = read("cnf_d6_hutch_rnode")
    out = Continuous(network(golden, 6, "softplus"), RK4(64)).encode(golden["x"])
    assert off(out.z, golden["exact_z"]) < 1e-8
    assert off(-out.ladj[:, None], golden["exact_delta_logp"]) < 1e-8


def test_stacked_blocks():
    golden = read("stacked_two_blocks_d6")
    nets = [network(golden, 6, "tanh", f"block{b}::w::") for b in range(2)]
    end = golden["T"].item()
    chain = Chain([Continuous(net, Dopri5(1e-10, 1e-10), end_time=end) for net in nets])
    out = chain.encode(golden["x"])
    assert off(out.z, golden["z"]) < 1e-7
    assert off(-out.ladj[:, None], golden["delta_logp"]) < 1e-7
    assert off(chain.log_prob(golden["x"]), golden["logpx"][:, 0]) < 1e-7


def test_moving_batch_norm():
    golden = read("moving_batchnorm1d")
    x = golden["x"]
    norm = MovingBatchNorm(x.shape[1], decay=golden["decay"].item(), eps=golden["eps"].item())
    load_official(norm.double(), golden, "w::")
    norm.eval()
    out = norm.encode(x)
    assert off(out.z, golden["y_eval"]) < 1e-12
    assert off(-out.ladj[:, None], golden["dlogp_eval"]) < 1e-12
    assert off(norm.decode(out.z), golden["x_rev"]) < 1e-12
    back = norm.encode(golden["x_rev"]).ladj[:, None]
    assert off(back, golden["dlogp_rev"]) < 1e-12
    norm.train()
    out = norm.encode(x)
    assert off(out.z, golden["y_train"]) < 1e-12
    assert off(-out.ladj[:, None], golden["dlogp_train"]) < 1e-12
    assert off(norm.running_mean, golden["running_mean_after"]) < 1e-12
    assert off(norm.running_var, golden["running_var_after"]) < 1e-12
