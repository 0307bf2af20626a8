"""The general-purpose networks: values, derivatives, time features, refusals."""

from __future__ import annotations

import math
import typing

import pytest
import torch

from flowzoo.errors import Incompatible, UserError
from flowzoo.field import Gradient
from flowzoo.networks import MLP, Activation, Fourier, PotentialMLP, Smooth, TimeFeatures

F64 = torch.float64
ACTIVATIONS, SMOOTH = typing.get_args(Activation), typing.get_args(Smooth)
TIMES = typing.get_args(TimeFeatures)


def velocity(activation="silu", time="plain", context_dim=0, dim=3):
    return MLP(dim, (7, 5), activation, time, 3, context_dim).to(F64)


def potential(activation="silu", time="plain", context_dim=0, dim=3):
    return PotentialMLP(dim, (7, 5), activation, time, 3, context_dim).to(F64)


def times(n, seed=5):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=F64)


def by_differences(f, x, h=1e-5):
    """Return df/dx as (n, ..., d) by central differences of a function of rows."""
    steps = torch.eye(x.shape[-1], dtype=x.dtype) * h
    return torch.stack([(f(x + e) - f(x - e)) / (2 * h) for e in steps], -1)


def test_the_mlp_is_the_formula(places):
    net, x, t = velocity("tanh"), places(), times(5)
    first, _, second, _, last = net.net
    rows = torch.cat([x, t[:, None]], 1)
    hidden = (rows @ first.weight.T + first.bias).tanh()
    hidden = (hidden @ second.weight.T + second.bias).tanh()
    torch.testing.assert_close(net(t, x), hidden @ last.weight.T + last.bias, rtol=0, atol=1e-14)


def test_without_hidden_layers_the_velocity_is_affine(places):
    net, x, t = MLP(3, ()).to(F64), places(), times(5)
    jacobian = net.at(t, x).jacobian.dense()
    torch.testing.assert_close(jacobian, net.net[0].weight[:, :3].expand(5, 3, 3))


def test_fourier_features_are_cosines_and_sines_of_multiples_of_pi():
    got = Fourier(3).to(F64)(torch.tensor([[0.3]], dtype=F64))[0]
    want = [math.cos(k * math.pi * 0.3) for k in (1, 2, 3)]
    want += [math.sin(k * math.pi * 0.3) for k in (1, 2, 3)]
    torch.testing.assert_close(got, torch.tensor(want, dtype=F64), rtol=0, atol=1e-15)


def test_fourier_features_tell_both_ends_apart():
    ends = Fourier(4).to(F64)(torch.tensor([[0.0], [1.0]], dtype=F64))
    assert (ends[0] - ends[1]).abs().max() > 1


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("make", [velocity, potential])
def test_without_time_features_all_times_are_the_same(make, context_dim, places):
    net, x = make(time="none", context_dim=context_dim), places()
    context = places(d=context_dim, seed=1) if context_dim else None
    assert net.net[0].in_features == 3 + context_dim
    assert torch.equal(net(times(5), x, context), net(times(5, seed=6), x, context))
    timed = make(context_dim=context_dim)
    assert not torch.equal(timed(times(5), x, context), timed(times(5, seed=6), x, context))


@pytest.mark.parametrize("hidden", [(7, 5), ()])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("rows", [True, False])
def test_without_time_features_the_potential_does_not_change(hidden, grad, rows, places):
    net, x = PotentialMLP(3, hidden, time="none").to(F64), places()
    t = times(5) if rows else times(1)[0]
    with torch.set_grad_enabled(grad):
        point = Gradient(net, scale=2.0).at(t, x)
    assert torch.equal(point.phi_t, torch.zeros(5, dtype=F64))
    assert point.v.abs().max() > 0
    assert point.v.requires_grad == grad


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("make", [velocity, potential])
def test_a_time_for_all_is_that_time_for_each(make, time, context_dim, places):
    net, x = make(time=time, context_dim=context_dim), places()
    context = places(d=context_dim, seed=1) if context_dim else None
    t = torch.tensor(0.4, dtype=F64)
    torch.testing.assert_close(net(t, x, context), net(t.expand(5), x, context))


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_jacobian_of_the_velocity(activation, time, places):
    net, x, t = velocity(activation, time), places(), times(5)
    with torch.no_grad():
        want = by_differences(lambda y: net(t, y), x)
        point = net.at(t, x)
        torch.testing.assert_close(point.v, net(t, x))
        torch.testing.assert_close(point.jacobian.dense(), want, rtol=0, atol=1e-8)


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("activation", SMOOTH)
def test_the_derivatives_of_the_potential(activation, time, places):
    net, x, t = potential(activation, time), places(), times(5)
    with torch.no_grad():
        point = net.at(t, x)
        gradient = by_differences(lambda y: net(t, y), x)
        hessian = by_differences(lambda y: net.gradient(t, y), x)
        phi_t = (net(t + 1e-5, x) - net(t - 1e-5, x)) / 2e-5
    torch.testing.assert_close(point.gradient, gradient, rtol=0, atol=1e-8)
    torch.testing.assert_close(point.hessian.dense(), hessian, rtol=0, atol=1e-8)
    torch.testing.assert_close(point.phi_t, phi_t, rtol=0, atol=1e-8)


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize(
    "make", [velocity, lambda activation, **k: Gradient(potential(activation, **k))]
)
def test_the_divergence_is_differentiable_in_every_weight(make, activation, places):
    net, x, t = make(activation, context_dim=2), places(), times(5)
    context = places(d=2, seed=1)

    def loss():
        point = net.at(t, x, context)
        divergence = point.jacobian.dense().diagonal(dim1=1, dim2=2).sum(-1)
        return (divergence.square() + point.v.square().sum(-1)).sum()

    loss().backward()
    for name, p in net.named_parameters():
        direction = torch.randn(p.shape, dtype=F64, generator=torch.Generator().manual_seed(3))
        values = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                p.add_(h * direction)
            values.append(loss().item())
            with torch.no_grad():
                p.sub_(h * direction)
        if name.endswith("net.4.bias") and p.numel() == 1:
            assert p.grad is None  # a potential's constant moves nothing
            continue
        want = (values[0] - values[1]) / 2e-5
        assert p.grad.abs().max() > 0, name
        assert (p.grad * direction).sum().item() == pytest.approx(want, rel=1e-6, abs=1e-7), name


@pytest.mark.parametrize("make", [velocity, potential])
def test_context_matters_and_is_checked(make, places):
    net, x, t = make(context_dim=2), places(), times(5)
    with torch.no_grad():
        difference = net(t, x, places(d=2, seed=1)) - net(t, x, places(d=2, seed=2))
    assert difference.abs().min() > 0
    for context in (None, places(d=3)):
        with pytest.raises(Incompatible, match="context of width 2 and got width"):
            net(t, x, context)
    with pytest.raises(Incompatible, match="set its context_dim to 1"):
        make()(t, x, places(d=1))


@pytest.mark.parametrize("make", [velocity, potential])
@pytest.mark.parametrize("time", TIMES)
def test_precision_follows_the_input(make, time, places):
    net, x, t = make(time=time), places(), times(5)
    assert net(t, x).dtype == F64
    exact, rounded = net(t, x), net.float()(t.float(), x.float())
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.to(F64), exact, rtol=0, atol=1e-5)


def test_what_is_refused():
    with pytest.raises(UserError, match="unknown activation 'sillu'; did you mean 'silu'"):
        MLP(2, activation="sillu")
    with pytest.raises(UserError, match="unknown activation 'relu'"):
        PotentialMLP(2, activation="relu")
    with pytest.raises(UserError, match="unknown time features 'fourrier'; did you mean 'fourier'"):
        MLP(2, time="fourrier")
    with pytest.raises(Incompatible, match="hidden width must be at least 1"):
        MLP(2, hidden=(8, 0))
    with pytest.raises(Incompatible, match="frequencies must be at least 1"):
        MLP(2, time="fourier", frequencies=0)
