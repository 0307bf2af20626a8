"""Residual blocks: golden values, Jacobians and volumes, bounds of the layers."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import F64
from residual_flows import block, by_autograd, filled, golden

from flowzoo.errors import Incompatible
from flowzoo.regularizers import Transport
from flowzoo_residual import jacobian
from flowzoo_residual.flow import Residual
from flowzoo_residual.inversion import fixed_point
from flowzoo_residual.logdet import series

SHAPES = [(5, 4), (6,), (2, 7), (7, 2), (4, 2, 5), (6, 5, 2), (1,)]  # d = 3: cut at each layer
VALUES = golden()


def known(**options):
    """Return the block of the golden values."""
    weights, biases = ([VALUES[f"{name}{k}"] for k in range(3)] for name in "Wb")
    return filled(block(4, (16, 16), activation="elu", **options), weights, biases)


# --- golden values -------------------------------------------------------------------------------


@pytest.mark.parametrize("lipschitz", [0.9, None])
def test_golden_block(lipschitz):
    flow = known(lipschitz=lipschitz)
    encoded = flow.encode(VALUES["x"], [Transport()])
    _, j = flow.network().at(VALUES["x"])
    found = {
        "y": encoded.z,
        "logdet_exact": encoded.ladj,
        "transport_half_sq": encoded.costs[:, 0],
        "jac": j.dense(),
        "lipschitz_at_x": torch.linalg.matrix_norm(j.dense(), 2),
        "x_recovered": flow.decode(VALUES["y"]),
    }
    for key, value in found.items():
        assert torch.allclose(value, VALUES[key], rtol=0, atol=1e-9), key


def test_golden_series():
    """With the scaled basis for probes, the estimate of a trace is the trace."""
    _, j = known().network().at(VALUES["x"])
    probes = (2 * torch.eye(4, dtype=F64))[:, None].expand(4, 6, 4)
    for terms, expected in enumerate(VALUES["logdet_series_k1_20"], 1):
        assert torch.allclose(series(j, probes, terms), expected, rtol=0, atol=1e-9)


def test_golden_fixed_point():
    g, y = known().network(), VALUES["y"]
    for k in (1, 2, 3, 5):
        x, _ = fixed_point(g, y, torch.zeros(6, dtype=F64), k)
        error = (x - VALUES["x"]).norm(dim=-1).max().item()
        assert error == pytest.approx(VALUES["fixed_point_err_by_iter"][k - 1].item(), rel=1e-6)


# --- volumes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["elu", "softplus", "tanh"])
@pytest.mark.parametrize("hidden", SHAPES)
def test_ladj_is_that_of_autograd(places, hidden, activation):
    flow = block(3, hidden, activation=activation, lipschitz=None, size=1.5)
    x = places(6, 3)
    z, j = by_autograd(flow, x)
    encoded = flow.encode(x)
    assert torch.allclose(encoded.z, z, atol=1e-12)
    assert torch.allclose(encoded.ladj, torch.linalg.slogdet(j).logabsdet, atol=1e-12)


@pytest.mark.parametrize("hidden", SHAPES)
def test_products_and_solutions_are_those_of_the_dense_jacobian(places, hidden):
    flow = block(3, hidden, lipschitz=None, size=1.5)
    x, p = places(6, 3), places(4 * 6, 3, seed=1).view(4, 6, 3)
    found = flow.network().at(x)[1]
    plus = by_autograd(flow, x)[1]
    j = plus - torch.eye(3, dtype=F64)
    assert torch.allclose(found.dense(), j, atol=1e-12)
    assert torch.allclose(found.jvp(p), torch.einsum("nij,knj->kni", j, p), atol=1e-12)
    assert torch.allclose(found.vjp(p), torch.einsum("nji,knj->kni", j, p), atol=1e-12)
    assert torch.allclose(found.solve(p[0]), torch.linalg.solve(plus, p[0]), atol=1e-10)


def test_ladj_of_a_fold_is_that_of_the_absolute_value(places):
    """x - 3 x / 2 turns the orientation of a line around."""
    flow = filled(
        block(1, (1,), lipschitz=None), ([[1.0]], [[-1.5]]), ([100.0], [0.0])
    )  # elu is the identity there
    ladj = flow.encode(places(5, 1)).ladj
    assert torch.allclose(ladj, torch.full((5,), math.log(0.5), dtype=F64))


@pytest.mark.parametrize("hidden", [(5, 4), (2, 7)])
def test_pieces_change_nothing_and_keep_little(places, monkeypatch, hidden):
    """Neither value nor gradients, of first and second order; the products are not kept."""
    flow, x = block(3, hidden), places(7, 3).requires_grad_()
    weights = [x, *flow.parameters()]

    def everything():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda y: (kept.append(y.numel()), y)[1], lambda y: y
        ):
            ladj = flow.encode(x).ladj
        slopes = {"allow_unused": True, "materialize_grads": True}
        grads = torch.autograd.grad(ladj.square().sum(), weights, create_graph=True, **slopes)
        second = sum(g.square().sum() for g in grads)
        return [ladj, *grads, *torch.autograd.grad(second, weights, **slopes)], sum(kept)

    whole, most = everything()
    monkeypatch.setattr(jacobian, "BLOCK", 2 * 3 * 5)
    parts, least = everything()
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(parts, whole, strict=True))
    assert least < 0.6 * most


def test_gradients_of_the_density(places):
    flow, x = block(3, (5, 4)), places(4, 3).requires_grad_()
    weights = tuple(flow.parameters())

    def value(x, *weights):
        names = [name for name, _ in flow.named_parameters()]
        return torch.func.functional_call(flow, dict(zip(names, weights, strict=True)), x).sum()

    flow.forward = flow.log_prob
    assert torch.autograd.gradcheck(value, (x, *weights))


def test_a_context_moves_the_block_and_not_its_bound(places):
    flow = block(3, (5, 4), context_dim=2)
    x, c = places(6, 3), 100 * places(6, 2, seed=1)
    z, j = by_autograd(flow, x, c)
    encoded = flow.encode(x, context=c)
    assert torch.allclose(encoded.z, z, atol=1e-10)
    assert torch.allclose(encoded.ladj, torch.linalg.slogdet(j).logabsdet, atol=1e-10)
    assert torch.allclose(flow.decode(encoded.z, c), x, atol=1e-9)
    with pytest.raises(Incompatible, match="width 2 and got width 0"):
        flow.encode(x)


# --- bounds --------------------------------------------------------------------------------------


def norms(flow):
    """Return the exact norms of the weights in use."""
    return torch.stack([torch.linalg.svdvals(w)[0] for w in flow.network().weights]).detach()


def test_what_is_evaluated_is_bounded_whatever_became_of_the_weights():
    flow = block(3, (16, 8), size=5.0, lipschitz=0.8)
    assert torch.allclose(norms(flow), torch.full((3,), 0.8, dtype=F64), atol=1e-12)
    single = Residual(3, (16, 8), lipschitz=0.8).eval()
    torch.nn.init.normal_(single.network.layers[1].linear.weight)
    assert norms(single).max() < 0.8 * (1 + 1e-6)


def test_small_weights_are_left_alone():
    flow = block(3, (16, 8), size=0.01)
    kept = [layer.linear.weight for layer in flow.network.layers]
    assert all(torch.equal(a, b) for a, b in zip(kept, flow.network().weights, strict=True))


def test_in_training_power_iterations_follow_the_norms(places):
    """At the start they are exact; after a jump of the weights a few steps find them again."""
    flow, x = block(3, (16, 8), size=3.0).train(), places(4, 3)
    bound = torch.full((3,), 0.9, dtype=F64)
    assert torch.allclose(norms(flow), bound, atol=1e-12)
    torch.nn.init.normal_(flow.network.layers[1].linear.weight, std=0.5)
    assert norms(flow).max() > 0.95
    before = [layer.u.clone() for layer in flow.network.layers]
    flow.decode(x)
    assert all(
        torch.equal(u, layer.u) for u, layer in zip(before, flow.network.layers, strict=True)
    )
    for _ in range(30):
        flow.encode(x)
    assert torch.allclose(norms(flow), bound, atol=1e-8)


def test_more_power_iterations_come_closer(places):
    found = []
    for count in (1, 20):
        flow = block(3, (16, 16), power_iterations=count).train()
        draws = torch.Generator().manual_seed(0)
        torch.nn.init.normal_(flow.network.layers[1].linear.weight, generator=draws)
        flow.encode(places(4, 3))
        found.append(norms(flow)[1].item() - 0.9)
    assert 0 <= found[1] < 0.1 * found[0]


def test_the_gradient_knows_that_the_norm_moves_with_the_weights(places):
    """Scaling a weight whose norm is above the bound changes nothing, in either mode."""
    flow = block(3, (16, 8), size=5.0)
    for mode in (True, False):
        flow.train(mode).encode(places(4, 3)).z.square().sum().backward()
        layer = flow.network.layers[1].linear
        slope = (layer.weight.grad * layer.weight).sum()
        assert abs(slope) < 1e-10 * layer.weight.grad.norm() * layer.weight.norm()
        flow.zero_grad()


def test_what_is_followed_later_does_not_disturb_an_earlier_backward_pass(places):
    flow = block(3, (16, 8), size=5.0).train()
    x, log_p = flow.decode(places(4, 3)), flow.log_prob(places(4, 3))
    flow.encode(places(4, 3, seed=1))
    (x.sum() + log_p.sum()).backward()


def test_the_scale_is_that_of_the_weights_at_the_start():
    one, other = (block(3, (5, 4), lipschitz=None, scale=scale) for scale in (1.0, 0.9))
    for a, b in zip(one.network.layers, other.network.layers, strict=True):
        assert torch.allclose(0.9 * a.linear.weight, b.linear.weight, atol=1e-6)
        assert torch.equal(a.linear.bias, b.linear.bias)
