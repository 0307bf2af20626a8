"""A named check of a component, and what it says: passed with what was measured, or failed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from flowzoo.conformance.specimen import Specimen

ANY = "any"  # the kind of a check that every component gets


class Failed(AssertionError):
    """A component does not keep a promise; the sentence says what was measured and expected."""


class Skipped(Exception):
    """A check does not apply; the sentence says why."""


@dataclass(frozen=True)
class Check:
    """One promise that components of a kind keep.

    Arguments:
        name: As in `ladj`; what a component's `expected_failures` names.
        kind: The kind of component, or `any`.
        run: Makes and probes components; returns what it measured in a clause, raises Failed or
            Skipped.
        of: The class whose subclasses it is for.
    """

    name: str
    kind: str
    run: Callable[[Specimen], str]
    of: type = object

    @property
    def about(self) -> str:
        """What is promised, in a sentence."""
        return (inspect.getdoc(self.run) or "").partition("\n")[0]


def check(kind: str, of: type = object) -> Callable[[Callable[[Specimen], str]], Check]:
    """Return a decorator that makes a function the check of its name: `two_calls` is `two-calls`.

    Arguments:
        kind: The kind of component that it checks, or `any`.
        of: The class whose subclasses it is for.
    """

    def decorated(run: Callable[[Specimen], str]) -> Check:
        return Check(run.__name__.strip("_").replace("_", "-"), kind, run, of)

    return decorated


def require(condition: bool, sentence: str) -> None:
    """Raise Failed with a sentence unless a condition holds."""
    if not condition:
        raise Failed(sentence)


def off_by(found: Tensor, expected: Tensor, allowed: float, what: str) -> str:
    """Return by how much a tensor is off, relative to 1 + |expected|.

    Arguments:
        found: What the component gave.
        expected: What it should have given, of the same shape.
        allowed: The largest deviation that passes.
        what: Subject of the sentence, as in `ladj`.

    Raises:
        Failed: It is off by more, is not finite where it should be, or has another shape.
    """
    require(
        found.shape == expected.shape,
        f"{what} has shape {tuple(found.shape)}, expected {tuple(expected.shape)}",
    )
    if not found.numel():
        return f"{what} is empty, as expected"
    found, expected = found.detach().double(), expected.detach().double()
    deviation = (found - expected).abs() / (1 + expected.abs())
    worst = float(deviation.nan_to_num(nan=math.inf).max())
    require(worst <= allowed, f"{what} is off by {worst:.2g} (relative), allowed {allowed:.2g}")
    return f"{what} off by {worst:.1e}, allowed {allowed:.0e}"
