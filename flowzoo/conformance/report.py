"""What came of checks: results, their tally in words, a badge. Known without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["pass", "fail", "expected", "unexpected", "skip"]
BAD: tuple[Outcome, ...] = ("fail", "unexpected")


@dataclass(frozen=True)
class Result:
    """What came of one check of one component.

    Arguments:
        kind: The component's kind.
        name: The component, as in `trace/hutchinson`.
        check: The check's name.
        about: What it promises.
        outcome: `pass`; `fail`; `expected`, a failure that the component declares; `unexpected`, a
            declared failure that did not happen; `skip`, it does not apply.
        detail: What was measured, or why not, in a clause.
        seconds: How long it took.
        traceback: Where it failed; empty otherwise.
    """

    kind: str
    name: str
    check: str
    about: str
    outcome: Outcome
    detail: str
    seconds: float = 0.0
    traceback: str = field(default="", repr=False)

    @property
    def bad(self) -> bool:
        """Whether somebody has to act on it: a failure, or a declaration that is out of date."""
        return self.outcome in BAD


def tally(results: Iterable[Result]) -> str:
    """Return counts in words: `17 passed, 1 expected failure, 2 skipped`."""
    counts = Counter(result.outcome for result in results)
    words: dict[Outcome, tuple[str, str]] = {
        "pass": ("passed", "passed"),
        "fail": ("failed", "failed"),
        "unexpected": ("unexpected pass", "unexpected passes"),
        "expected": ("expected failure", "expected failures"),
        "skip": ("skipped", "skipped"),
    }
    said = [f"{counts[o]} {one if counts[o] == 1 else many}"
            for o, (one, many) in words.items() if counts[o]]  # fmt: skip
    return ", ".join(said) or "nothing to check"


def badge(results: Sequence[Result]) -> str:
    """Return a Markdown image for a README: how many of the checks that apply were passed.

    It is green where all were, yellow where some failures were declared, red where one was not.
    """
    applied = [result for result in results if result.outcome != "skip"]
    passed = sum(result.outcome == "pass" for result in applied)
    whole = "brightgreen" if passed == len(applied) else "yellow"
    colour = "red" if any(result.bad for result in results) else whole
    url = f"https://img.shields.io/badge/flowzoo_check-{passed}%2F{len(applied)}-{colour}"
    return f"![flowzoo check {passed}/{len(applied)}]({url})"
