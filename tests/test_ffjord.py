"""FFJORD's network against automatic differentiation, its sizes and its errors."""

from __future__ import annotations

import pytest
import torch
from oracles import gap, gradients, jacobian
from torch.utils.flop_counter import FlopCounterMode

from flowzoo.errors import Incompatible, UserError
from flowzoo.field import Velocity
from flowzoo.traces import Exact, Hutchinson
from flowzoo_ffjord.activations import ACTIVATIONS
from flowzoo_ffjord.layers import LAYERS
from flowzoo_ffjord.official import load_official
from flowzoo_ffjord.velocity import ODENet

F64 = torch.float64
DEPTHS = [(), (5,), (5, 7), (5, 7, 6), (4, 5, 6, 7)]


def net_of(dim=3, hidden=(5, 7), **options):
    """Return a network in float64, away from initialisations at which a derivative vanishes."""
    net = ODENet(dim, hidden, **options).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net


def time_of(x, kind):
    return torch.tensor(0.37, dtype=F64) if kind == "shared" else torch.linspace(0, 1, len(x)).to(x)


@pytest.mark.parametrize("name", LAYERS)
def test_times_for_each_sample_are_the_shared_time_row_by_row(name, places):
    layer = net_of(3, (), layer=name).layers[0]
    x = places(5, 3)
    t = time_of(x, "each")
    rows = [layer.at(t[i])(x[i : i + 1]) for i in range(len(x))]
    assert gap(layer.at(t)(x), torch.cat(rows)) < 1e-14
    # The map does depend on time, unless it is called `ignore`.
    assert (gap(layer.at(t[0])(x), layer.at(t[-1])(x)) < 1e-14) == (name == "ignore")


@pytest.mark.parametrize("kind", ["shared", "each"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_affine_and_pull_is_the_transpose_of_push(name, kind, places):
    x, u, p = places(5, 3), places(5, 3, 1).expand(2, 5, 3), places(5, 3, 2)
    affine = net_of(3, (), layer=name).layers[0].at(time_of(x, kind))
    assert gap(affine(x + u) - affine(x), affine.push(u)) < 1e-12
    assert gap((affine.push(u) * p).sum(-1), (affine.pull(p) * u).sum(-1)) < 1e-12


def kept_gradients(loss, wanted):
    """Return gradients of a graph that is used again."""
    if not loss.requires_grad:
        return [torch.zeros_like(w) for w in wanted]
    found = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]


def check_closed_form(net, kind, x, context=None):
    """Compare value, Jacobian products and their gradients with the base class's autograd."""
    d, x = x.shape[1], x.clone().requires_grad_()
    probes = torch.randn(2, *x.shape, dtype=F64)
    context = None if context is None else context.clone().requires_grad_()
    wanted = [x, *net.parameters(), *([] if context is None else [context])]
    t = time_of(x, kind)
    results = []
    for at in (net.at, lambda *args: Velocity.at(net, *args)):
        point = at(t, x, context)
        a = point.jacobian
        results.append(
            (
                point.v,
                a.dense().expand(len(x), d, d),
                a.vjp(probes),
                a.jvp(probes),
                a.vjp(probes[0]),
                Exact()(a, None),
                Hutchinson()(a, probes),
            )
        )
    for ours, autograd in zip(*results, strict=True):
        assert gap(ours, autograd) < 1e-12
        seed = torch.randn_like(ours)
        pair = [kept_gradients((r * seed).sum(), wanted) for r in (ours, autograd)]
        scale = max(g.abs().max() for g in pair[1]).clamp(min=1)
        assert all((g - h).abs().max() < 1e-11 * scale for g, h in zip(*pair, strict=True))
    assert gap(results[0][1].detach(), jacobian(net(t, x, context), x)) < 1e-12


@pytest.mark.parametrize("kind", ["shared", "each"])
@pytest.mark.parametrize("hidden", DEPTHS, ids=len)
@pytest.mark.parametrize("layer", LAYERS)
def test_jacobian_of_every_layer(layer, hidden, kind, places):
    check_closed_form(net_of(3, hidden, layer=layer), kind, places(4, 3))


@pytest.mark.parametrize("hidden", [(6,), (6, 5), (6, 5, 4)], ids=len)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_jacobian_of_every_activation(activation, hidden, places):
    check_closed_form(net_of(2, hidden, activation=activation), "shared", 3 * places(6, 2))


@pytest.mark.parametrize("kind", ["shared", "each"])
@pytest.mark.parametrize("layer", LAYERS)
def test_jacobian_with_context(layer, kind, places):
    check_closed_form(net_of(3, layer=layer, context_dim=2), kind, places(4, 3), places(4, 2, 1))


@pytest.mark.parametrize("kind", ["shared", "each"])
@pytest.mark.parametrize("hidden", DEPTHS, ids=len)
@pytest.mark.parametrize("context_dim", [0, 2])
def test_jacobian_of_a_residual_network(hidden, kind, context_dim, places):
    context = places(4, 2, 1) if context_dim else None
    net = net_of(3, hidden, context_dim=context_dim, residual=True)
    check_closed_form(net, kind, places(4, 3), context)


def test_a_residual_network_is_the_network_minus_the_places(places):
    x, t = places(5, 3), torch.tensor(0.4, dtype=F64)
    net = net_of(residual=True)
    plain = ODENet(3, (5, 7)).double()
    plain.load_state_dict(net.state_dict())
    assert gap(net(t, x), plain(t, x) - x) < 1e-15
    ours, bare = net.at(t, x), plain.at(t, x)
    assert gap(ours.v, bare.v - x) < 1e-15
    assert gap(ours.jacobian.dense(), bare.jacobian.dense() - torch.eye(3, dtype=F64)) < 1e-15
    assert gap(ours.jacobian.trace(), bare.jacobian.trace() - 3) < 1e-15


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slopes_far_out(activation):
    """Slopes are finite and right where exponentials overflow."""
    s = ACTIVATIONS[activation]().double()
    h = torch.tensor([-800.0, -40.0, -20.0, -1e-9, 1e-9, 19.9, 20.1, 40.0, 800.0], dtype=F64)
    h.requires_grad_()
    y = s(h)
    slope = s.slope(h, y)
    assert gap(slope, torch.autograd.grad(y.sum(), h, retain_graph=True)[0]) < 1e-15
    if slope.requires_grad:
        assert torch.autograd.grad(slope.sum(), h)[0].isfinite().all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_parameter_receives_a_gradient(layer, activation, places):
    net = net_of(3, layer=layer, activation=activation, context_dim=1)
    point = net.at(time_of(places(), "shared"), places(5, 3), places(5, 1))
    loss = point.v.square().sum() + Exact()(point.jacobian, None).sum()
    for name, gradient in zip(
        dict(net.named_parameters()), gradients(loss, net.parameters()), strict=True
    ):
        assert gradient.any(), name


def test_every_swish_has_its_own_beta():
    assert len({id(s.beta) for s in net_of(activation="swish").activations}) == 2


def test_without_gradients_no_graph_is_recorded_and_the_dtype_is_kept(places):
    net = net_of().float()
    with torch.no_grad():
        point = net.at(torch.tensor(0.5), places(5, 3).float())
    for value in (point.v, point.jacobian.dense(), point.jacobian.trace()):
        assert not value.requires_grad
        assert value.dtype == torch.float32


def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_what_the_jacobian_costs(places):
    """A product costs one evaluation of v; a trace O(h^2) with two hidden layers, whatever d is."""
    n, d, h = 64, 21, 210
    x, t = places(n, d), torch.tensor(0.5, dtype=F64)
    two, three = (net_of(d, [10] * k, times_dim=True) for k in (2, 3))
    with torch.no_grad():
        v, a = flops(lambda: two(t, x)), two.at(t, x).jacobian
        assert flops(lambda: two.at(t, x)) == v
        assert flops(lambda: a.vjp(x)) == 2 * n * h * (2 * d + h) <= v
        assert flops(lambda: a.vjp(x)) == 0, "computed once for the same probes"
        assert flops(a.trace) == 2 * h * h * (n + d)
        assert flops(three.at(t, x).jacobian.trace) <= d * flops(lambda: three(t, x))


@pytest.mark.parametrize(
    ("dim", "width", "depth", "blocks", "concatsquash", "concat"),
    [
        (6, 10, 3, 5, 43_320, 41_460),
        (8, 20, 3, 5, 278_560, 273_680),
        (21, 10, 2, 10, 546_840, 538_020),
        (43, 20, 2, 1, 820_612, 817_086),
        (63, 20, 3, 2, 6_698_664, 6_683_292),
    ],
    ids=["power", "gas", "hepmass", "miniboone", "bsds300"],
)
def test_published_sizes(dim, width, depth, blocks, concatsquash, concat):
    for layer, count in (("concatsquash", concatsquash), ("concat", concat)):
        with torch.device("meta"):
            net = ODENet(dim, [width] * depth, times_dim=True, layer=layer)
        assert blocks * sum(p.numel() for p in net.parameters()) == count


def test_published_toy_size_is_the_default():
    assert sum(p.numel() for p in ODENet(2).parameters()) == 9_224


@pytest.mark.parametrize("layer", LAYERS)
def test_zero_last_starts_as_a_shift(layer, places):
    net = ODENet(3, (5, 6), layer=layer, zero_last=True).double()
    t = torch.tensor(0.3, dtype=F64)
    assert [layer.at(t).weights[0].any().item() for layer in net.layers] == [True, True, False]
    point = net.at(t, places(5, 3))
    assert not point.jacobian.dense().any()
    assert gap(point.v, point.v[:1].expand(5, 3)) < 1e-14
    assert point.v.any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hidden": [64, 0]}, r"at least 1, got \[64, 0\]"),
        ({"layer": "concatsquahs"}, "did you mean 'concatsquash'"),
        ({"activation": "tanhh"}, "did you mean 'tanh'"),
    ],
)
def test_wrong_options(options, said):
    with pytest.raises(UserError, match=said):
        ODENet(3, **options)


@pytest.mark.parametrize(("built", "given"), [(2, None), (2, 3), (0, 1)])
def test_wrong_context(built, given, places):
    context = None if given is None else places(5, given)
    with pytest.raises(Incompatible, match=f"context of width {built}, got {given or 0}"):
        net_of(context_dim=built)(torch.tensor(0.5, dtype=F64), places(5, 3), context)


def test_official_names_of_another_network_are_refused():
    net = ODENet(2, (4,))
    with pytest.raises(UserError, match=r"layer type, widths .*layers.0.gate.weight"):
        load_official(net, {"layers.0._layer.weight": torch.zeros(4, 2)})
    state = {f"_layer.{k}": torch.zeros(s) for k, s in (("weight", (3, 2)), ("bias", (3,)))}
    with pytest.raises(UserError, match="size mismatch"):
        load_official(LAYERS["ignore"](2, 4), state)


def test_official_activations_are_read_behind_a_prefix():
    net = ODENet(2, (), layer="ignore", activation="swish")
    swish = ODENet(2, (4,), layer="ignore", activation="swish")
    state = {
        "chain.1.odefunc.diffeq.layers.0._layer.weight": torch.ones(4, 2),
        "chain.1.odefunc.diffeq.layers.0._layer.bias": torch.ones(4),
        "chain.1.odefunc.diffeq.layers.1._layer.weight": torch.ones(2, 4),
        "chain.1.odefunc.diffeq.layers.1._layer.bias": torch.ones(2),
        "chain.1.odefunc.diffeq.activation_fns.0.beta": torch.tensor(3.0),
        "chain.1.sqrt_end_time": torch.tensor(1.0),
    }
    load_official(swish, state, "chain.1.odefunc.diffeq.")
    assert swish.activations[0].beta.item() == 3
    with pytest.raises(UserError, match="widths"):
        load_official(net, state, "chain.1.odefunc.diffeq.")
