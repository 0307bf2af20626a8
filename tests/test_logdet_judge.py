"""What the judge says of log-determinants: their truncation, and that no ODE was solved."""

from __future__ import annotations

import pytest
import torch
from judge_subjects import Rows
from oracles import F64, Matrix, SmallVelocity, standard_normal, with_spectrum
from torch import nn

from flowzoo.continuous import Continuous
from flowzoo.flow import Chain, Encoded, Flow
from flowzoo.judge import Subject, evaluate
from flowzoo.judge import subject as subject_module
from flowzoo.judge.likelihood import KL, NLL
from flowzoo.judge.measure import quantile
from flowzoo.judge.numerics import JudgeTrace
from flowzoo.traces import Exact


class Linear(Flow):
    """z = S x for a positive definite S, with log det S by a trace.

    Arguments:
        s: S (d, d).
        floor: A lower bound of its spectrum that the map knows, or None.
    """

    def __init__(self, s, floor, trace=None):
        super().__init__()
        self.dim, self.floor = len(s), floor
        self.s = nn.Parameter(s.clone())
        self.trace = Exact() if trace is None else trace

    def encode(self, x, running=(), context=None, generator=None):
        self.requires(running)
        a = Matrix(self.s.expand(len(x), -1, -1), True)
        a.floor = self.floor
        ladj = self.trace(a, self.trace.probes(x, generator), torch.log)
        return Encoded(x @ self.s, ladj, x.new_zeros(len(x), 0))

    def decode(self, z, context=None):
        return torch.linalg.solve(self.s, z.mT).mT

    def with_numerics(self, integrator=None, trace=None):
        return Linear(self.s.detach(), self.floor, self.trace if trace is None else trace)

    def exact(self, x):
        s = self.s.detach()
        return standard_normal(x @ s) + torch.linalg.slogdet(s)[1]


STIFF = torch.logspace(-1, 1.5, 12, dtype=F64)


@pytest.fixture
def estimated(monkeypatch):
    """Take log-determinants by SLQ from 4 dimensions on, in a few steps."""
    monkeypatch.setattr(
        subject_module, "JudgeTrace", lambda: JudgeTrace(dense=3, samples=4, steps=4)
    )


def subject_of(floor, places, n=400):
    flow, x = Linear(with_spectrum(STIFF)[0], floor), places(n, 12)
    return flow, Rows(x @ torch.linalg.inv(flow.s.detach()), log_prob=flow.exact)


@pytest.mark.usefixtures("estimated")
@pytest.mark.parametrize("floor", [0.1, 0.05])
def test_truncation_covers_what_four_steps_leave_out(floor, places):
    flow, rows = subject_of(floor, places)
    measures = evaluate(flow, rows, metrics=[NLL(), KL()])
    nll, kl = measures["nll"], measures["kl"]
    # The flow is exact, so the KL is minus the over-estimate; the noise is not what explains it.
    over, noise = -kl.value, quantile(400) * kl.parts["trace"]
    assert over > 3 * noise > 0
    assert over - noise < kl.parts["truncation"] == nll.parts["truncation"]
    assert abs(kl.value) < kl.error
    truth = -flow.exact(rows.test).mean().item()
    assert nll.value < truth - noise
    assert truth < nll.value + nll.parts["truncation"] + noise
    assert nll.note == "SLQ"


@pytest.mark.usefixtures("estimated")
def test_truncation_without_a_floor_is_said_to_have_no_bound(places):
    flow, rows = subject_of(None, places, 50)
    nll = evaluate(flow, rows, metrics=[NLL()])["nll"]
    assert "truncation" not in nll.parts
    assert nll.note == "SLQ, whose truncation has no known bound"


def test_an_exact_log_determinant_has_neither_truncation_nor_an_ode(places):
    flow, rows = subject_of(0.1, places, 50)
    nll = evaluate(flow, rows, metrics=[NLL()])["nll"]
    assert "truncation" not in nll.parts
    assert nll.note == "exact log-determinant"
    subject = Subject(flow, rows)
    assert subject.finer == subject.truncation == 0
    assert nll.parts["solver"] < 1e-12


def test_a_flow_that_solves_an_ode_names_its_solver(places):
    ode = Continuous(SmallVelocity(12))
    linear, rows = subject_of(0.1, places, 20)
    for flow in (ode, Chain([linear, ode])):
        subject = Subject(flow, rows)
        assert subject.numerics == "exact trace, dopri5 at 1e-05"
        assert subject.finer == pytest.approx(1e-7)
    chain = Chain([linear, linear])
    assert Subject(chain, rows).numerics == "exact log-determinant"
