"""Each wrong objective is caught by the check that is meant for it."""

from __future__ import annotations

import pytest
import wrong_objectives
from checking import failed, outcomes

from flowzoo.conformance.probes import flows_trained
from flowzoo.recipes import Recipe

# The first check is the one that is meant; what else fails follows from it.
CAUGHT = {
    "Eager": (["stages"], "stages returns a list, no iterator"),
    "Hasty": (["stages", "precision"], "listing the stages changes a flow without trajectory"),
    "Drawing": (["stages"], "listing the stages draws noise"),
    "Foreign": (
        ["stages"],
        "stage all trains 1 parameters that a flow without",
    ),
    "Greedy": (["stages"], "the share of stage all is 0.0"),
    "Namesakes": (["stages"], "the stages are named ['all', 'all']"),
    "Attached": (["loss"], "the term nll of a flow without trajectory, stage all is not detached"),
    "Careless": (["loss", "precision"], "with an equal generator is off"),
    "Detached": (["gradients"], "stage all is off by"),
    "VolumeOnly": (["every-parameter", "learns"], "shift of a flow without trajectory gets no"),
    "Uphill": (["learns"], "little is learnt in 40 steps: NLL of a flow without trajectory from"),
    "Summed": (["batch"], "every point four times changes the loss by"),
    "NoisySum": (["batch"], "every point four times changes the loss by"),
    "Spread": (["batch"], "the loss of one point"),
    "Brittle": (["batch"], "the loss of 0 points raises IndexError"),
    "Double": (["precision"], "is torch.float64"),
    "Following": (["precision"], "under the default torch.float64 is torch.float64"),
    "Blunt": (["refuses"], "is refused by AttributeError"),
    "Curt": (["refuses"], "is refused without a reason: 'no'"),
    "Promising": (
        ["refuses", "batch", "every-parameter", "gradients", "learns", "loss", "precision"],
        "the loss of 8 points raises AttributeError",
    ),
    "Deaf": (["context"], "the loss ignores the context"),
    "Mixed": (["context"], "the loss of permuted rows is off"),
}
RIGHT = ["Right", "Noisy", "Twice", "Refusing"]


@pytest.mark.parametrize("name", CAUGHT)
def test_a_wrong_one_is_caught_by_its_check(name):
    checks, said = CAUGHT[name]
    found = failed(getattr(wrong_objectives, name))
    assert set(found) == set(checks)
    assert said in found[checks[0]]


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_one_passes_and_nothing_is_skipped(name):
    found = outcomes(getattr(wrong_objectives, name))
    assert {result.outcome for result in found.values()} == {"pass"}


def test_one_that_trains_nothing_at_hand_is_skipped_with_its_own_sentence():
    found = outcomes(wrong_objectives.Picky)
    assert found.pop("refuses").outcome == "pass"
    assert {result.outcome for result in found.values()} == {"skip"}
    assert all("is not a flow of the kind that I train" in r.detail for r in found.values())


def test_one_that_fits_no_small_flow_is_tried_on_that_of_its_recipe(monkeypatch):
    velocity = {"name": "mlp", "hidden": [4]}
    flow = {"name": "continuous", "velocity": velocity, "end_time": 2.0}
    recipe = Recipe("late-mlp", "Late", flow, {"name": "Late"})
    monkeypatch.setattr(flows_trained, "load_recipes", lambda: {"late-mlp": recipe})
    found = outcomes(wrong_objectives.Late)
    assert found["stages"].detail == "1 for the flow of the recipe late-mlp"
    assert found["context"].outcome == "skip"
    assert not [result for result in found.values() if result.bad]


@pytest.mark.parametrize("name", ["likelihood", "matching"])
def test_registered_ones_pass(name):
    assert not failed(f"objective/{name}")
