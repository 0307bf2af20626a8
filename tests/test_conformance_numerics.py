"""Every registered velocity, potential, trace, integrator and regularizer keeps its promises."""

from __future__ import annotations

from flowzoo.testing import conformance


@conformance(kind=("velocity", "potential", "trace", "integrator", "regularizer"))
def test_conformance(check):
    check()
