"""The checks as tests: `flowzoo check` for pytest.

from flowzoo.testing import conformance

@conformance("my-trace")
def test_conformance(check):
    check()
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowzoo.conformance.finding import Case, cases, specimens
from flowzoo.registry import Registry

if TYPE_CHECKING:
    import pytest

__all__ = ["conformance"]


@dataclass(frozen=True)
class _Run:
    """A case as a function without arguments, which is what a test gets."""

    case: Case

    def __call__(self) -> None:
        import pytest

        from flowzoo.conformance.check import Skipped
        from flowzoo.conformance.runner import measure

        try:
            measure(self.case.specimen, self.case.check)
        except Skipped as why:
            pytest.skip(str(why))


def conformance(
    *names: str | type,
    kind: str | Collection[str] | None = None,
    plugins: Iterable[str | Path] = (),
    check: str | Collection[str] = (),
) -> pytest.MarkDecorator:
    """Return a decorator that runs a test, which takes and calls `check`, once for every check.

    A check that fails raises; one that does not apply is skipped; a failure that the component
    declares is expected, strictly: once it passes, the test fails until the declaration is dropped.

    Arguments:
        names: Components (`my-trace`, `trace/my-trace`), recipes, or classes, registered or not;
            none means all that are installed.
        kind: Only these kinds.
        plugins: Local plugin files whose components have names, too.
        check: Only these checks.

    Raises:
        UserError: A name, a kind, a check or a plugin file is wrong.
    """
    import pytest

    found = specimens(names, Registry.installed().with_files(plugins), kind)
    only = (check,) if isinstance(check, str) else tuple(check)
    parameters = []
    for case in cases(found, only):
        why = case.specimen.expected.get(case.check.name)
        marks = [pytest.mark.xfail(reason=why, strict=True)] if why else []
        parameters.append(pytest.param(_Run(case), id=case.id, marks=marks))
    return pytest.mark.parametrize("check", parameters)
