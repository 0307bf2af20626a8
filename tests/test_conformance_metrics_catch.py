"""Each wrong metric is caught by the check that is meant for it."""

from __future__ import annotations

import pytest
import wrong_metrics
from checking import failed, outcomes

# The first check is the one that is meant; what else fails follows from it.
CAUGHT = {
    "Undefined": (["finite", "context", "small", "worse"], "nll of the optimal flow is not finite"),
    "Nameless": (["finite"], "does not mention `secret`"),
    "Camel": (["finite", "context", "small"], "the name 'MyNumber' is not in kebab case"),
    "Tensorial": (
        ["finite", "context", "small"],
        "its value of nll of the optimal flow is a Tensor",
    ),
    "Negative": (
        ["finite", "context", "small", "order", "perfect"],
        "the error of nll of the optimal flow is -0.",
    ),
    "Upwards": (["worse"], "nll of no spoiled flow is clearly worse than"),
    "Indifferent": (["worse"], "constant of no spoiled flow is clearly worse than 1"),
    "Careless": (["repeatable"], "torch's global generator is used"),
    "Head": (["order"], "nll of reversed test points differs by"),
    "Trains": (["leaves-flow"], "the optimal flow is changed by measuring it"),
    "Solves": (["leaves-flow"], "the optimal flow is changed by measuring it"),
    "Rounds": (["leaves-flow"], "the optimal flow is changed by measuring it"),
    "Centres": (["leaves-flow"], "the test points are changed by measuring"),
    "Optimist": (["perfect"], "nll of the optimal flow is"),
    "WrongIdeal": (["perfect"], "expected 1.5 ±"),
    "Blind": (["context"], "ValueError: the flow is conditioned, but no context is given"),
    "Spread": (["small"], "1 test points raise AssertionError"),
}
RIGHT = {
    "Right": set(),
    "Own": set(),
    "Refuses": set(),
    "Described": {"perfect", "worse"},
    "Silent": {"finite", "context", "repeatable", "order", "perfect", "worse"},
}


@pytest.mark.parametrize("name", CAUGHT)
def test_a_wrong_one_is_caught_by_its_check(name):
    checks, said = CAUGHT[name]
    found = failed(getattr(wrong_metrics, name))
    assert set(found) == set(checks)
    assert said in found[checks[0]]


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_one_passes(name):
    found = outcomes(getattr(wrong_metrics, name))
    assert not [result for result in found.values() if result.bad]
    assert {check for check, result in found.items() if result.outcome == "skip"} == RIGHT[name]


@pytest.mark.parametrize("name", ["nll", "mmd", "modes", "transport"])
def test_registered_ones_pass(name):
    assert not failed(f"metric/{name}")


def test_times_are_known_not_to_repeat():
    assert outcomes("metric/throughput", only=["repeatable"])["repeatable"].outcome == "expected"
