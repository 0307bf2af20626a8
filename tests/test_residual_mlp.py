"""The residual network and Heun's method: formulas, time and context in every block, refusals."""

from __future__ import annotations

import pytest
import torch

from flowzoo.errors import Incompatible, UserError
from flowzoo.integrators import Heun
from flowzoo.networks import ResidualMLP

F64 = torch.float64


def close(got, want, atol=1e-13):
    torch.testing.assert_close(got, want, rtol=0, atol=atol)


def test_the_network_is_the_formula(places):
    net = ResidualMLP(3, 6, 2, "tanh", "plain", context_dim=2).to(F64)
    x, context, t = places(), places(d=2, seed=1), torch.linspace(0, 1, 5, dtype=F64)
    given = torch.cat([t[:, None], context], 1)
    h = torch.cat([x, given], 1) @ net.first.weight.T + net.first.bias
    for inner, outer in zip(net.inner, net.outer, strict=True):
        seen = torch.cat([h.tanh(), given], 1)
        h = h + (seen @ inner.weight.T + inner.bias).tanh() @ outer.weight.T + outer.bias
    close(net(t, x, context), h.tanh() @ net.last.weight.T + net.last.bias)


def test_a_time_for_all_is_that_time_for_each(places):
    net, x, t = ResidualMLP(3, 6, 2).to(F64), places(), torch.tensor(0.4, dtype=F64)
    close(net(t, x), net(t.expand(5), x))


def test_every_block_sees_time_and_context(places):
    """With the first layer blind to all but x, the output still depends on both."""
    net, x, context = ResidualMLP(3, 6, 1, context_dim=2).to(F64), places(), places(d=2, seed=1)
    with torch.no_grad():
        net.first.weight[:, 3:] = 0
    one, two = (net(torch.tensor(t, dtype=F64), x, context) for t in (0.2, 0.7))
    assert (one - two).abs().max() > 1e-3
    assert (one - net(torch.tensor(0.2, dtype=F64), x, context + 1)).abs().max() > 1e-3


def test_every_weight_gets_a_gradient(places):
    net, x = ResidualMLP(3, 6, 2).to(F64), places()
    at = net.at(torch.linspace(0, 1, 5, dtype=F64), x)
    at.jacobian.dense().square().sum().add(at.v.square().sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_what_makes_no_sense_is_refused():
    for width, blocks in ((0, 1), (4, -1)):
        with pytest.raises(Incompatible, match="width must be at least 1"):
            ResidualMLP(2, width, blocks)
    with pytest.raises(UserError, match="unknown activation 'relu'"):
        ResidualMLP(2, activation="relu")
    with pytest.raises(UserError, match="unknown time features 'none'"):
        ResidualMLP(2, time="none")


def test_heun_is_the_trapezoidal_rule_and_the_second_order_of_the_exponential():
    x = torch.ones(1, 1, dtype=F64)

    def only_time(t, state, stage=0):
        return (t.square() * torch.ones_like(state[0]),)

    def linear(t, state, stage=0):
        return (-0.8 * state[0],)

    found = Heun(2).solve(only_time, (x,), 0.0, 1.0)
    close(found.state[0], x + 0.375)  # h (f(0) + 2 f(1/2) + f(1)) / 2 for f = t^2
    assert found.nfe.forward == 4
    close(Heun(2).solve(linear, (x,), 0.0, 1.0).state[0], x * (1 - 0.4 + 0.08) ** 2)
