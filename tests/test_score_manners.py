"""Scores: modes, precision, memory, gradients of scores, and estimated divergences."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import F64, SavedBytes, SmallVelocity, gap, gradients, small_gradient
from scored_flows import FINE, FLOWS, batch_norm, by_autograd

from flowzoo.continuous import Continuous
from flowzoo.flow import Chain
from flowzoo.integrators import RK4
from flowzoo.odeint import Adjoint, Dopri5
from flowzoo.traces import Hutchinson
from flowzoo_cp_flow.actnorm import ActNorm
from flowzoo_cp_flow.flow import ConvexFlow
from flowzoo_cp_flow.icnn import ICNN

Z = 5.0  # standard errors; a right estimator fails one in 1.7 million comparisons


# --- manners -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: Chain([batch_norm(), FLOWS["velocity"]()]),
        lambda: ActNorm(3).double(),
        lambda: ConvexFlow(ICNN(3, 8, 2)).double(),
    ],
)
def test_a_score_does_not_change_a_flow_in_training(make, places):
    """Averages that move and normalisations that wait for a batch stay as they are."""
    flow, x = make(), places(6, 3)
    expected = flow.eval().score(x)
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    flow.train()
    for module in list(flow.modules())[-1:]:
        module.eval()
    modes = [m.training for m in flow.modules()]
    assert torch.equal(flow.score(x), expected)
    assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())
    assert [m.training for m in flow.modules()] == modes
    flow.train().encode(x)
    assert any(not torch.equal(v, before[k]) for k, v in flow.state_dict().items())


def test_the_score_is_solved_by_the_integrator_of_the_mode(places):
    flow = Continuous(SmallVelocity(3), RK4(1), evaluation=RK4(10))
    x = places(4, 3)
    coarse, fine = flow.train().score(x), flow.eval().score(x)
    expected = by_autograd(flow, x)
    assert gap(fine, expected) < 5e-5
    assert gap(coarse, expected) > 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", ["velocity", "convex", "adaptive"])
def test_precision_and_empty_batches(name, dtype, places):
    flow = FLOWS[name]().eval()
    if name == "adaptive":
        flow = flow.with_numerics(Dopri5())
    x = places(5, 3)
    single = flow.to(dtype).score(x.to(dtype))
    assert single.dtype == dtype
    assert gap(single.double(), by_autograd(flow.double(), x)) < 1e-3
    assert flow.score(x[:0]).shape == (0, 3)


def test_memory_does_not_grow_with_the_steps_without_gradients(places):
    peaks = {}
    for recorded in (False, True):
        for steps in (2, 16):
            flow, saved = Continuous(small_gradient(3), RK4(steps)), SavedBytes()
            with torch.set_grad_enabled(recorded), saved:
                kept = flow.score(places(50, 3))
            peaks[recorded, steps] = saved.peak
            assert kept.requires_grad == recorded
    assert peaks[False, 16] == peaks[False, 2]
    assert peaks[True, 16] > 5 * peaks[True, 2]


# --- training on scores --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "integrator", [RK4(10), RK4(10, recompute=True), Dopri5(**FINE), Adjoint(**FINE)]
)
def test_gradients_of_the_score_are_those_of_the_density_twice(integrator, places):
    """In the weights, the end time, the context and the places, for an uneven loss."""
    x, w = places(4, 3).requires_grad_(), places(4, 3, seed=1)
    context = places(4, 2, seed=2).requires_grad_()
    flow = Continuous(SmallVelocity(3, 2), RK4(10), end_time=0.8, train_end_time=True).double()
    leaves = [*flow.parameters(), x, context]
    (score,) = torch.autograd.grad(flow.log_prob(x, context).sum(), x, create_graph=True)
    expected = gradients((w * score.square()).sum(), leaves)
    flow.integrator = integrator
    found = gradients((w * flow.score(x, context).square()).sum(), leaves)
    assert all(gap(a, b) < 1e-4 for a, b in zip(found, expected, strict=True) if b.any())


def test_gradients_of_the_score_of_a_chain(places):
    x, flow = places(4, 3).requires_grad_(), FLOWS["chain"]().eval()
    leaves = [*flow.parameters(), x]
    (score,) = torch.autograd.grad(flow.log_prob(x).sum(), x, create_graph=True)
    expected = gradients(score.square().sum(), leaves)
    found = gradients(flow.score(x).square().sum(), leaves)
    assert gap(found, expected) < 1e-4


# --- estimated divergences -----------------------------------------------------------------------


def test_hutchinsons_score_is_unbiased_and_repeats(places, seeded):
    """Probes that are drawn anew at each stage average out along the way."""
    x, n, spread = places(2, 3), 2000, {}
    velocity = SmallVelocity(3)
    exact = Continuous(velocity, RK4(4)).score(x)
    for redraw in ("solve", "stage"):
        flow = Continuous(velocity, RK4(4), Hutchinson(redraw=redraw))
        with torch.no_grad():
            found = flow.score(x.repeat(n, 1), generator=seeded()).view(n, 2, 3)
            again = flow.score(x.repeat(n, 1), generator=seeded()).view(n, 2, 3)
        assert torch.equal(found, again)
        spread[redraw] = found.std(0)
        errors = (found.mean(0) - exact).abs()
        assert (errors <= Z * spread[redraw] / math.sqrt(n)).all()
    assert (spread["stage"] < 0.5 * spread["solve"]).all()
    assert spread["stage"].min() > 1e-3
