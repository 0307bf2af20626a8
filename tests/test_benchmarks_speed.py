"""The speed benchmarks compare like with like, count what they say, and run."""

from __future__ import annotations

import importlib
import itertools
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from oracles import F64, gap
from ot_flow_oracles import SHAPES, normal, potential
from torch.utils.flop_counter import FlopCounterMode

from flowzoo.continuous import Continuous
from flowzoo.field import Gradient
from flowzoo.integrators import RK4
from flowzoo.objective import Batch, Likelihood
from flowzoo.odeint import Adjoint
from flowzoo.regularizers import HJB, Transport

# The scripts import each other by these names, as they do when they are run.
sys.path.append(str(Path(__file__).parent.parent / "benchmarks" / "speed"))
NAMES = "machine ot_flow ot_flow_jobs published_ot_flow ffjord ffjord_steps published_ffjord"
machine, ot_flow, jobs, published_ot_flow, ffjord, steps, published_ffjord = map(
    importlib.import_module, NAMES.split()
)

DOUBLE = machine.Machine("cpu", double=True)
TOY = replace(steps.SETTINGS["toy"], hidden=(6, 5, 4), batch=7, rtol=1e-9, atol=1e-9)


# --- OT-Flow -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "width", "layers"), SHAPES)
def test_published_ot_flow_gives_what_flowzoo_gives(dim, width, layers, places):
    phi, x = potential(dim, width, layers), places(6, dim)
    there, here = published_ot_flow.PublishedOTFlow(phi), Continuous(Gradient(phi), RK4(9))
    running = [Transport(), HJB(0.7)]
    out = here.encode(x, running)
    assert gap(there.encode(x, 9), torch.cat((out.z, out.ladj[:, None], out.costs), 1)) < 1e-12
    assert gap(there.generate(x, 9), here.decode(x)) < 1e-12


@pytest.mark.parametrize(("dim", "width", "layers"), SHAPES)
def test_published_ot_flow_has_the_gradients_of_flowzoo(dim, width, layers, places):
    phi, x = potential(dim, width, layers), places(6, dim)
    there, here = published_ot_flow.PublishedOTFlow(phi), Continuous(Gradient(phi), RK4(3))
    total = Likelihood(2.5, [Transport(), HJB(0.7)]).loss(here, Batch(x)).total
    published = there.objective(x, 2.5, 0.7, 3)
    weights = list(phi.parameters())
    assert gap(published, total) < 1e-12
    assert gap(*(torch.autograd.grad(loss, weights) for loss in (published, total))) < 1e-11


@pytest.mark.parametrize(
    ("name", "gradient", "trace"),
    [  # 4 m (d + 1) + 4 m^2 + 4 r (d + 1), and 2 m^2 d
        ("toy", 384 + 4096 + 36, 4096),
        ("miniboone", 45_056 + 262_144 + 1_760, 5_636_096),
        ("bsds300", 131_072 + 1_048_576 + 2_560, 33_030_144),
    ],
)
def test_operations_by_hand(name, gradient, trace):
    case = jobs.CASES[name]
    train, test = 4 * 5 * case.train_steps, 4 * 5 * case.test_steps
    assert case.operations("training", 5) == 3 * train * (gradient + trace)
    assert case.operations("evaluation", 5) == test * (gradient + trace)
    assert case.operations("generation", 5) == test * gradient


@pytest.mark.parametrize("dim", [3, 12])
def test_the_published_algorithm_multiplies_as_often_as_it_should(dim):
    """What is needed; q_1 twice more; A^T A formed and applied; all d columns, however few rows."""
    m, n, rank = 8, 5, min(10, dim + 1)
    case = jobs.Case(dim, m, (n,), 1, 1, 1, 1)
    flow = published_ot_flow.PublishedOTFlow(potential(dim, m, 2))
    with FlopCounterMode(display=False) as counter:
        flow.gradient_and_trace(normal(n, dim + 1))
    square = 2 * (dim + 1) ** 2
    columns = 2 * m**2 * max(0, dim - m)
    more = n * (4 * m**2 + square - 4 * rank * (dim + 1) + columns) + rank * square
    assert counter.get_total_flops() == case.operations("evaluation", n) // 4 + more


@pytest.mark.parametrize("job", jobs.JOBS)
def test_all_sides_do_the_same_job(job):
    case = jobs.Case(3, 6, (5,), 2, 3, 10, 2)
    sides = [side for side in jobs.SIDES.values() if not side.compiled]
    published, *others = (getattr(side.worker(case, 5, DOUBLE), job)() for side in sides)
    assert len(published) == {"training": 8, "evaluation": 3, "generation": 1}[job]
    assert len(others) == 2
    for found in others:
        machine.agree(found, published, job)


@pytest.mark.parametrize("backward", [False, True])
def test_velocity_and_trace_alone_agree(backward):
    for dim, width in ((3, 4), (6, 4)):
        both = ot_flow.point_jobs(dim, width, 5, DOUBLE, backward)
        machine.agree(both["flowzoo"](), both["published"](), "points")


# --- FFJORD --------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [True, False])
def test_published_ffjord_has_the_right_hand_side_of_flowzoo(exact, places):
    net, x, t, probes = TOY.net(DOUBLE), places(6, 2), torch.tensor(0.3, dtype=F64), normal(6, 2)
    field = published_ffjord.PublishedFFJORD(net, None if exact else probes)
    v, minus_trace = field(t, (x.clone(), x[:, 0]))
    jacobian = net.at(t, x).jacobian.dense()
    form = torch.einsum("ni,nij,nj->n", probes, jacobian, probes)
    assert gap(v, net(t, x)) < 1e-13
    assert gap(-minus_trace, jacobian.diagonal(0, 1, 2).sum(-1) if exact else form) < 1e-12


@pytest.mark.parametrize("exact", [True, False])
def test_all_steps_of_ffjord_have_the_same_gradient(exact):
    s = replace(TOY, exact=exact)
    net, x, compared = s.net(DOUBLE), s.points(DOUBLE, 0), ffjord.methods(s, steps=24)
    found = {name: steps.gradient(step, net, x, 3) for name, (step, _) in compared.items()}
    assert [name for name, (_, same) in compared.items() if same != exact] == ["rk4-exact"][exact:]
    exactly = found.pop("rk4-exact", None)
    published, counts = found["published"]
    for name, (slope, _) in found.items():
        assert gap(slope, published) < 1e-6, name
    assert exactly is None or gap(exactly[0], published) > 1e-3
    assert counts.forward % 6 == counts.backward % 6 == 2  # two to begin with, six for each step
    assert steps.counted(found["rk4-recompute"][1]) == "96 + 96"


def test_both_trainings_see_the_same_weights_batches_and_probes():
    s = replace(TOY, exact=False)
    tight = Adjoint(rtol=1e-9, atol=1e-9)
    compared = {"published": steps.published(s), "ours": steps.ours(s, tight)}
    runs = steps.train(compared, s, DOUBLE, 5, 1e-3)
    a, b = ([*run.net.parameters()] for run in runs.values())
    assert gap(a, b) < 3e-5  # Adam divides small gradients by their size, errors with them
    assert gap(a, [*s.net(DOUBLE).parameters()]) > 1e-3
    assert len(runs["published"].seconds) == len(runs["ours"].nfe) == 5


def test_the_last_quarter_counts():
    nfe = [steps.Evaluations(forward, 2 * forward) for forward in (1, 1, 1, 1, 1, 1, 20, 14)]
    run = steps.Trained(TOY.net(DOUBLE), [9.0] * 6 + [3.0, 4.0], nfe)
    assert run.ms == 3500
    assert run.evaluations == "20 + 40"


# --- measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clocked(machine.Machine):
    """A machine whose clock only its jobs move."""

    now = [0.0]  # noqa: RUF012

    def seconds(self):
        return self.now[0]

    def job(self, *durations):
        """Return a job that takes these times, the last one again and again."""
        left = itertools.chain(durations, itertools.repeat(durations[-1]))
        order = itertools.count()

        def run():
            self.now[0] += next(left)
            return next(order)

        return run


def test_the_median_leaves_out_the_first_run():
    clocked = Clocked()
    found = clocked.compare({"a": clocked.job(9, 1, 5, 2), "b": clocked.job(9, 1)}, repeat=3)
    assert (found["a"].ms, found["a"].runs, found["a"].first) == (2000, 3, 0)
    assert found["b"].ms == 1000


def test_a_slow_job_is_run_until_patience_ends():
    clocked = Clocked()
    slow, slower = clocked.job(30, 7), clocked.job(12)
    found = clocked.compare({"slow": slow, "slower": slower}, repeat=9, patience=15)
    assert (found["slow"].ms, found["slow"].runs) == (30_000, 1)  # its first run counts
    assert (found["slower"].ms, found["slower"].runs) == (12_000, 2)


def _allocates(megabytes, device):
    """Return a job that writes so many megabytes, after as many that are not its own."""
    (torch.ones(30_000_000, device=device) + 1).sum()
    return partial(torch.ones, megabytes * 10**6 // 4, device=device)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a peak cannot be forgotten")
def test_memory_is_what_the_job_adds():
    found = machine.Machine().memory(_allocates, 60, "cpu")
    assert 59e6 < found < 64e6


@pytest.mark.parametrize("found", [1 + 1e-8, float("nan")])
def test_sides_that_differ_are_not_compared(found):
    one = torch.ones(2, dtype=F64)
    machine.agree([one * (1 + 1e-10)], [one], "same")
    with pytest.raises(SystemExit, match="other: the two sides differ"):
        machine.agree([one, torch.tensor([1.0, found], dtype=F64)], [one, one], "other")


# --- the scripts ---------------------------------------------------------------------------------


def _run(script, arguments, monkeypatch, capsys):
    monkeypatch.setitem(machine.SIDE, "cpu", 16)
    monkeypatch.setattr(sys, "argv", ["script", *arguments.split()])
    script.main()
    return capsys.readouterr().out


def test_ot_flow_runs(monkeypatch, capsys):
    sizes = "--cases toy --batch 3 --points 2x3 --rows 4 --repeat 1"
    out = _run(ot_flow, f"{sizes} --sides flowzoo --no-memory", monkeypatch, capsys)
    assert "d=2 m=32 batch=3" in out
    for job in jobs.JOBS:
        assert f"| {job} " in out


def test_ffjord_runs(monkeypatch, capsys):
    sizes = "--batch 6 --width 3 --steps 2 --reference 4 --warm 1 --train 2 --test 20 --repeat 1"
    out = _run(ffjord, f"{sizes} --tables methods trained", monkeypatch, capsys)
    assert out.count("| rk4-recompute ") == 4  # two settings, two traces
