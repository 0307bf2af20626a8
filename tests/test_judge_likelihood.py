"""Likelihoods by a flow's own numerics, in bits per dimension, and of what is only a density."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from judge_subjects import Density, Rows, Scale, gaussian, matching
from oracles import F64, Linear

from flowzoo.continuous import Continuous
from flowzoo.errors import Diverged, Incompatible
from flowzoo.integrators import RK1, RK4
from flowzoo.judge import Subject, evaluate
from flowzoo.judge.effort import NFE
from flowzoo.judge.inverse import InverseError
from flowzoo.judge.likelihood import KL, NLL, BitsPerDim
from flowzoo.judge.trajectories import PathEnergy, Straightness, TransportCost
from flowzoo.judge.truth import DensityError, MapError, VelocityError
from flowzoo.odeint import Dopri5
from flowzoo.traces import Hutchinson

GAUSSIAN = gaussian(2)
DATA = GAUSSIAN.load()

# --- the flow's own numerics ---------------------------------------------------------------------


@pytest.mark.parametrize("integrator", [RK4(1), RK4(2), RK1(3)], ids=["rk4-1", "rk4-2", "rk1-3"])
def test_the_own_nll_is_that_of_a_coarse_solver(integrator):
    """For v = -x the steps multiply by R(-h), so the flow's own density is a closed form."""
    d, a = 2, -1.0
    flow = Continuous(Linear(a * torch.eye(d, dtype=F64)), integrator)
    measures = evaluate(flow, DATA, metrics=[NLL()])
    judge, own = measures["nll"], measures["nll-own"]
    h = a / integrator.steps
    growth = sum(h**k / math.factorial(k) for k in range(integrator.tableau.order + 1))
    z = growth**integrator.steps * DATA.test
    truth = -(oracles.standard_normal(z) + a * d)  # ladj is a d on every grid
    assert own.value == pytest.approx(truth.mean().item(), rel=1e-9)
    square = DATA.test.square().sum(-1)
    expected = 0.5 * (growth ** (2 * integrator.steps) - math.exp(2 * a)) * square
    assert abs(expected.mean()) > 1e-5
    gap = own.parts["own_minus_judge"]
    assert gap == pytest.approx(expected.mean().item(), rel=0.02, abs=3e-6)
    assert gap == pytest.approx(own.value - judge.value, rel=1e-6)
    error = expected.std().item() / 400**0.5
    assert own.parts["own_minus_judge_error"] == pytest.approx(error, rel=0.02, abs=3e-6)
    assert own.parts["solver"] == pytest.approx(abs(gap) + judge.parts["solver"])  # all 400 seen
    assert abs(gap) < own.error == pytest.approx(judge.error + abs(gap))
    assert own.better is None  # a description: nothing to be best at


def test_own_numerics_that_fail_are_left_out_beside_a_good_likelihood():
    gave_up = Continuous(Linear(-torch.eye(2, dtype=F64)), Dopri5(1e-12, 1e-12, max_steps=1))
    measures = evaluate(gave_up, DATA, metrics=[NLL()])
    assert measures.keys() == {"nll"}
    assert measures["nll"].parts.keys() == {"sampling", "solver", "trace", "inverse"}
    with pytest.raises(Diverged, match=r"InverseError cannot be measured: .*max_num_steps"):
        evaluate(gave_up, DATA, metrics=[InverseError()])


def test_trained_with_hutchinson_judged_exactly(seeded):
    """Two calls agree in every bit, and the trace is that of the matrix."""
    a = torch.randn(12, 12, generator=seeded(3), dtype=F64) / 12
    flow, data = Continuous(Linear(a), RK4(8), Hutchinson()), gaussian(12, condition=2.0).load()
    first, second = (evaluate(flow, data, metrics=[NLL(), KL()], seed=5) for _ in range(2))
    assert first == second
    z, ladj, *_ = oracles.linear_ends(a, data.test)
    truth = -(oracles.standard_normal(z) + ladj).mean().item()
    assert first["nll"].value == pytest.approx(truth, abs=2e-5)
    assert first["nll"].parts["trace"] == 0
    own = first["nll-own"].parts
    assert own["own_minus_judge_error"] > 1e-3  # the noise of one probe is there to be seen
    assert abs(own["own_minus_judge"]) < 5 * own["own_minus_judge_error"]
    other = evaluate(flow, data, metrics=[NLL()], seed=6)
    assert other["nll"].value == first["nll"].value
    assert other["nll-own"].value != first["nll-own"].value


def test_a_flow_without_numerics_is_its_own_judge():
    measures = evaluate(Scale(2), DATA, metrics=[NLL()])
    assert measures["nll-own"].value == measures["nll"].value
    assert measures["nll-own"].better is None


# --- the certificate's other parts ---------------------------------------------------------------


def test_the_inverse_is_the_distance_from_points_that_went_there_and_back():
    """At a loose tolerance the judge's way back misses: by what its own solver misses it by."""
    flow, tolerance = matching(gaussian(2, condition=30.0)), 1e-2
    parts = evaluate(flow, DATA, metrics=[NLL(50)], tolerance=tolerance)["nll"].parts
    subject = Subject(flow, DATA, tolerance=tolerance)
    solver = Dopri5(tolerance, tolerance)
    with torch.no_grad():
        back = flow.with_numerics(solver).decode(subject.encoded.z[subject.rows(50)])
    distance = (back - DATA.test[subject.rows(50)]).norm(dim=-1)
    assert 1e-4 < distance.mean() < 0.1
    assert parts["inverse"] == pytest.approx(distance.mean().item(), rel=1e-9)


# --- bits per dimension --------------------------------------------------------------------------


def test_bits_are_nats_over_d_ln_2_and_so_is_their_certificate():
    """8 bits of grey values add 8 to every dimension; the offset stands for a logit transform."""
    offset = DATA.test.square().sum(-1)

    def bits(nll, x):
        assert torch.equal(x, DATA.test)
        return (nll + offset) / (2 * math.log(2)) + 8

    rows = Rows(DATA.test, bits_per_dim=bits)
    flow = matching(GAUSSIAN)
    measures = evaluate(flow, rows, metrics=[NLL(), BitsPerDim()], tolerance=1e-3)
    nll, found = measures["nll"], measures["bits-per-dim"]
    per_nat = 1 / (2 * math.log(2))
    expected = (nll.value + offset.mean().item()) * per_nat + 8
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.parts["solver"] == pytest.approx(nll.parts["solver"] * per_nat, rel=1e-9)
    values = -Subject(flow, rows, tolerance=1e-3).log_prob + offset
    assert found.parts["sampling"] == pytest.approx(values.std().item() * per_nat / 20, rel=1e-9)
    assert found.unit == "bits"
    assert evaluate(flow, Rows(DATA.test), metrics=[BitsPerDim()]) == {}


# --- what only knows its density -----------------------------------------------------------------


def test_a_density_alone_is_scored_and_asked_for_nothing_else():
    rows = Rows(
        DATA.test,
        log_prob=DATA.log_prob,
        transport_cost=DATA.transport_cost,
        oracle=GAUSSIAN.oracle,
    )
    likelihoods = [NLL(), KL(), DensityError()]
    others = [TransportCost(), PathEnergy(), Straightness(), InverseError()]
    others += [NFE(), MapError(), VelocityError()]
    flow = Density(2)
    measures = evaluate(flow, rows, metrics=likelihoods + others)
    assert measures.keys() == {"nll", "nll-own", "kl", "density-error"}
    truth = -(oracles.standard_normal(DATA.test / 2) - 2 * math.log(2))
    assert measures["nll"].value == pytest.approx(truth.mean().item(), rel=1e-12)
    assert "inverse" not in measures["nll"].parts
    with pytest.raises(Incompatible, match="only knows its density"):
        _ = Subject(flow, rows).encoded
