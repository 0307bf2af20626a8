"""The flow of every recipe keeps its promises; one recipe for all that differ in numbers only."""

from __future__ import annotations

from flowzoo.testing import conformance


@conformance(kind="recipe")
def test_conformance(check):
    check()
