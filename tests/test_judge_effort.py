"""What the judge counts and times: evaluations of the field, points per second."""

from __future__ import annotations

import pytest
import torch
from judge_subjects import Density, Field, Rows, Scale, gaussian, matching, optimal
from oracles import F64, Linear

from flowzoo.continuous import Continuous
from flowzoo.errors import Diverged, Incompatible, UserError
from flowzoo.flow import Chain, Encoded, Flow
from flowzoo.integrators import RK4, Evaluations
from flowzoo.judge import effort, evaluate
from flowzoo.judge import solves as solves_module
from flowzoo.judge.effort import NFE, Throughput
from flowzoo.odeint import Dopri5

GAUSSIAN = gaussian(2, condition=30.0)
DATA = GAUSSIAN.load()


class Counted(Flow):
    """A chain of two solves that reports how many points were sent: pieces are told apart."""

    def __init__(self, dim, factor=1, solves=2):
        super().__init__()
        self.dim, self.factor, self.solves = dim, factor, solves

    def encode(self, x, running=(), context=None, generator=None):
        nfe = tuple(Evaluations(forward=self.factor * len(x) * 10**i) for i in range(self.solves))
        return Encoded(x, x.new_zeros(len(x)), x.new_zeros(len(x), len(running)), nfe)

    def decode(self, z, context=None):
        return z

    def with_numerics(self, integrator=None, trace=None):
        return self if integrator is None else Counted(self.dim, 3, self.solves)


# --- evaluations ---------------------------------------------------------------------------------


def test_the_judges_evaluations_and_the_flows_own_are_counted():
    flow = matching(GAUSSIAN, integrator=RK4(3))
    found = evaluate(flow, DATA, metrics=[NFE()])["nfe"]
    assert found.parts == {"own": 12}
    with torch.no_grad():
        judge = flow.with_numerics(Dopri5(1e-5, 1e-5)).encode(DATA.test)
    assert found.value == judge.nfe[0].forward > 30
    assert (found.unit, found.better, found.error) == ("evaluations", "lower", None)
    tighter = evaluate(flow, DATA, metrics=[NFE()], tolerance=1e-8)["nfe"]
    assert tighter.value > 2 * found.value
    assert tighter.parts == found.parts


def test_the_blocks_of_a_chain_add_up():
    blocks = [matching(GAUSSIAN, integrator=RK4(steps)) for steps in (1, 2)]
    found = evaluate(Chain(blocks), DATA, metrics=[NFE()])["nfe"]
    alone = evaluate(blocks[0], DATA, metrics=[NFE()])["nfe"]
    assert found.parts == {"own": 4 + 8}
    assert found.value > alone.value + 10


def test_pieces_count_by_their_points(monkeypatch):
    """Pieces of 4, 4 and 2 points: (4 * 4 + 4 * 4 + 2 * 2) / 10 of each of the two solves."""
    for module in (effort, solves_module):
        monkeypatch.setattr(module, "piece", lambda dim: 4)
    found = evaluate(Counted(2), Rows(torch.zeros(10, 2, dtype=F64)), metrics=[NFE()])["nfe"]
    assert found.value == pytest.approx(3 * 11 * 3.6)
    assert found.parts["own"] == pytest.approx(11 * 3.6)


def test_pieces_that_memory_has_halved_are_averaged(monkeypatch):
    monkeypatch.setattr(solves_module, "piece", lambda dim: 2)
    found = evaluate(Counted(2), Rows(torch.zeros(10, 2, dtype=F64)), metrics=[NFE()])["nfe"]
    assert found.value == pytest.approx(3 * 11 * 2)


def test_nothing_is_said_where_nothing_is_counted():
    assert evaluate(Scale(2), DATA, metrics=[NFE()]) == {}
    assert evaluate(Counted(2, solves=0), DATA, metrics=[NFE()]) == {}
    gave_up = Continuous(Linear(-torch.eye(2, dtype=F64)), Dopri5(1e-12, 1e-12, max_steps=1))
    assert evaluate(gave_up, DATA, metrics=[NFE()])["nfe"].parts == {}


# --- points per second ---------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock on which a call takes as long as the flow under test adds to it."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(effort, "time", clock)
    return clock


class Timed(Scale):
    """Takes the given seconds for each call in turn, and notes what it was asked for."""

    def __init__(self, dim, clock, seconds):
        super().__init__(dim)
        self.clock, self.seconds, self.asked = clock, iter(seconds), []

    def encode(self, x, running=(), context=None, generator=None):
        self.asked.append(("score", len(x), torch.is_grad_enabled()))
        self.clock.now += next(self.seconds)
        return super().encode(x)

    def sample(self, n, context=None, generator=None):
        self.asked.append(("sample", n, torch.is_grad_enabled()))
        self.clock.now += next(self.seconds)
        return super().sample(n, context, generator)


def test_rates_are_medians_after_a_warm_up(clock):
    flow = Timed(2, clock, [9.0, 1.0, 5.0, 2.0, 9.0, 0.5, 0.25, 0.1])
    measures = evaluate(flow, DATA, metrics=[Throughput(points=1000, repeats=3)])
    assert measures.keys() == {"sampling-rate", "density-rate"}
    drawn, scored = measures["sampling-rate"], measures["density-rate"]
    assert drawn.value == pytest.approx(1000 / 2)
    assert drawn.error == pytest.approx(1000 - 500)  # to the fastest, further than the slowest
    assert scored.value == pytest.approx(1000 / 0.25)
    assert scored.error == pytest.approx(10_000 - 4000)
    assert (drawn.unit, drawn.better) == ("points/s", "higher")
    assert "1 thread" in drawn.note
    assert flow.asked == 4 * [("sample", 1000, False)] + 4 * [("score", 1000, False)]


def test_points_are_scored_in_pieces_that_fit_in_memory(clock):
    flow = Timed(64, clock, [1.0] * 100)
    rows = Rows(torch.randn(20, 64, dtype=F64))  # fewer than asked for: they are repeated
    measures = evaluate(flow, rows, metrics=[Throughput(points=600, repeats=2)])
    scored = [n for what, n, _ in flow.asked if what == "score"]
    assert scored == 3 * [256, 256, 88]
    assert measures["density-rate"].value == pytest.approx(600 / 3)
    assert "256 points at once" in measures["density-rate"].note
    assert "600 points at once" in measures["sampling-rate"].note


def test_rates_are_those_of_the_flows_own_numerics():
    flow = optimal(GAUSSIAN, integrator=RK4(2))
    evaluate(flow, DATA, metrics=[Throughput(points=50, repeats=2)])
    assert flow.velocity.calls == 2 * 3 * 8  # there and back, a warm-up and two repeats


def test_what_cannot_be_timed_is_left_out():
    class Silent(Density):
        def sample(self, n, context=None, generator=None):
            raise Incompatible("it does not sample")

    short = Throughput(points=10, repeats=2)
    assert evaluate(Density(2), DATA, metrics=[short]).keys() == {"sampling-rate", "density-rate"}
    assert evaluate(Silent(2), DATA, metrics=[short]).keys() == {"density-rate"}

    class Stiff(Density):
        def log_prob(self, x, context=None, generator=None):
            raise Diverged("gave up")

    assert evaluate(Stiff(2), DATA, metrics=[short]).keys() == {"sampling-rate"}


def test_conditional_flows_are_timed_with_their_context(places):
    seen = []

    class Asked(Field):
        context_dim = 1

        def forward(self, t, x, context=None):
            seen.append(tuple(context.shape))
            return -x * context

    flow = Continuous(Asked(None, 2), RK4(1))
    rows = Rows(places(7, 2), places(7, 1, seed=1))
    measures = evaluate(flow, rows, metrics=[Throughput(points=12, repeats=2), NFE()])
    assert {"sampling-rate", "density-rate", "nfe"} == measures.keys()
    assert set(seen) == {(12, 1), (7, 1), (1, 1)}


def test_wrong_options_are_met_with_a_sentence():
    with pytest.raises(UserError, match="throughput needs at least 1 point, got 0"):
        Throughput(points=0)
    with pytest.raises(UserError, match="throughput needs at least 2 repeats, got 1"):
        Throughput(repeats=1)
    assert "repeatable" in Throughput.expected_failures
