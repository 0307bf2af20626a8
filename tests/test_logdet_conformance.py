"""The check of a log-determinant's gradient catches what is wrong, and passes what is right."""

from __future__ import annotations

import pytest
import wrong_traces_logdet
from checking import failed, outcomes

CHECK = "spectral-gradient"


@pytest.mark.parametrize(
    ("name", "said"),
    [("Half", "the gradient of tr log A is off"), ("OfTheTrace", "(A^-1 of norm 1) is biased by")],
)
def test_a_wrong_gradient_is_caught(name, said):
    found = failed(getattr(wrong_traces_logdet, name))
    assert set(found) == {CHECK}, found
    assert said in found[CHECK]


@pytest.mark.parametrize(
    ("name", "said"), [("ByHand", "off by"), ("Without", "tr log A has no gradient")]
)
def test_a_right_one_and_none_pass(name, said):
    assert not failed(getattr(wrong_traces_logdet, name))
    assert said in outcomes(getattr(wrong_traces_logdet, name), only=[CHECK])[CHECK].detail
