"""Each wrong regularizer is caught by the check that is meant for it."""

from __future__ import annotations

import pytest
import wrong_costs
from checking import failed, outcomes

PAIRED = ("batch-independence", "permutation", "precision", "default-dtype")  # compare two calls

# The first check is the one that is meant; what else fails follows from it.
CAUGHT = {
    "WrongSign": (["zero"], "the cost of an optimal flow is off"),
    "Undeclared": (["needs"], "declares to need nothing of a point, but given no more raises"),
    "Impossible": (["needs"], "needs luck, which no velocity provides"),
    "NeedyEnd": (["needs"], "sees the two ends only"),
    "Averaged": (["batch-independence"], "the cost of a row alone is off"),
    "Mean": (
        ["shapes", "zero", "probes", "batch-independence", "permutation"],
        "the cost is () for 6 places",
    ),
    "Reversed": (["permutation", "batch-independence"], "the cost of permuted rows is off"),
    "Profit": (["nonnegative"], "the cost is as low as -"),
    "Rent": (["zero"], "the cost of z = x is off by 0.1"),
    "Summed": (["probes"], "is biased by"),
    "Rooted": (["probes"], "is biased by -"),
    "Weighed": (["weight"], "the cost with another weight is off"),
    "Forgetful": (["weight"], "weight 0.0 is kept as 1.0"),
    "Noisy": (["repeatable", *PAIRED], "the cost, again, is off"),
    "InPlace": (["repeatable", "gradients", *PAIRED], "an input is changed in place"),
    "Single": (["shapes", "precision", "default-dtype"], "torch.float32 for torch.float64 places"),
    "Rounded": (["precision"], "the cost in float32 is off"),
    "Following": (["default-dtype"], "is torch.float64 under the default dtype torch.float64"),
    "Stuck": (["device"], "on cpu and meta"),
    "Detached": (["gradients"], "the gradient of the cost is off"),
}


@pytest.mark.parametrize("name", CAUGHT)
def test_a_wrong_one_is_caught_by_its_check(name):
    checks, said = CAUGHT[name]
    found = failed(getattr(wrong_costs, name))
    assert set(found) == set(checks), found
    assert said in found[checks[0]]


@pytest.mark.parametrize("name", ["Right", "RightEnd", "Residual"])
def test_a_right_one_passes_and_nothing_is_skipped(name):
    found = outcomes(getattr(wrong_costs, name))
    assert {result.outcome for result in found.values()} == {"pass"}


def test_checks_of_probes_are_for_running_costs():
    assert "probes" in outcomes(wrong_costs.Right)
    assert "probes" not in outcomes(wrong_costs.RightEnd)
