"""Each wrong path, schedule and coupling is caught by the check that is meant for it."""

from __future__ import annotations

import pytest
import wrong_matching
from checking import failed, outcomes

# The first check is the one that is meant; what else fails follows from it.
CAUGHT = {
    "Backwards": (["ends", "monotone"], "alpha(0) is"),
    "Unfinished": (["ends"], "alpha(1) is 0.1, expected 0"),
    "WrongSlope": (["derivatives"], "d_sigma is off"),
    "Wavy": (["monotone"], "sigma falls after t = 0.1"),
    "Infinite": (["t-range"], "d_sigma is not finite on [0, 1]"),
    "Outside": (["t-range", "monotone"], "expected a part of [0, 1]"),
    "Doubled": (["shapes"], "alpha is torch.float64 on cpu for t torch.float32"),
    "Stranded": (["shapes"], "meta"),
    "Averaged": (["shapes", "ends", "monotone"], "is off by"),
    "Rough": (["precision"], "alpha is off"),
    "ToData": (["ends"], "x_0 is off the data"),
    "MinusV": (["velocity"], "v is off"),
    "Late": (["t-range"], "t_range is [-0.1, 1]"),
    "Flat": (["shapes"], "v is (1, 1)"),
    "Crowd": (["rows"], "x of a pair alone is off"),
    "Coarse": (["precision"], "x is off"),
    "Misread": (["conversions"], "the score given the data is off"),
    "Mixed": (["conversions"], "data from velocity is off"),
    "Nearest": (["marginals"], "is biased by"),
    "Favourite": (["marginals"], "is biased by"),
    "Dropped": (
        ["shapes", "marginals", "repeatable", "any-points"],
        "15 data rows are paired with 16 noise",
    ),
    "Places": (["shapes", "marginals", "repeatable", "any-points"], "expected row numbers"),
    "Careless": (["repeatable"], "differ between two equal generators"),
    "Sorting": (["leaves-rows"], "the noise is changed in place"),
}
RIGHT = ["Changed", "Bent", "Shuffled", "Resampled"]


@pytest.mark.parametrize("name", CAUGHT)
def test_a_wrong_one_is_caught_by_its_check(name):
    checks, said = CAUGHT[name]
    found = failed(getattr(wrong_matching, name))
    assert set(found) == set(checks)
    assert said in found[checks[0]]


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_one_passes(name):
    found = outcomes(getattr(wrong_matching, name))
    assert not [result for result in found.values() if result.bad]
    assert {k for k, r in found.items() if r.outcome == "skip"} <= {"conversions"}


def test_a_declared_failure_is_expected():
    found = outcomes(wrong_matching.Blurred)
    assert found["ends"].outcome == "expected"
    assert "it blurs the data by 0.3 (x_0 is off the data by" in found["ends"].detail
    assert not [result for result in found.values() if result.bad]


@pytest.mark.parametrize("kind", ["path", "schedule", "coupling"])
def test_registered_ones_pass(kind):
    from flowzoo.registry import Registry

    for name in Registry.installed().names(kind):
        assert not failed(f"{kind}/{name}")
