"""Numbers below the normal range are zero in a fit, and what they were outside."""

from __future__ import annotations

import pytest
import torch
from tiny_flows import Killed, Loud, fitted, killed_at

from flowzoo.training.subnormals import flushed_subnormals

TINY = 1e-40


def flushed():
    return bool(torch.tensor(TINY) * 1.0 == 0)


@pytest.fixture(autouse=True)
def _as_usual():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormal numbers")
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("before", [False, True])
def test_inside_they_are_zero_and_outside_as_before(before):
    torch.set_flush_denormal(before)
    with flushed_subnormals():
        assert flushed()
    assert flushed() == before


def test_a_fit_flushes_them():
    found = []

    def note(_, loss):
        found.append(flushed())
        return loss

    fitted(objective=Loud(before=note))
    assert all(found)
    assert not flushed()


def test_a_killed_fit_leaves_the_mode_as_it_was():
    with pytest.raises(Killed):
        fitted(observe=killed_at(1))
    assert not flushed()
