"""Each wrong trace estimator is caught by its check, and the sequential test keeps its rates."""

from __future__ import annotations

import pytest
import torch
import wrong_traces
from checking import failed, outcomes

from flowzoo.conformance.check import Failed, Skipped
from flowzoo.conformance.probes.sequential import mean_is_zero

PAIRED = ("batch-independence", "default-dtype", "permutation", "precision")  # compare two calls

# The first check is the one that is meant; what else fails follows from it.
CAUGHT = {
    "Biased": (["unbiased", "unbiased-gradient"], "the estimate of tr A (A of norm 1) is biased"),
    "Squared": (["unbiased", "unbiased-gradient"], "is biased by"),
    "Corner": (["unbiased", "unbiased-gradient"], "is biased by"),
    "Detached": (["unbiased-gradient"], "the estimate has no gradient in A"),
    "HalfDetached": (["unbiased-gradient"], "the gradient in A is biased by -0.5"),
    "Partial": (["exact", "unbiased-gradient"], "tr A in 2 dimensions is off"),
    "Binary": (["spectral"], "tr log A is off"),
    "BinaryEstimate": (["spectral"], "the estimate of tr log A (log A of norm 1) is biased"),
    "Scaled": (["probes", "unbiased", "unbiased-gradient"], "the covariance of the probes is bi"),
    "Fresh": (["probes", "default-dtype"], "two generators with the same seed give different"),
    "Shared": (["probes"], "all places have the same probes"),
    "Frozen": (["probes", "unbiased", "unbiased-gradient"], "different seeds give the same probes"),
    "Flat": (
        ["probes", "batch-independence", "permutation"],
        "probes are (5, 4) for places (5, 4), expected (k, 5, 4)",
    ),
    "DoubleProbes": (["probes"], "probes are torch.float64 for torch.float32 places"),
    "Hidden": (["repeatable", *PAIRED], "the estimate of tr A again is off"),
    "Shrunk": (["batch-independence"], "of a row alone is off"),
    "Backwards": (["permutation", "batch-independence"], "of permuted rows is off"),
    "Single": (["precision", "default-dtype"], "is torch.float32 with float64 inputs"),
    "Following": (["default-dtype"], "is torch.float64 under the default dtype torch.float64"),
    "Stuck": (["device"], "on cpu and meta"),
    "Stacked": (["sizes", "batch-independence"], "the estimate is (1, 1) for 1 maps"),
    "Secretive": (["needs"], "refuses a map that is not symmetric undeclared"),
    "Demanding": (["needs"], "takes maps that lack what it declares to need"),
    "Impossible": (["needs"], "needs luck, which no velocity can provide"),
    "Often": (["redraw"], "redraw is 'often'"),
}


@pytest.mark.parametrize("name", CAUGHT)
def test_a_wrong_one_is_caught_by_its_check(name):
    checks, said = CAUGHT[name]
    found = failed(getattr(wrong_traces, name))
    assert set(found) == set(checks), found
    assert said in found[checks[0]]


@pytest.mark.parametrize(("name", "skipped"), [("Right", "exact"), ("RightExact", "unbiased")])
def test_a_right_one_passes(name, skipped):
    found = outcomes(getattr(wrong_traces, name))
    assert {check for check, result in found.items() if result.outcome == "skip"} == {skipped}
    assert not {check for check, result in found.items() if result.bad}


# --- the sequential test -------------------------------------------------------------------------


def normal(generator, mean, entries=4):
    return lambda: mean + torch.randn(entries, generator=generator, dtype=torch.float64)


def verdicts(mean, resolution, alpha, times):
    """Return how often the test fails, passes and does not come to an end."""
    counts = {"fail": 0, "pass": 0, "open": 0}
    generator = torch.Generator().manual_seed(0)
    for _ in range(times):
        try:
            mean_is_zero(normal(generator, mean), resolution, "it", alpha)
            counts["pass"] += 1
        except Failed:
            counts["fail"] += 1
        except Skipped:
            counts["open"] += 1
    return counts


def test_false_alarms_are_as_rare_as_stated_over_all_looks():
    """At 20 % over all looks and entries: 400 repetitions give 80 +- 8 at most."""
    found = verdicts(0.0, 0.2, 0.2, 400)
    assert 10 < found["fail"] <= 80 + 3 * 8
    assert found["open"] == 0


def test_a_bias_of_one_resolution_is_found():
    assert verdicts(0.5, 0.5, 1e-6, 100) == {"fail": 100, "pass": 0, "open": 0}


def test_no_bias_is_passed_when_the_resolution_is_reached():
    assert verdicts(0.0, 0.5, 1e-6, 100) == {"fail": 0, "pass": 100, "open": 0}


def test_a_resolution_out_of_reach_is_said():
    with pytest.raises(Skipped, match=r"after 1024 draws its bias is known to \+- 0.2 only"):
        mean_is_zero(normal(torch.Generator().manual_seed(0), 0.0), 1e-3, "it")


def test_constants_are_compared_to_rounding():
    mean_is_zero(lambda: torch.zeros(3, dtype=torch.float64), 0.01, "it")
    with pytest.raises(Failed, match=r"it is biased by 1e-09"):
        mean_is_zero(lambda: torch.full((3,), 1e-9, dtype=torch.float64), 0.01, "it")
    with pytest.raises(Failed, match="it is not finite"):
        mean_is_zero(lambda: torch.tensor([0.0, torch.nan]), 0.01, "it")
