"""The error of a flow's own trace estimator, against variances that are known."""

from __future__ import annotations

import math

import pytest
import torch
from judge_subjects import Density, Field, Rows, Scale
from oracles import F64, Linear, Quadratic, SmallVelocity, with_spectrum

from flowzoo.continuous import Continuous
from flowzoo.errors import UserError
from flowzoo.field import Gradient, Velocity
from flowzoo.flow import Chain
from flowzoo.integrators import RK4
from flowzoo.judge import evaluate
from flowzoo.judge import solves as solves_module
from flowzoo.judge import traces as traces_module
from flowzoo.judge.traces import TraceError
from flowzoo.odeint import Dopri5
from flowzoo.traces import Exact, Hutchinson, HutchPlusPlus

A = 0.5 * torch.randn(5, 5, generator=torch.Generator().manual_seed(3), dtype=F64)
NAMES = {"trace-error", "log-prob-noise", "trace-products"}


def variance(a, noise="rademacher", samples=1):
    """Return that of Hutchinson's estimate: 2 |S|^2 / k, for signs without the diagonal of S."""
    s = 0.5 * (a + a.T)
    s = s - torch.diag(s.diagonal()) if noise == "rademacher" else s
    return 2 * s.square().sum().item() / samples


def linear(a=A, trace=None, steps=3, end=1.0, **numerics):
    return Continuous(Linear(a), RK4(steps), trace, end, **numerics)


def measured(flow, x, seed=0, **options):
    return evaluate(flow, Rows(x), metrics=[TraceError(**options)], seed=seed)


def assert_holds(measure, expected):
    assert abs(measure.value - expected) <= measure.error
    assert measure.error < 0.2 * expected


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("end", [1.0, 0.3])
def test_hutchinson_has_the_error_of_theory(noise, samples, end, places):
    """The noise of a log-density grows with the time, for the same error per unit time."""
    flow = linear(trace=Hutchinson(noise, samples), end=end)
    found = measured(flow, places(1000, 5))
    assert found.keys() == NAMES
    sigma = variance(A, noise, samples) ** 0.5
    assert_holds(found["trace-error"], sigma)
    assert_holds(found["log-prob-noise"], end * sigma)
    assert found["trace-error"].unit == "nats per unit time"
    relative = found["trace-error"].value / abs(A.trace().item())
    assert found["trace-error"].parts["relative"] == pytest.approx(relative)
    count = found["trace-products"]
    assert (count.value, count.error, count.unit, count.better) == (samples, None, "products", None)


def test_redrawn_probes_change_the_noise_alone(places):
    """RK4 weighs stages 1:2:2:1, so m steps of new probes divide the variance by 18 m / 5."""
    x, sigma = places(1000, 5), variance(A) ** 0.5
    found = measured(linear(trace=Hutchinson(redraw="stage"), steps=5), x)
    assert_holds(found["trace-error"], sigma)
    assert_holds(found["log-prob-noise"], sigma / 18**0.5)


class Knowing(Velocity):
    """v = A x with the trace in closed form."""

    def __init__(self, a):
        super().__init__()
        self.inner = Linear(a)
        self.dim = self.inner.dim

    def forward(self, t, x, context=None):
        return self.inner(t, x)

    def at(self, t, x, context=None):
        at = super().at(t, x, context)
        at.jacobian.trace = lambda: self.inner.a.trace().expand(len(x))
        return at


@pytest.mark.parametrize(
    ("velocity", "trace", "products"),
    [(Linear, Exact(), 5), (Knowing, Exact(), 0), (Linear, Hutchinson(samples=7), 5),
     (Linear, Hutchinson("gaussian", 5), 5), (Linear, HutchPlusPlus(samples=6), 5)],
)  # fmt: skip
def test_an_exact_trace_has_no_error(velocity, trace, products, places, monkeypatch):
    if isinstance(trace, Exact):  # nothing is solved to find that nothing is random
        monkeypatch.setattr(traces_module, "solve", None)
    found = measured(Continuous(velocity(A), RK4(3), trace), places(50, 5))
    assert found["trace-products"].value == products
    for name in ("trace-error", "log-prob-noise"):
        assert found[name].value < 1e-13
        assert found[name].error < 1e-13


def test_hutch_plus_plus_has_the_smaller_error_on_a_decaying_spectrum(places):
    s = with_spectrum(torch.arange(1, 13) ** -2.0)[0]
    flow, x = Continuous(Gradient(Quadratic(s)), RK4(2)), places(400, 12)
    ours, theirs = (
        measured(flow.with_numerics(trace=t(samples=6)), x) for t in (HutchPlusPlus, Hutchinson)
    )
    assert ours["trace-products"].value == theirs["trace-products"].value == 6
    for name in ("trace-error", "log-prob-noise"):
        assert ours[name].value + ours[name].error < 0.5 * theirs[name].value


def test_it_looks_along_the_trajectory(places):
    """dx/dt = -2 t x^2: x_t = x / (1 + t^2 x), and J = -4 t diag(x_t), 2 |J|^2 for Gaussians."""
    x = 0.2 + places(2000, 3).square()
    flow = Continuous(Field(lambda t, x: -2 * t * x.square(), 3), Dopri5(), Hutchinson("gaussian"))
    for times in (1, 4):
        t = ((torch.arange(times) + 0.5) / times)[:, None]
        slopes = 4 * t * x[:, None] / (1 + t.square() * x[:, None])
        expected = 2 * slopes.square().sum(-1).mean().item()
        found = measured(flow, x, times=times, subsample=2000)["trace-error"]
        assert_holds(found, expected**0.5)
        exact = slopes.sum(-1).square().mean().item()
        assert found.parts["relative"] == pytest.approx(found.value / exact**0.5, rel=1e-4)


def test_the_error_of_the_error_holds_the_truth(places):
    truth = variance(A) ** 0.5
    for name in ("trace-error", "log-prob-noise"):
        held = 0
        for seed in range(40):
            found = measured(linear(trace=Hutchinson()), places(200, 5), seed)[name]
            held += abs(found.value - truth) < found.error
        assert held >= 38


def test_a_chain_is_averaged_over_its_time(places):
    """Two ODEs of different lengths, with a map in closed form between them."""
    second = with_spectrum([1.0, -1.0, 0.5, 0.2, 0.1])[0]
    blocks = [linear(trace=Hutchinson("gaussian", 2), end=0.5), Scale(5),
              linear(second, Hutchinson("gaussian"), end=2.0)]  # fmt: skip
    found = measured(Chain([Chain(blocks[:2]), blocks[2]]), places(1000, 5))
    one, other = variance(A, "gaussian", 2), variance(second, "gaussian")
    assert_holds(found["trace-error"], ((0.5 * one + 2 * other) / 2.5) ** 0.5)
    assert_holds(found["log-prob-noise"], (0.25 * one + 4 * other) ** 0.5)
    assert found["trace-products"].value == 1.5


def test_later_blocks_are_looked_at_where_the_points_have_come(places):
    """The first block halves the points, and dx/dt = -x^2 has them as its start."""
    x = 0.2 + places(2000, 3).square()
    own = Continuous(Field(lambda t, x: -x.square(), 3), Dopri5(), Hutchinson("gaussian"))
    halved = {
        "map": Scale(3),
        "ODE": Continuous(Linear(-math.log(2) * torch.eye(3, dtype=F64)), RK4(3)),
    }
    for name, block in halved.items():
        found = measured(Chain([block, own]), x, times=1, subsample=2000)["trace-error"]
        there = 0.5 * x / (1 + 0.25 * x)
        whole = 8 * there.square().sum(-1).mean().item()
        expected = whole if name == "map" else whole / 2  # the exact block takes half of the time
        assert_holds(found, expected**0.5)


def test_flows_without_an_ode_get_nothing(places):
    x = places(20, 2)
    for flow in (Scale(2), Density(2), Chain([Scale(2), Scale(2)])):
        assert measured(flow, x) == {}


def test_a_solver_of_its_own_that_gives_up_leaves_the_noise_out(places):
    own = Dopri5(1e-12, 1e-12, max_steps=1)
    found = measured(Continuous(Linear(A), own, Hutchinson()), places(300, 5))
    assert found.keys() == NAMES - {"log-prob-noise"}
    assert_holds(found["trace-error"], variance(A) ** 0.5)


def test_without_a_divergence_there_is_no_relative_error(places):
    skew = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 2.0], [0.0, 0.0, 0.0]], dtype=F64)
    found = measured(linear(skew, Hutchinson()), places(500, 3))["trace-error"]
    assert "relative" not in found.parts
    assert_holds(found, variance(skew) ** 0.5)


class Conditioned(Linear):
    """v = c A x with a context c for each point, whose error is then |c| sigma."""

    context_dim = 1

    def forward(self, t, x, context=None):
        return context * super().forward(t, x)


class Still(Linear):
    """v = 0, and no context is wanted."""

    def __init__(self, dim):
        super().__init__(torch.zeros(dim, dim, dtype=F64))

    def forward(self, t, x, context=None):
        assert context is None
        return super().forward(t, x)


def test_contexts_are_those_of_the_points(places):
    """A random part of them is looked at."""
    context = torch.linspace(0, 1, 1500, dtype=F64)[:, None]
    expected = (variance(A) * context.square().mean().item()) ** 0.5
    rows = Rows(places(1500, 5), test_context=context)
    one = Continuous(Conditioned(A), RK4(3), Hutchinson())
    for flow in (one, Chain([Continuous(Still(5), RK4(1)), one])):
        found = evaluate(flow, rows, metrics=[TraceError(subsample=1000)])
        whole = expected if flow is one else expected / 2**0.5
        assert_holds(found["trace-error"], whole)
        assert_holds(found["log-prob-noise"], expected)


class Off(Exact):
    """A tenth too much."""

    def __call__(self, a, probes, fn=None):
        return 1.1 * super().__call__(a, probes, fn)


def test_pieces_make_no_difference_and_a_bias_is_an_error(places, monkeypatch):
    flow, x = Continuous(SmallVelocity(3), RK4(2), Off()), places(25, 3)
    found = [measured(flow, x)]
    for module in (traces_module, solves_module):
        monkeypatch.setattr(module, "piece", lambda dim: 4)
    found.append(measured(flow, x))
    whole, pieces = (each["trace-error"] for each in found)
    assert pieces.value == pytest.approx(whole.value, rel=1e-4)
    assert whole.parts["relative"] == pytest.approx(0.1)
    assert found[0]["log-prob-noise"].value == 0


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="at least 1 time"):
        TraceError(times=0)
    with pytest.raises(UserError, match="at least 2 points"):
        TraceError(subsample=1)
