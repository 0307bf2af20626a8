"""The stages of JKO: which there are, which are needed, and how each begins."""

from __future__ import annotations

import math

import pytest
import torch
from jko_chains import F64, QUICK, cloud, grown, shifts, steps_of, trained, velocity
from tiny_flows import Shift

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible, UserError
from flowzoo.flow import Chain
from flowzoo.objective import Batch
from flowzoo.regularizers import HJB
from flowzoo_jko_iflow.growing import Growing
from flowzoo_jko_iflow.joint import FineTuning
from flowzoo_jko_iflow.objective import JKO, diffused
from flowzoo_jko_iflow.push import Pushed
from flowzoo_jko_iflow.steepest import SteepestDescent
from flowzoo_jko_iflow.steps import Refinement, Reparametrisation, Steps
from flowzoo_jko_iflow.stopping import Stopping


def names(flow, objective):
    return [stage.name for stage in objective.stages(flow)]


# --- which stages there are ----------------------------------------------------------------------


def test_one_stage_for_every_block():
    stages = list(JKO().stages(shifts(3)))
    assert [stage.name for stage in stages] == ["block 1", "block 2", "block 3"]
    assert [stage.share for stage in stages] == [1, 1, 1]


def test_a_stage_trains_its_block_alone():
    flow = shifts(3)
    for k, stage in enumerate(JKO().stages(flow)):
        assert [id(p) for p in stage.parameters] == [id(p) for p in flow.held()[k].parameters()]


def test_rounds_come_after_the_first_pass():
    flow = grown(4)
    rounds = Reparametrisation(rounds=2)
    found = names(flow, JKO(reparametrise=rounds, refine=Refinement(), fine_tune=FineTuning()))
    assert found == [
        "block 1",
        "block 2",
        "block 1, reparametrised 1",
        "block 2, reparametrised 1",
        "block 1, reparametrised 2",
        "block 2, reparametrised 2",
        *(f"block {k}, refined 1" for k in (1, 2, 3, 4)),
        "all blocks",
    ]


def test_every_refinement_multiplies_the_blocks():
    found = names(grown(8), JKO(refine=Refinement(rounds=2)))
    assert found == [
        *(f"block {k}" for k in (1, 2)),
        *(f"block {k}, refined 1" for k in range(1, 5)),
        *(f"block {k}, refined 2" for k in range(1, 9)),
    ]


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_fine_tuning_has_its_share_of_the_budget(share):
    result = trained(grown(3, steps=1), JKO(fine_tune=FineTuning(share)), steps=40)
    expected = (40 - 40 * share) / 3
    for name, steps in steps_of(result).items():
        assert steps == pytest.approx(40 * share if name == "all blocks" else expected, abs=1)


def test_listing_the_stages_changes_nothing():
    flow = grown(4)
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    names(flow, JKO(refine=Refinement(), reparametrise=Reparametrisation()))
    assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())
    assert flow.depth == 4


# --- how a stage begins --------------------------------------------------------------------------


def entered(flow, objective, steps=6):
    """Fit, and return the chain's state at the first loss of every stage."""
    found = {}
    original = objective.loss

    def loss(chain, k, batch, generator=None):
        if not torch.is_grad_enabled():
            return original(chain, k, batch, generator)
        key = (chain.passes, k)
        if key not in found:
            state = {name: v.clone() for name, v in chain.state_dict().items()}
            found[key] = {**state, "depth": chain.depth, "planned": chain.planned}
        return original(chain, k, batch, generator)

    objective.loss = loss
    trained(flow, objective, steps)
    return found


def test_blocks_come_into_use_one_by_one():
    found = entered(shifts(3), JKO())
    assert [(state["depth"], state["planned"]) for state in found.values()] == [
        (1, 3),
        (2, 3),
        (3, 3),
    ]
    assert list(found) == [(1, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize("warm", [True, False])
def test_a_warm_start_takes_the_weights_of_the_block_before(warm):
    flow = shifts(3)
    own = flow.held()[1].mu.detach().clone()
    found = entered(flow, JKO(warm_start=warm))[1, 1]
    before, begun = found["blocks.0.mu"], found["blocks.1.mu"]
    assert torch.equal(begun, before if warm else own)
    assert not torch.equal(before, own)


def test_step_sizes_follow_the_schedule():
    flow = shifts(3)
    trained(flow, JKO(Steps(0.25, 1.4, largest=0.4)))
    assert flow.step_sizes.tolist() == pytest.approx([0.25, 0.35, 0.4])


def test_a_free_last_block_pays_nothing_for_moving():
    flow = shifts(2)
    result = trained(flow, JKO(Steps(0.5, free_last=True)))
    assert flow.step_sizes.tolist() == [0.5, math.inf]
    assert [row["h"] for row in result.stages] == [0.5, None]
    terms = {row["stage"]: row["terms"]["movement"] for row in result.curve}
    assert terms["block 1"] > 0
    assert terms["block 2"] == 0


def test_the_points_of_a_stage_were_moved_by_the_blocks_before():
    flow, x = grown(3), cloud(20)
    stage = list(JKO(chunk=7).stages(flow))[2]
    pushed = stage.points(x)
    plain = Chain(flow.held()[:2]).encode(x.x)
    torch.testing.assert_close(pushed.x, plain.z, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(pushed.ladj, plain.ladj, rtol=1e-13, atol=1e-13)
    assert torch.equal(x.x, cloud(20).x)


# --- the loss ------------------------------------------------------------------------------------


def test_diffusion_has_the_moments_of_the_process():
    x, time = torch.full((200_000, 1), 2.0, dtype=F64), 0.3
    noised = diffused(x, time, torch.Generator().manual_seed(0))
    # mean weight exp(-int beta / 2) by quadrature; beta grows from 0.1 to 20 in one unit of time
    grid = torch.linspace(0, time, 100_001, dtype=F64)
    weight = torch.exp(-0.5 * torch.trapezoid(0.1 + 19.9 * grid, grid))
    assert float(noised.mean()) == pytest.approx(float(2 * weight), abs=0.01)
    assert float(noised.var()) == pytest.approx(float(1 - weight**2), rel=0.02)
    assert torch.equal(diffused(x, 0.0, torch.Generator()), x)
    small = diffused(0 * x, 1e-3, torch.Generator().manual_seed(0))
    assert float(small.std()) == pytest.approx(0.0105, rel=0.02)


def test_only_the_first_block_sees_diffused_points():
    flow, x = shifts(2), Pushed.of(cloud(50))
    for k, same in ((0, False), (1, True)):
        losses = [
            JKO(diffusion=time).loss(flow, k, x, torch.Generator().manual_seed(1)).total
            for time in (0.0, 0.1)
        ]
        assert torch.equal(*losses) == same


# --- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: JKO(diffusion=1.0), "jko: diffusion"),
        (lambda: JKO(diffusion=-0.1), "jko: diffusion"),
        (lambda: JKO(chunk=0), "jko: chunk"),
        (lambda: Steps(first=0.0), r"steps\.first"),
        (lambda: Steps(growth=-1.0), r"steps\.growth"),
        (lambda: Steps(largest=0.0), r"steps\.largest"),
        (lambda: Steps(first=math.nan), r"steps\.first"),
        (lambda: Stopping(None, None), "stop: give ratio, decrease, or both"),
        (lambda: Stopping(ratio=0.0), r"stop\.ratio"),
        (lambda: Stopping(decrease=-1.0), r"stop\.decrease"),
        (lambda: Reparametrisation(rounds=0), r"reparametrise\.rounds"),
        (lambda: Reparametrisation(eta=0.0), r"reparametrise\.eta"),
        (lambda: Reparametrisation(eta=1.1), r"reparametrise\.eta"),
        (lambda: Reparametrisation(largest=0.0), r"reparametrise\.largest"),
        (lambda: Reparametrisation(even=-0.1), r"reparametrise\.even"),
        (lambda: Reparametrisation(tail=1.0), r"reparametrise\.tail"),
        (lambda: Refinement(factor=1), r"refine\.factor"),
        (lambda: Refinement(rounds=0), r"refine\.rounds"),
        (lambda: FineTuning(share=1.0), r"fine_tune\.share"),
        (lambda: FineTuning(movement=-1.0), r"fine_tune\.movement"),
    ],
)
def test_a_number_out_of_its_range_is_named(make, named):
    with pytest.raises(UserError, match=named):
        make()


def test_a_cost_that_asks_a_whole_flow_is_refused():
    with pytest.raises(Incompatible, match="SteepestDescent asks a whole flow"):
        JKO(regularizers=[SteepestDescent()])


@pytest.mark.parametrize(
    ("make", "objective", "sentence"),
    [
        (Shift, JKO(), "Shift does not: use flow: {name: growing"),
        (lambda: grown(3), JKO(refine=Refinement()), "the chain's 3 are no multiple"),
        (lambda: shifts(4), JKO(refine=Refinement()), "block 1 is a Shift"),
        (lambda: grown(2), JKO(regularizers=[HJB()]), "HJB needs phi_t"),
        (
            lambda: Growing([Continuous(velocity()), Continuous(velocity("gradient"))]),
            JKO(),
            "warm_start: true copies the weights",
        ),
    ],
)
def test_a_flow_that_cannot_be_trained_is_refused(make, objective, sentence):
    with pytest.raises(Incompatible, match=sentence):
        objective.check(make())


def test_blocks_that_differ_are_trained_without_a_warm_start():
    flow = Growing([Continuous(velocity()), Continuous(velocity("gradient"))]).double()
    result = trained(flow, JKO(warm_start=False), steps=4)
    assert len(result.stages) == 2


def test_batches_are_whole_sets_when_those_are_small():
    seen = []

    class Watched(JKO):
        def loss(self, chain, k, batch, generator=None):
            seen.append((k, type(batch), len(batch.x)))
            return super().loss(chain, k, batch, generator)

    trained(shifts(2), Watched(), steps=2, training=QUICK, train=Batch(cloud(20).x))
    assert seen == [(0, Pushed, 20), (1, Pushed, 20)]


def test_a_finished_chain_can_be_trained_again():
    flow = grown(4, steps=1)
    first = trained(flow, JKO(refine=Refinement()), steps=12)
    assert flow.depth == 4
    again = trained(flow, JKO(refine=Refinement()), steps=12)
    assert [row["stage"] for row in again.stages] == [row["stage"] for row in first.stages]
    assert (flow.depth, flow.planned, flow.passes) == (4, 4, 2)
