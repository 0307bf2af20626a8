"""Each wrong convex potential is caught by the check that is meant for it."""

from __future__ import annotations

import pytest
import wrong_convex
import wrong_convex_manners
from checking import failed, outcomes

WRONG = vars(wrong_convex) | vars(wrong_convex_manners)

# The first check is the one that is meant; what else fails follows from it.
CAUGHT = {
    "Saddle": (["convex", "floor"], "H has an eigenvalue of -0.036"),
    "FarOut": (["convex", "floor", "finite"], "at a distance of 30"),
    "Negative": (["convex", "floor"], "half way between two points F is 0.0016"),
    "TooHigh": (["floor"], "an eigenvalue lies 0.01 (relative) below the floor"),
    "Floorless": (["floor"], "its Hessian says no floor"),
    "Apart": (["at"], "the point's F is off by"),
    "Uphill": (["at"], "the gradient is off by"),
    "Denying": (["at"], "its Hessian does not say that it is symmetric"),
    "Larger": (["hessian"], "H is off by"),
    "Incomplete": (["hessian"], "H is off by"),
    "Neighbours": (
        ["hessian", "batch-independence", "permutation", "context"],
        "H^T p for p (5, 3) is off by",
    ),
    "OtherRows": (["hessian"], "H of some rows is off by"),
    "WrongTrace": (["hessian"], "tr H is off by"),
    "Forgetting": (["hessian"], "H^T p for p (3, 5, 3) is off by"),
    "Halved": (["gradients"], "the gradient of F is off by"),
    "Dead": (["second-derivatives"], "the gradient of grad F and log det H is off by"),
    "OneSided": (
        ["second-derivatives", "third-derivatives"],
        "the gradient of grad F and log det H is off by",
    ),
    "Once": (["third-derivatives"], "the slope's own is off by"),
    "Kinked": (["finite", "hessian"], "H is not finite at a distance of 0"),
    "Overflowing": (["finite", "convex", "floor"], "is not finite at a distance of 100"),
    "Column": (["shapes"], "F has shape (5, 1), expected (5,)"),
    "Centred": (["batch-independence", "hessian", "context"], "F of a row alone is off by"),
    "Counting": (["repeatable"], "a weight is changed in place"),
    "Dropping": (["modes"], "F in training mode is off by"),
    "Recording": (["modes"], "record a graph under no_grad"),
    "Brittle": (["sizes"], "raised RuntimeError: max()"),
    "Single": (["precision"], "F in float32 is off by"),
    "Following": (
        ["default-dtype", "precision", "shapes", "convex"],
        "F is torch.float32 under the default dtype torch.float32",
    ),
    "Stuck": (["device"], "on cpu and meta"),
    "Unsaved": (["save-load"], "F after loading is off by"),
    "Deaf": (["context"], "the context changes nothing"),
    "Shared": (["context"], "F of a row alone is off by"),
    "Lenient": (["context"], "no context is taken without a word"),
    "Ignoring": (["context"], "of which it has no use, is taken without a word"),
    "Restless": (["settle"], "it still waits after a batch"),
    "Idle": (["settle"], "a batch changes nothing"),
    "Ordered": (["settle"], "F after a permuted batch is off by"),
    "Explosive": (["settle"], "equal points make it infinite or nan"),
    "Attribute": (["settle"], "it waits again after being loaded"),
    "Remembering": (["settle"], "it does not wait after the state of one that waits was loaded"),
    "Wasted": (["settle"], "it waits again after being copied"),
}


@pytest.mark.parametrize("name", CAUGHT)
def test_a_wrong_one_is_caught_by_its_check(name):
    checks, said = CAUGHT[name]
    found = failed(WRONG[name])
    assert set(found) == set(checks), found
    assert said in found[checks[0]]


@pytest.mark.parametrize(
    ("name", "skipped"),
    [("Right", {"settle"}), ("RightClosed", {"settle"}), ("RightWaiting", set())],
)
def test_a_right_one_passes(name, skipped):
    found = outcomes(WRONG[name])
    assert not {check for check, result in found.items() if result.bad}
    assert {check for check, result in found.items() if result.outcome == "skip"} == skipped


@pytest.mark.parametrize("name", ["icnn", "input-augmented"])
def test_ours_pass(name):
    found = outcomes(f"convex/{name}")
    assert not {check: result.detail for check, result in found.items() if result.bad}
