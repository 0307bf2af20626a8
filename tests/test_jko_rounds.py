"""When JKO has enough blocks, and the rounds in which it trains them again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from jko_chains import QUICK, cloud, grown, shifts, steps_of, trained

from flowzoo.integrators import RK438
from flowzoo.objective import Batch
from flowzoo.settings import Optimizer
from flowzoo_jko_iflow.joint import FineTuning
from flowzoo_jko_iflow.objective import JKO
from flowzoo_jko_iflow.steps import Refinement, Reparametrisation, Steps, reparametrised, unevenness
from flowzoo_jko_iflow.stopping import Stopping

CARELESS = {"ratio": 1e9, "decrease": 1e9}
SWIFT = replace(QUICK, optimizer=Optimizer(lr=0.2))


# --- stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "decrease", "said"),
    [
        (1e9, None, "movement ratio"),
        (None, 1e9, "KL decrease"),
        (1e9, 1e9, "movement ratio and KL decrease"),
    ],
)
def test_training_stops_by_each_rule_and_says_so(ratio, decrease, said):
    flow = shifts(4)
    result = trained(flow, JKO(stop=Stopping(ratio, decrease)), steps=40)
    (row,) = result.stages
    parts = row["enough_blocks"].split(" and ")
    assert [part.rsplit(" ", 3)[0] for part in parts] == said.split(" and ")
    assert all(part.endswith("< 1e+09") for part in parts)
    assert (flow.depth, flow.planned) == (1, 1)
    assert json.dumps(result.stages)


@pytest.mark.parametrize(("ratio", "decrease"), [(1e9, 1e-9), (1e-9, 1e9)])
def test_both_rules_must_hold(ratio, decrease):
    flow = shifts(3)
    result = trained(flow, JKO(stop=Stopping(ratio, decrease)), steps=9)
    assert len(result.stages) == 3
    assert not any("enough_blocks" in row for row in result.stages)
    assert flow.depth == 3


def test_the_rules_ask_what_the_block_did():
    steps = Steps(1.0, 1.0)
    rows = trained(shifts(4), JKO(steps), 160, SWIFT).stages
    for name in ("ratio", "kl_decrease"):
        first, second, third, _ = (row[name] for row in rows)
        assert first > second > third
        limit = (second * third) ** 0.5
        stop = Stopping(limit, None) if name == "ratio" else Stopping(None, limit)
        again = trained(shifts(4), JKO(steps, stop=stop), 160, SWIFT).stages
        assert ["enough_blocks" in row for row in again] == [False, False, True]
        assert [row[name] for row in again] == [first, second, third]


def test_the_decrease_is_asked_of_held_out_points():
    far = Batch(
        cloud().x + 100
    )  # which the first block brings nearer by more than it does the others
    training = replace(QUICK, validate_every=10, keep="last")
    stop = JKO(stop=Stopping(None, 8.0))
    alone = trained(shifts(3), stop, steps=9)
    held = trained(shifts(3), stop, steps=9, training=training, validation=far)
    assert len(alone.stages) == 1
    assert alone.stages[0]["kl_decrease"] < 8 < held.stages[0]["kl_decrease"]
    assert len(held.stages) > 1


def test_blocks_that_are_left_out_leave_their_budget_to_the_rest():
    flow = grown(4, steps=1)
    untouched = [p.clone() for block in flow.held()[1:] for p in block.parameters()]
    objective = JKO(stop=Stopping(**CARELESS), fine_tune=FineTuning(0.2))
    result = trained(flow, objective, steps=20)
    assert steps_of(result) == {"block 1": 4, "all blocks": 16}
    after = [p for block in flow.held()[1:] for p in block.parameters()]
    assert all(map(torch.equal, untouched, after))
    assert len(list(flow.in_use())) < len(list(flow.parameters()))
    assert result.stages[-1]["nll"] == pytest.approx(-flow.log_prob(cloud().x).mean().item())


def test_a_chain_that_stopped_is_refined_as_it_is():
    flow = grown(8, steps=1)
    objective = JKO(stop=Stopping(**CARELESS), refine=Refinement())
    result = trained(flow, objective, steps=24)
    names = [row["stage"] for row in result.stages]
    assert names == ["block 1", "block 1, refined 1", "block 2, refined 1"]
    assert (flow.depth, flow.planned) == (2, 2)


# --- reparametrisation ---------------------------------------------------------------------------


def test_a_round_takes_the_step_sizes_of_the_movements():
    flow = shifts(3)
    rounds = Reparametrisation(1, 0.5, 2.0)
    rows = trained(flow, JKO(Steps(0.5, 1.0), reparametrise=rounds), steps=60).stages
    before, moved = np.full(3, 0.5), np.array([row["movement"] for row in rows[:3]])
    expected = np.minimum(before + 0.5 * (before * moved.mean() / moved - before), 2.0)
    assert [row["h"] for row in rows[3:]] == pytest.approx(expected.tolist(), rel=1e-12)
    assert flow.movements.tolist() == [row["movement"] for row in rows[3:]]
    assert (flow.depth, flow.passes) == (3, 2)


@pytest.mark.parametrize(("even", "rounds"), [(0.0, 3), (1e9, 0)])
def test_rounds_end_once_the_movements_are_even(even, rounds):
    flow = shifts(2)
    objective = JKO(reparametrise=Reparametrisation(3, even=even))
    result = trained(flow, objective, steps=16)
    assert len(result.stages) == 2 + 2 * rounds
    assert flow.passes == 1 + rounds


def test_a_round_is_needed_until_the_movements_are_even():
    flow = shifts(2)
    rounds = Reparametrisation(6, even=0.2)
    rows = trained(flow, JKO(Steps(1.0, 1.0), reparametrise=rounds), 600, SWIFT).stages
    moved = [[row["movement"] for row in rows[i : i + 2]] for i in range(0, len(rows), 2)]
    found = [unevenness(pair) for pair in moved]
    assert 2 <= len(found) < 7
    assert all(value >= 0.2 for value in found[:-1])
    assert found[-1] < 0.2


def test_a_refinement_follows_rounds_that_were_not_needed():
    flow = grown(4, steps=1)
    objective = JKO(reparametrise=Reparametrisation(2, even=1e9), refine=Refinement())
    names = [row["stage"] for row in trained(flow, objective, steps=24).stages]
    assert names == ["block 1", "block 2", *(f"block {k}, refined 1" for k in (1, 2, 3, 4))]


def test_the_tail_is_given_up_before_a_round():
    flow = shifts(6)
    rounds = Reparametrisation(1, tail=0.5)
    rows = trained(flow, JKO(Steps(1.0, 1.0), reparametrise=rounds), 480, SWIFT).stages
    moved = [row["movement"] for row in rows[:6]]
    kept = max(k for k, m in enumerate(moved, 1) if m >= 0.5 * np.mean(moved))
    assert 1 <= kept < 6
    assert (flow.depth, flow.planned) == (kept, kept)
    assert [row["stage"] for row in rows[6:]] == [
        f"block {k}, reparametrised 1" for k in range(1, kept + 1)
    ]
    new = reparametrised([1.0] * kept, moved[:kept], 0.5, 5.0)
    assert [row["h"] for row in rows[6:]] == pytest.approx(new)


def test_a_block_in_the_middle_is_kept_with_those_after_it():
    rounds = Reparametrisation(tail=0.5)
    assert rounds.kept([2.0, 0.1, 1.0, 0.1]) == 3
    assert rounds.kept([1.0, 1.0]) == 2
    assert Reparametrisation(tail=0.0).kept([1.0, 0.0]) == 2


def test_a_free_block_is_not_asked_for_evenness():
    rounds = Reparametrisation(even=0.1)
    assert rounds.is_even([1.0, 1.0, np.inf], [0.5, 0.51, 9.0])
    assert not rounds.is_even([1.0, 1.0, 1.0], [0.5, 0.51, 9.0])
    assert reparametrised([1.0, np.inf], [0.5, 9.0], 0.5, 5.0) == [1.0, np.inf]


# --- refinement ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "held"), [(2, 4), (3, 6)])
def test_a_refinement_leaves_the_map_unchanged_at_the_moment_it_is_applied(places, factor, held):
    flow, x = grown(held, steps=5), places()[:, :2]
    objective = JKO(refine=Refinement(factor), reparametrise=Reparametrisation(even=0.0))
    stages = list(objective.stages(flow))
    first = next(i for i, stage in enumerate(stages) if "refined" in stage.name)
    maps, sizes, moved = [], [], []

    class UntilThen(JKO):
        def stages(self, flow):
            yield from stages[:first]

    trained(flow, UntilThen(), steps=40)
    for begin in (False, True):
        if begin:
            stages[first].begin(cloud())
        finer = flow.with_numerics(RK438(5 if begin else 5 * factor)).encode(x)
        maps.append((finer.z, finer.ladj))
        maps.append((flow.encode(x).z, flow.encode(x).ladj))
        sizes.append(flow.step_sizes.clone())
        moved.append(flow.movements.clone())
    fine, coarse, split, again = maps
    for a, b, c in zip(fine, coarse, split, strict=True):
        torch.testing.assert_close(c, a, rtol=1e-12, atol=1e-12)  # on a grid of the same steps
        torch.testing.assert_close(c, b, rtol=0, atol=1e-3)  # to the accuracy of the solver
        assert (a - b).abs().max() > 1e-12
    assert torch.equal(split[0], again[0])
    n = held // factor
    for before, after in (sizes, moved):
        torch.testing.assert_close(after, before[:n].repeat_interleave(factor) / factor)
    assert (flow.depth, flow.planned) == (held, held)


def test_a_refined_pass_lowers_its_loss_from_where_the_chain_was():
    flow = grown(2, steps=4)
    rows = trained(flow, JKO(Steps(2.0), refine=Refinement()), steps=90).stages
    assert [row["h"] for row in rows] == [2.0, 1.0, 1.0]
    assert rows[-1]["nll"] < rows[0]["nll"]
