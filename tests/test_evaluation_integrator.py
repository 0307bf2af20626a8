"""The integrator of evaluation mode: used there for everything, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracles import F64, SmallVelocity, small_gradient
from tiny_flows import QUICK, fitted, points

from flowzoo.build import build
from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible
from flowzoo.field import Gradient
from flowzoo.flow import Chain
from flowzoo.integrators import RK1, RK4, Midpoint
from flowzoo.networks import PotentialMLP
from flowzoo.objective import Likelihood
from flowzoo.odeint import Dopri5
from flowzoo.recipes import load_recipes
from flowzoo.registry import Registry
from flowzoo.regularizers import HJB, Transport
from flowzoo.settings import Budget
from flowzoo.traces import Exact, Hutchinson

ASKED = {
    "encode": lambda flow, x: flow.encode(x, [Transport()]).z,
    "costs": lambda flow, x: flow.encode(x, [HJB()]).costs,
    "log_prob": lambda flow, x: flow.log_prob(x),
    "decode": lambda flow, x: flow.decode(x),
    "generate": lambda flow, x: flow.generate(x, [Transport()]).costs,
    "points": lambda flow, x: flow.generate(x).x,
    "sample": lambda flow, x: flow.sample(5, generator=torch.Generator().manual_seed(0)),
}


def flow_of(integrator, evaluation=None, **more):
    return Continuous(small_gradient(2), integrator, evaluation=evaluation, **more)


@pytest.mark.parametrize("asked", ASKED)
def test_evaluation_mode_has_its_own(asked, places):
    x, ask = places(5, 2), ASKED[asked]
    coarse, fine = (ask(flow_of(RK1(steps)), x) for steps in (2, 9))
    flow = flow_of(RK1(2), RK1(9))
    assert flow.training
    assert torch.equal(ask(flow, x), coarse)
    assert torch.equal(ask(flow.eval(), x), fine)
    assert torch.equal(ask(flow.train(), x), coarse)
    assert not torch.equal(coarse, fine)


@pytest.mark.parametrize("asked", ASKED)
def test_without_one_both_modes_are_solved_alike(asked, places):
    flow, x = flow_of(RK1(2)), places(5, 2)
    assert torch.equal(ASKED[asked](flow, x), ASKED[asked](flow.eval(), x))


def test_blocks_of_a_chain_have_their_own(places):
    x = places(5, 2)
    chain = Chain([flow_of(RK1(2), RK1(9)), flow_of(RK4(2))])
    trained, evaluated = chain.encode(x), chain.eval().encode(x)
    assert [n.forward for n in trained.nfe] == [2, 8]
    assert [n.forward for n in evaluated.nfe] == [9, 8]


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("wrap", [lambda flow: flow, lambda flow: Chain([flow])])
def test_other_numerics_override_both(mode, wrap, places):
    x, flow = places(5, 2), wrap(flow_of(RK1(2), RK1(9))).train(mode)
    other = flow.with_numerics(Midpoint(4))
    assert other.training == mode
    expected = wrap(flow_of(Midpoint(4)))
    for switched in (other, other.train(not mode)):
        assert torch.equal(switched.log_prob(x), expected.log_prob(x))
    steps = [n.forward for n in flow.train(mode).encode(x).nfe]
    assert steps == [2 if mode else 9]  # the flow itself is as before


def test_another_trace_keeps_both(places):
    x = places(5, 2)
    flow = flow_of(RK1(2), RK1(9), trace=Hutchinson()).with_numerics(trace=Exact())
    assert [n.forward for n in flow.encode(x).nfe] == [2]
    assert [n.forward for n in flow.eval().encode(x).nfe] == [9]
    assert torch.equal(flow.log_prob(x), flow_of(RK1(9)).log_prob(x))


def test_probes_that_change_by_stage_need_stages_in_both_modes():
    redrawn = Hutchinson(redraw="stage")
    said = "Dopri5 needs probes that stay fixed along a solve"
    with pytest.raises(Incompatible, match=said):
        Continuous(SmallVelocity(2), RK4(2), redrawn, evaluation=Dopri5())
    with pytest.raises(Incompatible, match=said):
        Continuous(SmallVelocity(2), Dopri5(), redrawn, evaluation=RK4(2))
    flow = Continuous(SmallVelocity(2), RK4(2), redrawn, evaluation=RK4(3))
    with pytest.raises(Incompatible, match=said):
        flow.with_numerics(Dopri5())
    with pytest.raises(Incompatible, match=said):
        Continuous(SmallVelocity(2), RK4(2), evaluation=Dopri5()).with_numerics(trace=redrawn)


def test_probes_are_drawn_for_the_stages_of_the_mode(places):
    """As many as the evaluation's solve has stages: then it is the solve of that integrator."""
    x, trace = places(5, 2), Hutchinson(redraw="stage")
    one = Continuous(SmallVelocity(2), RK4(2), trace, evaluation=RK4(3)).eval()
    other = Continuous(SmallVelocity(2), RK4(3), trace)
    found = [f.log_prob(x, generator=torch.Generator().manual_seed(1)) for f in (one, other)]
    assert torch.equal(*found)
    fixed = Continuous(SmallVelocity(2), RK4(3), Hutchinson())
    assert not torch.equal(fixed.log_prob(x, generator=torch.Generator().manual_seed(1)), found[0])


def test_a_fit_trains_with_one_and_validates_with_the_other():
    seen = {True: set(), False: set()}

    class Watching(RK1):
        def solve(self, field, state, t0, t1, params=()):
            seen[torch.is_grad_enabled()].add(self.steps)
            return super().solve(field, state, t0, t1, params)

    flow = Continuous(SmallVelocity(2), Watching(2), evaluation=Watching(7)).float()
    fitted(
        flow,
        Likelihood(),
        training=replace(QUICK, validate_every=2),
        validation=points(20),
        budget=Budget(steps=4),
    )
    assert seen == {True: {2}, False: {7}}


def test_a_recipe_may_carry_one(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "recipes:\n  finer:\n    extends: ot-flow\n    flow: {evaluation: {name: rk4, steps: 24}}\n"
    )
    recipe = load_recipes(file)["finer"]
    flow = build("flow", recipe.flow, Registry.installed(), dim=2).to(F64)
    x = torch.zeros(1, 2, dtype=F64)
    assert [n.forward for n in flow.encode(x).nfe] == [32]
    assert [n.forward for n in flow.eval().encode(x).nfe] == [96]


def test_a_detached_cost_cannot_teach_an_end_time():
    flow = Continuous(Gradient(PotentialMLP(2, [4])), RK4(2), train_end_time=True)
    with pytest.raises(Incompatible, match="leave out detach, or train_end_time"):
        flow.requires([HJB(detach=True)])
    flow.requires([HJB()])
