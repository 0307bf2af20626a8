"""Each wrong velocity and potential is caught by the check that is meant for it."""

from __future__ import annotations

import pytest
import wrong_field_manners
import wrong_fields
from checking import failed, outcomes

PAIRED = ["batch-independence", "context", "permutation", "time"]  # compare two calls
ANEW = ["default-dtype", "jacobian", "modes", "point", "together", *PAIRED]

# The first check is the one that is meant; what else fails follows from it.
CAUGHT = {
    "Transposed": (["jacobian"], "A is off by"),
    "WrongTrace": (["jacobian"], "tr A is off by"),
    "Remembering": (["jacobian"], "A^T p of another p is off by"),
    "Dead": (["second-derivatives"], "the gradient of tr A is off by"),
    "Along": (["together"], "the trace of a sum, computed along, is off by"),
    "Unlearned": (["together"], "the gradient of a sum, computed along, is off by"),
    "FalselySymmetric": (["symmetric", "jacobian"], "A - A^T is off by"),
    "Denying": (["symmetric"], "provides symmetric, which its Jacobian denies"),
    "Apart": (["point"], "the point's v is off by"),
    "WrongSign": (["phi-t"], "grad phi_t is off by"),
    "Withholding": (["phi-t"], "provides phi_t, which its points lack"),
    "Uphill": (["gradient"], "the gradient is off by"),
    "Timeless": (["at"], "phi_t is off by"),
    "Doubled": (["hessian"], "H is off by"),
    "Columns": (["shapes"], "the value is (5, 1) for t (n,), not (5,)"),
    "Centred": (
        ["batch-independence", "context", "jacobian", "time"],
        "v of a row alone is off by",
    ),
    "Ordered": (["permutation", "batch-independence", "context", "time"], "v of permuted rows is"),
    "Single": (["precision"], "v in float32 is off by"),
    "Following": (["default-dtype"], "v is torch.float64 under the default dtype torch.float64"),
    "Stuck": (["device"], "on cpu and meta"),
    "Noisy": (["repeatable", "save-load", *ANEW], "v again is off by"),
    "Learning": (["repeatable", *ANEW], "a weight is changed in place"),
    "Overwriting": (["shapes", "time"], "an input is changed in place"),
    "Brittle": (["sizes"], "raised RuntimeError: max()"),
    "Jumping": (["time"], "the value jumps by 0.21 in time, and not less in smaller steps"),
    "FirstTime": (["time", "batch-independence", "context", "permutation"], "v with a time each"),
    "Deaf": (["context"], "the context changes nothing"),
    "Shared": (["context"], "v of a row alone is off by"),
    "Lenient": (["context"], "no context is taken without a word"),
    "Unsaved": (["save-load"], "v after loading is off by"),
    "Recording": (["modes", "point"], "v under no_grad is off by"),
    "Halved": (["gradients"], "the gradient of the value is off by"),
}


@pytest.mark.parametrize("name", CAUGHT)
def test_a_wrong_one_is_caught_by_its_check(name):
    checks, said = CAUGHT[name]
    wrong = vars(wrong_fields) | vars(wrong_field_manners)
    found = failed(wrong[name])
    assert set(found) == set(checks), found
    assert said in found[checks[0]]


@pytest.mark.parametrize(
    ("name", "skipped"),
    [
        ("Right", {"phi-t", "symmetric"}),
        ("RightGradient", {"context"}),
        ("RightPotential", {"context"}),
    ],
)
def test_a_right_one_passes(name, skipped):
    found = outcomes(getattr(wrong_fields, name))
    assert not {check for check, result in found.items() if result.bad}
    assert {check for check, result in found.items() if result.outcome == "skip"} == skipped
