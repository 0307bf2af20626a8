"""Each wrong inversion is caught by the check that is meant for it."""

from __future__ import annotations

import pytest
import wrong_inversions
from checking import failed, outcomes

from flowzoo_cp_flow.lbfgs import LBFGS
from flowzoo_cp_flow.newton import Newton

# The first check is the one that is meant; what else fails follows from it.
CAUGHT = {
    "Column": (["shapes", "residual"], "the residual has shape (5, 5), expected (5,)"),
    "Doubled": (["shapes", "precision"], "z is torch.float32, x torch.float64"),
    "Hasty": (
        ["solves", "contexts", "failures", "batch-independence", "gradients"],
        "cosh in R^3: grad F(x) - z is off by",
    ),
    "Unmoved": (
        ["solves", "contexts", "failures", "batch-independence", "gradients", "precision"],
        "cosh in R^3: grad F(x) - z is off by",
    ),
    "Endless": (["solves"], "did not end within 5000 evaluations of F"),
    "Crossed": (["contexts", "gradients"], "contexts: grad F(x) - z is off by"),
    "Shrunken": (["residual"], "the residual is off by"),
    "Boastful": (["residual"], "x is farther away than `distance`"),
    "Meeting": (
        ["batch-independence", "solves", "contexts", "residual", "failures", "gradients"],
        "x of a row alone is off by",
    ),
    "Silent": (["failures"], "a z with no x is said to have converged"),
    "Spoiled": (["failures"], "a z with no x spoils the other samples"),
    "Mute": (["failures"], "a z with no x is refused without a reason: 'it failed'"),
    "Blaming": (["failures"], "a z with no x raises UserError, not Diverged"),
    "Lenient": (["failures"], "a z with no x raises nothing"),
    "Constant": (["gradients"], "x is not differentiable"),
    "Halved": (["gradients"], "the gradient in z is off by"),
    "Unconditional": (["gradients"], "no gradient arrives in context"),
    "Shifting": (["manners"], "z or a weight is changed in place"),
    "Guessing": (["manners", "residual"], "torch's global generator is used"),
    "Recording": (["manners"], "`solve` records a graph"),
    "Rough": (["precision"], "the float32 residual is off by"),
}
RIGHT = ["Changed", "Called"]


@pytest.mark.parametrize("name", CAUGHT)
def test_a_wrong_one_is_caught_by_its_check(name):
    checks, said = CAUGHT[name]
    found = failed(getattr(wrong_inversions, name))
    assert set(found) == set(checks)
    assert said in found[checks[0]]


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_one_passes(name):
    found = outcomes(getattr(wrong_inversions, name))
    assert {result.outcome for result in found.values()} == {"pass"}


def test_newton_passes_in_all_its_examples():
    found = outcomes(Newton)
    assert len(found) == 3 * 9
    assert {result.outcome for result in found.values()} == {"pass"}


def test_l_bfgs_passes_but_for_what_it_declares():
    found = outcomes(LBFGS)
    assert found.pop("failures").outcome == "expected"
    assert {result.outcome for result in found.values()} == {"pass"}
