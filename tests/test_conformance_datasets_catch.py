"""Each wrong data set is caught by the check that is meant for it, and by no other."""

from __future__ import annotations

import pytest
import wrong_data
import wrong_oracles
from checking import failed, outcomes

ROWS = {
    "Single": ("shapes", "torch.float32"),
    "AsItLikes": ("shapes", "50 rows where 200 were asked for"),
    "Lottery": ("repeatable", "differs between two loads"),
    "Reseeds": ("repeatable", "global random generator"),
    "OneSeed": ("seeds", "seeds 1 and 2 give the same rows in train, val, test"),
    "Leak": ("splits", "1 of the 200 test rows are in train"),
    "Anonymous": ("fingerprint", "scale 1.75 has the fingerprint of scale 1.0"),
    "Counting": ("fingerprint", "changes when the rows are loaded"),
    "Unhashable": ("fingerprint", "not JSON serializable"),
    "HalfContext": ("context", "val has no context"),
    "Ragged": ("context", "the context of val is (400, 1)"),
    "Silent": ("notes", "notes must say the preprocessing"),
    "FarOff": ("standardise", "is off by"),
}
LAWS = {
    "Hopeful": ("density", "mean -log_prob - entropy is 0."),
    "Heavy": ("mass", "integrates to 1.04"),
    "Batched": ("density", "seven rows alone is off"),
    "Uphill": ("score", "the score is off"),
    "Turned": ("transport", "dT/dx, transposed, is off"),
    "Narrow": ("transport", "the covariance of T(x) is"),
    "NoReturn": ("transport", "inverse_transport(transport(x)) is off"),
    "Frozen": ("velocity", "the velocity at t = 0.1 is off"),
    "Timeless": ("potential", "d Phi/dt"),
    "Dear": ("cost", "transport_cost is -"),
    "Mismatched": ("matching-velocity", "standard errors from"),
    "Lopsided": ("modes", "log_prob of 2 modes is off"),
}


@pytest.mark.parametrize("name", ["Right", "Generator"])
def test_a_right_one_passes_and_little_is_skipped(name):
    found = outcomes(getattr(wrong_data, name))
    skipped = {check for check, result in found.items() if result.outcome == "skip"}
    assert not [result for result in found.values() if result.bad]
    assert skipped == {"context", "modes"}


@pytest.mark.parametrize("name", ROWS | LAWS)
def test_a_wrong_one_is_caught_by_its_check_alone(name):
    check, said = (ROWS | LAWS)[name]
    found = failed(getattr(wrong_data if name in ROWS else wrong_oracles, name))
    assert list(found) == [check]
    assert said in found[check]


def test_rows_that_are_no_numbers_are_caught():
    found = failed(wrong_data.Hole)
    assert set(found) == {"shapes", "standardise"}
    assert "train has values that are not finite" in found["shapes"]
    assert "its rows cannot be used: refused (train)" in failed(wrong_data.Refused)["shapes"]


def test_data_that_are_not_here_are_skipped_with_the_sentence():
    found = outcomes(wrong_data.Missing)
    assert {result.outcome for result in found.values()} == {"skip"}
    assert all("set FLOWZOO_DATA" in result.detail for result in found.values())


def test_published_data_that_repeat_rows_are_skipped_with_the_count(tmp_path):
    file = tmp_path / "rows.bin"
    file.write_bytes(b"rows")

    class Published(wrong_data.Leak):
        def files(self):
            return (file,)

    result = outcomes(Published)["splits"]
    assert result.outcome == "skip"
    assert "1 of the 200 test rows are in train" in result.detail


@pytest.mark.parametrize("name", ["moons", "gaussian", "redwine", "mixture"])
def test_registered_ones_pass(name):
    assert not failed(f"dataset/{name}")
