"""Every registered flow keeps its promises."""

from __future__ import annotations

from flowzoo.registry import Registry
from flowzoo.testing import conformance


@conformance(*(f"flow/{name}" for name in Registry.installed().names("flow")))
def test_conformance(check):
    check()
