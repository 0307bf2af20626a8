"""Every other registered component keeps its promises, and no kind is left out of these tests."""

from __future__ import annotations

import test_conformance_flows
import test_conformance_numerics
import test_conformance_recipes

from flowzoo.conformance.finding import cases, specimens
from flowzoo.registry import Registry
from flowzoo.testing import conformance

ELSEWHERE = {"flow", "velocity", "potential", "trace", "integrator", "regularizer"}


@conformance(kind=set(Registry.installed().kinds()) - ELSEWHERE)
def test_conformance(check):
    check()


def test_everything_is_checked():
    modules = (test_conformance_flows, test_conformance_recipes, test_conformance_numerics)
    tests = [test_conformance, *(module.test_conformance for module in modules)]
    run = [case.id for test in tests for case in test.pytestmark[0].args[1]]
    assert sorted(run) == sorted(case.id for case in cases(specimens()))
