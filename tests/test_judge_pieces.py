"""How the judge solves many points: in pieces that fit in memory, and each solve once."""

from __future__ import annotations

import pytest
import torch
from judge_subjects import Field, Rows, gaussian, matching, optimal
from oracles import F64, Linear

from flowzoo.continuous import Continuous
from flowzoo.data.synthetic import Mixture
from flowzoo.integrators import RK4
from flowzoo.judge import Subject, evaluate
from flowzoo.judge import solves as solves_module
from flowzoo.judge.inverse import InverseError
from flowzoo.judge.likelihood import KL, NLL
from flowzoo.judge.numerics import piece
from flowzoo.judge.solves import pieces
from flowzoo.judge.trajectories import PathEnergy, Straightness, TransportCost
from flowzoo.judge.truth import DensityError, MapError
from flowzoo.traces import Hutchinson

MEMORY = "CUDA out of memory. Tried to allocate 2 GiB"


def test_pieces_change_the_result_by_no_more_than_the_solver_may(monkeypatch):
    """Adaptive steps depend on who shares the batch; fixed grids and closed forms do not."""
    dataset = Mixture(2, 4, scale=0.3, train=10, val=10, test=400)
    data, flow = dataset.load(), matching(dataset, integrator=RK4(5))
    solver = evaluate(flow, data, metrics=[NLL()])["nll"].parts["solver"]
    subject = Subject(flow, data)
    whole, own = subject.log_prob, subject.own(400)[1]
    monkeypatch.setattr(solves_module, "piece", lambda dim: 50)
    parted = Subject(flow, data)
    difference = whole - parted.log_prob
    assert 0 < difference.mean().abs() < solver < 1e-3
    again = parted.own(400)[1]
    torch.testing.assert_close(again.encoded.z, own.encoded.z, rtol=1e-12, atol=1e-12)
    assert len(parted.encoded.nfe) == 8


def test_each_piece_has_probes_of_its_own(monkeypatch):
    monkeypatch.setattr(solves_module, "piece", lambda dim: 10)
    a = torch.randn(6, 6, dtype=F64)
    flow = Continuous(Linear(a), RK4(2), Hutchinson())
    subject = Subject(flow, Rows(torch.ones(20, 6, dtype=F64)))
    first, second = subject.own(20)[1].encoded.ladj.split(10)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dim", [1, 2, 10, 43, 784, 10_000])
def test_pieces_fit_in_memory(dim):
    """The rows of an exact trace, dim for each point, through a layer of 1000 float32 units."""
    assert 16 <= piece(dim) <= 4096
    assert piece(dim) * dim * 1000 * 4 < 100e6 or piece(dim) == 16


def test_pieces_that_do_not_fit_in_memory_are_halved(monkeypatch):
    """What failed is tried again, nothing is lost, and fixed grids give the same."""
    dataset = gaussian(2)
    data, sizes = dataset.load(), []

    def tight(t, x):
        if len(x) > 60:
            raise RuntimeError(MEMORY)
        sizes.append(len(x))
        return dataset.oracle.velocity(t, x)

    short, ample = (Continuous(Field(fn, 2), RK4(2)) for fn in (tight, dataset.oracle.velocity))
    found, whole = (Subject(flow, data).own(400)[1] for flow in (short, ample))
    torch.testing.assert_close(found.log_prob, whole.log_prob, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.encoded.z, whole.encoded.z, rtol=1e-12, atol=1e-12)
    assert set(sizes) == {50}  # 400 halved until it fits


@pytest.mark.parametrize("size", [1, 5, 7, 64])
def test_pieces_are_all_rows_in_order_however_often_memory_runs_short(size):
    most, found = 10, []

    def one(rows):
        nonlocal most
        most = max(1, most - 1)
        if len(rows) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        assert not torch.is_grad_enabled()
        return rows

    found = torch.cat(list(pieces(one, 23, size, torch.device("cpu"))))
    assert torch.equal(found, torch.arange(23))


def test_other_errors_are_not_taken_for_a_shortage_of_memory():
    calls = []

    def one(rows):
        calls.append(len(rows))
        raise RuntimeError(
            "mat1 and mat2 shapes cannot be multiplied" if len(calls) > 2 else MEMORY
        )

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        list(pieces(one, 8, 8, torch.device("cpu")))
    assert calls == [8, 4, 2]

    def never(rows):
        raise RuntimeError(MEMORY)

    with pytest.raises(RuntimeError, match="out of memory"):
        list(pieces(never, 8, 8, torch.device("cpu")))


def test_nothing_is_solved_twice():
    """The metrics share one solve, one finer solve of 200 points, and one by the own numerics."""
    dataset = gaussian(2, test=2000)
    data, flow = dataset.load(), optimal(dataset, integrator=RK4(4))
    evaluate(flow, data, metrics=[NLL()])
    alone = flow.velocity.calls
    assert alone < 150
    sharing = [NLL(), KL(), TransportCost(), PathEnergy(), Straightness(), DensityError()]
    evaluate(flow, data, metrics=[*sharing, MapError()])
    assert flow.velocity.calls == 2 * alone
    evaluate(flow, data, metrics=[*sharing, MapError(), InverseError()])
    back = flow.velocity.calls - 3 * alone
    subject = Subject(flow, data)
    subject.back(1000)  # the whole solve, and the way back of 1000 points
    judged = flow.velocity.calls - 3 * alone - back - subject.encoded.nfe[0].forward
    assert back - judged == 16  # the own way back is new: 4 steps of 4 stages
    assert subject.again(200)[1] is subject.again(200)[1]
    assert subject.again(5000)[1] is subject.again(2000)[1]
    assert subject.samples(10) is subject.samples(10)
    assert not torch.equal(subject.samples(10), subject.samples(10, draw=1))
