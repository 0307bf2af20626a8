"""Each wrong discrepancy is caught by the check that is meant for it."""

from __future__ import annotations

import pytest
import wrong_discrepancies
from checking import failed, outcomes

from flowzoo_pfg.discrepancy import MMD, Energy, SlicedW2

# The first check is the one that is meant; what else fails follows from it.
CAUGHT = {
    "Column": (["shapes", "gradient"], "has shape (1,), expected ()"),
    "Lonely": (["shapes"], "the discrepancy of 1 and 5 points is nan"),
    "Silent": (["shapes"], "1 and 5 points are refused without a reason: 'too few'"),
    "WithThemselves": (["equal-laws"], "is biased by 0.1"),
    "Cut": (["equal-laws", "rows"], "a sample and its points three times is off by"),
    "Offset": (["equal-laws"], "a sample and itself is off by 0.01"),
    "Means": (["positive"], "half the spread makes it larger by"),
    "Axes": (["positive", "rigid-motion"], "a correlation of 0.95 makes it larger by"),
    "Chessboard": (["rigid-motion"], "the change by a shift and rotation is biased by"),
    "Halved": (["gradient"], "the slope for 9 and 9 points is off by"),
    "Uphill": (["gradient", "descent"], "the slope for 9 and 9 points is off by"),
    "Constant": (["gradient", "descent"], "nothing that comes out is differentiable"),
    "Capped": (["descent"], "the means from 2.2 apart to 2.2"),
    "Careless": (["repeatable", "rows", "precision"], "differs between two equal generators"),
    "Sorting": (
        ["repeatable", "equal-laws", "positive", "rigid-motion"],
        "a sample is changed in place",
    ),
    "Ordered": (["rows", "positive", "rigid-motion"], "permuted generated points is off by"),
    "Coarse": (["precision"], "the float32 discrepancy is off by"),
    "Doubled": (["precision"], "is torch.float64 under the default dtype torch.float64"),
    "Stranded": (["device"], "mul meets tensors on cpu and meta"),
    "Waiting": (["device"], "it waits for the device"),
}
RIGHT = ["Changed", "Projected"]


@pytest.mark.parametrize("name", CAUGHT)
def test_a_wrong_one_is_caught_by_its_check(name):
    checks, said = CAUGHT[name]
    found = failed(getattr(wrong_discrepancies, name))
    assert set(found) == set(checks)
    assert said in found[checks[0]]


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_one_passes(name):
    found = outcomes(getattr(wrong_discrepancies, name))
    assert {result.outcome for result in found.values()} == {"pass"}


def test_a_declared_failure_is_expected():
    found = outcomes(wrong_discrepancies.Declared)
    assert found["positive"].outcome == "expected"
    assert "it compares means alone" in found["positive"].detail
    assert not [result for result in found.values() if result.bad]


@pytest.mark.parametrize("cls", [SlicedW2, MMD, Energy])
def test_ours_pass(cls):
    assert {result.outcome for result in outcomes(cls).values()} == {"pass"}
