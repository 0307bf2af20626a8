"""Each wrong integrator is caught by the check that is meant for it."""

from __future__ import annotations

import pytest
import wrong_integrator_manners
import wrong_integrators
from checking import failed, outcomes

from flowzoo.conformance.probes import known

PAIRED = ("batch-independence", "default-dtype", "permutation", "state", "times")  # two calls

# The first check is the one that is meant; what else fails follows from it.
CAUGHT = {
    "WrongWeight": (["order"], "steps are of order 0.90, expected 4"),
    "WrongAbscissa": (["order"], "steps are of order 1.00, expected 4"),
    "Overrated": (["order"], "steps are of order 1.97, expected 3"),
    "Loose": (
        ["tolerance", "reverse", "gradient", "second-derivatives"],
        "the error is 681 times the tolerance, expected at most 100 times",
    ),
    "OneWay": (["reverse"], "places backwards in time is off by"),
    "FromZero": (
        ["times", "order", "reverse", "stages", "gradient", "second-derivatives"],
        "the field is asked from t = 0 to 1.1 in a solve over (0.3, 1.4)",
    ),
    "Deaf": (["gradient", "discrete-gradient"], "the gradient in the end is off by"),
    "Cut": (["gradient", "discrete-gradient", "second-derivatives"], "the gradient in places is"),
    "Vanishing": (["second-derivatives"], "the gradient has no graph"),
    "Keeping": (["two-solves"], "the gradient in places of two solves is off by"),
    "Modest": (["evaluations"], "nfe.forward is 8, the field was asked 16 times"),
    "Foretelling": (["evaluations", "stages"], "`evaluations` is 17, the field was asked 16 times"),
    "Silent": (["evaluations"], "nfe.backward is 0, the field was asked 32 times"),
    "Spendthrift": (["state"], "places beside a cost is off by"),
    "Lossy": (["state"], "the third of three equal costs has shape (6, 0), expected (6, 1)"),
    "Overwriting": (
        ["state", "order", "reverse", "repeatable", "times"],
        "the state at the start is changed in place",
    ),
    "Unnumbered": (["stages"], "its stages are 0, 0, 0, 0, 0, 0, 0, 0, ..."),
    "Columns": (["times"], "the field gets times that are not of shape ()"),
    "Picky": (["sizes"], "raised RuntimeError: max()"),
    "Steered": (["batch-independence"], "places of a row alone is off by"),
    "Ordered": (
        ["permutation", "batch-independence", "order", "reverse", "gradient"],
        "places of permuted rows is off by",
    ),
    "Single": (["precision", "default-dtype", "order"], "places is torch.float32 with float64"),
    "Following": (["default-dtype"], "places is torch.float64 under the default dtype"),
    "Stuck": (["device"], "on cpu and meta"),
    "Noisy": (["repeatable", *PAIRED], "places again is off by"),
    "Covering": (["failure"], "a solve that leaves the numbers ends in finite ones"),
    "Endless": (["failure"], "a solve did not end within 5000 evaluations of its field"),
}


@pytest.mark.parametrize("name", CAUGHT)
def test_a_wrong_one_is_caught_by_its_check(name, monkeypatch):
    monkeypatch.setattr(known, "PATIENCE", 5000)
    checks, said = CAUGHT[name]
    wrong = vars(wrong_integrators) | vars(wrong_integrator_manners)
    found = failed(wrong[name])
    assert set(found) == set(checks), found
    assert said in found[checks[0]]


@pytest.mark.parametrize(
    ("name", "skipped"),
    [
        ("Right", {"tolerance"}),
        ("RightHeun", {"tolerance"}),
        ("RightAdaptive", {"order", "stages", "device"}),
    ],
)
def test_a_right_one_passes(name, skipped):
    found = outcomes(getattr(wrong_integrators, name))
    assert not {check for check, result in found.items() if result.bad}
    assert {check for check, result in found.items() if result.outcome == "skip"} <= skipped
