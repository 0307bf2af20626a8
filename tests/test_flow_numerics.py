"""Flows on a computer: precision, scores, graphs, what is left alone, accelerators."""

from __future__ import annotations

import pytest
import torch
from components import make_integrator, make_velocity, names, velocity_cases
from oracles import F64, SmallPotential, SmallVelocity, gap, small_gradient

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible
from flowzoo.field import Gradient
from flowzoo.integrators import RK4
from flowzoo.regularizers import Transport
from flowzoo.traces import Exact, Hutchinson

VELOCITIES = {"velocity": SmallVelocity, "gradient": small_gradient}
INTEGRATORS = names("integrator")


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("case", velocity_cases())
def test_single_precision_stays_single_and_close(integrator, case, places):
    x = places(5, 2)
    double = Continuous(
        make_velocity(case, 2), make_integrator(integrator, 8, 1e-4), train_end_time=True
    )
    with torch.no_grad():
        expected, back = double.double().log_prob(x), double.decode(x)
    single = double.float()
    with torch.no_grad():
        found, sample = single.log_prob(x.float()), single.decode(x.float())
        end = single.encode(x.float(), [Transport()])
    assert {y.dtype for y in (found, sample, *(end.z, end.ladj, end.costs))} == {torch.float32}
    # The adaptive solvers may take other steps: their tolerance bounds the difference.
    assert (found.double() - expected).abs().max() < 3e-3
    assert (sample.double() - back).abs().max() < 3e-3
    single.log_prob(x.float()).sum().backward()
    assert {p.grad.dtype for p in single.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("end_time", [0.5, 1.0, 3.0])
def test_a_learned_end_time_starts_where_it_is_told(end_time, places):
    """In the precision of the data: half of the digits of T would be half of those of x."""
    x = places(3, 2)
    fixed = Continuous(SmallVelocity(2), RK4(8), end_time=end_time)
    learned = Continuous(SmallVelocity(2), RK4(8), end_time=end_time, train_end_time=True).double()
    assert gap(learned.log_prob(x), fixed.log_prob(x)) < 1e-6
    assert len(list(learned.parameters())) == len(list(fixed.parameters())) + 1
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(Incompatible, match="end_time must be positive"):
            Continuous(SmallVelocity(2), end_time=value)


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("kind", VELOCITIES)
def test_the_score_is_the_derivative_of_the_density(integrator, kind, places):
    flow, x = Continuous(VELOCITIES[kind](2), make_integrator(integrator, 6, 1e-10)), places(3, 2)
    y = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(flow.log_prob(y).sum(), y)
    for i in range(2):
        step = torch.zeros(2, dtype=F64)
        step[i] = 1e-4
        with torch.no_grad():
            slope = (flow.log_prob(x + step) - flow.log_prob(x - step)) / 2e-4
        assert gap(score[:, i], slope) < 1e-5
    assert torch.equal(y.detach(), x)
    assert y.grad is None


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_inputs_are_left_as_they_were(integrator, places):
    x, context = places(3, 2), places(3, 2, seed=1)
    kept, versions = (x.clone(), context.clone()), (x._version, context._version)
    flow = Continuous(SmallVelocity(2, 2), make_integrator(integrator, 4, 1e-4))
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    flow.log_prob(x, context).sum().backward()
    flow.decode(x, context).sum().backward()
    assert torch.equal(x, kept[0])
    assert torch.equal(context, kept[1])
    assert (x._version, context._version) == versions
    assert not x.requires_grad
    assert not context.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())


def test_nothing_of_a_solve_is_left_on_the_flow(places):
    flow = Continuous(SmallVelocity(2), RK4(2), Hutchinson())
    before = {**vars(flow), **vars(flow.velocity)}.keys()
    flow.log_prob(places(3, 2))
    assert {**vars(flow), **vars(flow.velocity)}.keys() == before


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_no_graph_is_left_without_gradients(integrator, places):
    flow = Continuous(SmallVelocity(2), make_integrator(integrator, 4, 1e-4), train_end_time=True)
    with torch.no_grad():
        end = flow.double().encode(places(3, 2), [Transport()])
        assert not any(y.requires_grad for y in (end.z, end.ladj, end.costs))
        assert not flow.sample(2).requires_grad


@pytest.mark.gpu
@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("trace", [Exact(), Hutchinson(samples=2)])
def test_an_accelerator_gives_the_same_density(integrator, trace, places):
    flow = Continuous(Gradient(SmallPotential(2)), make_integrator(integrator, 8, 1e-6), trace)
    x = places(16, 2)
    expected = Continuous(flow.velocity, flow.integrator, Exact()).log_prob(x).detach()
    flow = flow.cuda()
    found = flow.log_prob(x.cuda())
    found.sum().backward()
    assert found.is_cuda
    assert gap(found.detach().cpu(), expected) < 1e-8
    assert gap(flow.decode(flow.encode(x.cuda()).z), x.cuda()) < 1e-3


@pytest.mark.gpu
def test_a_fixed_grid_does_not_wait_for_the_accelerator():
    flow, x = Continuous(SmallVelocity(2), RK4(8)).cuda(), torch.randn(64, 2, dtype=F64).cuda()
    flow.log_prob(x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        flow.log_prob(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
