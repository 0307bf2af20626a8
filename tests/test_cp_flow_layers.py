"""Layers of convex networks: the first training batch, gates by a context, positive weights."""

from __future__ import annotations

import math

import pytest
import torch
from cp_flow_networks import CONDITIONED, NETWORKS, case, normal
from oracles import F64, gap
from torch import nn

from flowzoo.errors import Incompatible
from flowzoo_cp_flow.dense import DenseICNN
from flowzoo_cp_flow.film import FilmPICNN
from flowzoo_cp_flow.icnn import ICNN, InputAugmented
from flowzoo_cp_flow.layers import Positive
from flowzoo_cp_flow.picnn import PICNN
from flowzoo_cp_flow.residual import ResidualICNN


@pytest.fixture(params=list(NETWORKS))
def name(request):
    return request.param


# --- the first training batch --------------------------------------------------------------------


def test_the_first_batch_standardises_layer_after_layer(name):
    net, x, context = case(name, n=200)
    assert net.waits == ("bare" not in name)
    net.settle(x, context)
    assert not net.waits
    value = net(x, context)
    if "bare" not in name:
        assert abs(value.mean().item()) < 1e-10
        assert abs(value.std(correction=0).item() - 1) < 0.1, "up to 0.001 deviations"
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.settle(x, context)
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize("name", CONDITIONED)
def test_the_first_batch_standardises_the_features_of_the_context(name):
    net, x, context = case(name, n=200)
    context = 4 + 3 * context
    net.settle(x, context)
    h = net.features(context)
    inner = torch.where(h > 0, h, torch.log1p(h))  # ELU^-1
    assert inner.mean(0).abs().max() < 1e-10
    assert (inner.std(0, correction=0) - 1).abs().max() < 0.05


# --- contexts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONDITIONED)
def test_gates_start_at_one(name):
    """Then only shifts depend on the context; the published gates of hidden layers are lower."""
    cls, x, context, found = CONDITIONED[name], normal(5, 3), normal(5, 2), {}
    for gate in ("one", "published"):
        made, plain = (cls(3, 6, 3, context_dim=c, gate=gate).to(F64) for c in (2, 0))
        own = made.state_dict()
        plain.load_state_dict({key: own[key] for key in plain.state_dict()})
        with torch.no_grad():
            for p in made.shifts.parameters():
                nn.init.zeros_(p)
        found[gate] = gap(made(x, context), plain(x))
    assert found["one"] < 1e-14
    assert found["published"] > 1e-3


@pytest.mark.parametrize("name", CONDITIONED)
def test_a_context_matters_to_its_own_sample_alone(name):
    net, x, context = case(name)
    other = context.clone()
    other[2] += 1
    moved = (net.at(x, other).gradient - net.at(x, context).gradient).abs().amax(-1)
    assert moved[2] > 1e-3
    assert moved[[0, 1, 3, 4]].max() == 0
    bent = net.at(x, other).hessian.dense() - net.at(x, context).hessian.dense()
    assert bent[2].abs().max() > 1e-3


def test_a_context_of_another_width_is_refused(name):
    net, x, context = case(name)
    wrong = normal(5, 3)
    missing = None if net.context_dim else normal(5, 1)
    for given in (wrong, missing):
        width = 0 if given is None else given.shape[-1]
        said = rf"context of width {net.context_dim}, got {width}: set its context_dim"
        for call in (net, net.at, net.settle):
            with pytest.raises(Incompatible, match=said):
                call(x, given)
    assert net(x, context).shape == (5,)


@pytest.mark.parametrize("cls", [ICNN, InputAugmented, ResidualICNN, DenseICNN, PICNN, FilmPICNN])
def test_sizes_that_are_not_positive_are_refused(cls):
    for sizes in ((0, 4, 1), (2, 0, 1), (2, 4, 0)):
        with pytest.raises(Incompatible, match="must be at least 1, got 0"):
            cls(*sizes)


@pytest.mark.parametrize("cls", [InputAugmented, FilmPICNN])
def test_an_odd_width_has_no_half(cls):
    with pytest.raises(Incompatible, match="half of width 5 sees x alone"):
        cls(2, 5)


def test_within_a_residual_layer_the_activation_is_the_softplus():
    """F(x) written out for two layers."""
    net, x, _ = case("residual-even")
    inner, outer, last = (p.weight for p in (net.inner[0], *net.positive))
    first, between, second, end = net.norms[0], net.inner_norms[0], net.norms[1], net.norms[2]

    def normal_of(norm, a):
        return (a + norm.shift) * (norm.log_scale.exp() + 1e-3)

    def s(a):
        return a * torch.special.ndtr(a) + torch.exp(-a * a / 2) / math.tau**0.5 - math.tau**-0.5

    a = normal_of(first, net.entry(x))
    z = s(a) - a / 2
    within = torch.log1p(torch.exp(normal_of(between, z @ inner.t())))
    added = within @ outer.t() + net.positive[0].bias / 6
    z = s(normal_of(second, z + added + net.skips[0](x)))
    assert gap(net(x), normal_of(end, z @ last.t() + net.skips[1](x))[:, 0]) < 1e-13


# --- positive weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("positivity", ["softplus", "exp"])
def test_spread_weights_are_of_full_rank(positivity):
    torch.manual_seed(0)
    ratios = {}
    for start in ("uniform", "spread"):
        weight = Positive(64, 64, positivity=positivity, start=start).weight
        assert (weight > 0).all()
        values = torch.linalg.svdvals(weight)
        ratios[start] = (values[1] / values[0]).item()
    assert ratios["uniform"] < 0.03
    assert ratios["spread"] > 0.1


@pytest.mark.parametrize("positivity", ["softplus", "exp"])
def test_spread_weights_have_the_mean_of_the_published_ones(positivity):
    torch.manual_seed(0)
    layer = Positive(400, 400, positivity=positivity, start="spread").double()
    inputs = torch.ones(1, 400, dtype=F64)
    assert (inputs @ layer.weight.t()).mean().item() == pytest.approx(0.693, rel=0.03)


def test_positivity_by_the_exponential():
    layer = Positive(3, 2, bias=True, positivity="exp").double()
    assert gap(layer.weight, layer.raw.exp() / 3) < 1e-15
    assert gap(layer.offset(), layer.bias / 3) < 1e-15
    layer = Positive(3, 2, bias=False).double()
    assert gap(layer.weight, torch.log1p(layer.raw.exp()) / 3) < 1e-15
    assert layer.offset().abs().max() == 0


@pytest.mark.parametrize("cls", sorted({cls for cls, _ in NETWORKS.values()}, key=str))
def test_options_of_positive_weights_reach_all_layers(cls):
    plain, spread, exp = (
        cls(2, 32, 3, **options)
        for options in ({}, {"start": "spread"}, {"positivity": "exp", "start": "spread"})
    )
    layers = [[m for m in net.modules() if isinstance(m, Positive)] for net in (plain, spread, exp)]
    assert len(layers[0]) >= 3
    for a, b, c in zip(*layers, strict=True):
        assert a.raw.std() < 0.2
        assert b.raw.std() > 1
        assert gap(c.weight, c.raw.exp() / c.raw.shape[1]) < 1e-6
