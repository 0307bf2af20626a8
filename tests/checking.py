"""What the checks of a kind say of a component: for tests of checks with wrong components."""

from __future__ import annotations

from flowzoo.conformance.check import ANY
from flowzoo.conformance.finding import cases, specimens
from flowzoo.conformance.runner import run


def outcomes(component, kind=None, only=()):
    """Return {check: result} of the checks of a component's own kind; it is a class or a name.

    With several examples of its own, those after the first one are `check#2` and so on; of examples
    that a class inherits, the first one is enough.
    """
    results, found = {}, specimens((component,), kind=kind)
    if isinstance(component, type) and not {"examples", "__init__"} & vars(component).keys():
        found = found[:1]
    for case in cases(found, only):
        if case.check.kind != ANY:
            _, number, which = case.specimen.name.partition("#")
            results[case.check.name + number + which] = run(case.specimen, case.check)
    assert results
    return results


def failed(component, kind=None, only=()):
    """Return {check: what it said} of the checks that a component does not pass."""
    found = outcomes(component, kind, only)
    return {name: result.detail for name, result in found.items() if result.bad}
