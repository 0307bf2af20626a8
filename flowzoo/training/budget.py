"""What a fit has spent, and which part of its budget a stage may spend."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from flowzoo.settings import Budget

Number: TypeAlias = int | float


@dataclass
class Spent:
    """Counters of a fit, over all of its stages; evaluations are those of training."""

    steps: int = 0
    seconds: float = 0.0
    samples: int = 0
    nfe_forward: int = 0
    nfe_backward: int = 0

    @property
    def nfe(self) -> int:
        """Evaluations of the field, forward and backward."""
        return self.nfe_forward + self.nfe_backward


@dataclass(frozen=True)
class Allotment:
    """What one stage may spend: from `start` to `end` of every limited counter.

    Arguments:
        start: The counters at the stage's start.
        end: The counters at which it stops.
    """

    start: dict[str, Number] = field(default_factory=dict)
    end: dict[str, Number] = field(default_factory=dict)

    def reached(self, spent: Spent) -> str | None:
        """Return the name of the first limit that is reached, else None."""
        return next((name for name, end in self.end.items() if getattr(spent, name) >= end), None)

    def fraction(self, spent: Spent) -> float:
        """Return which part is used, from 0 to 1: that of the counter nearest to its limit."""
        used = [
            (getattr(spent, name) - self.start[name]) / (end - self.start[name])
            for name, end in self.end.items()
            if end > self.start[name]
        ]
        return min(1.0, max(used, default=1.0))

    @property
    def steps(self) -> int | None:
        """The number of steps, where they are limited."""
        return int(self.end["steps"] - self.start["steps"]) if "steps" in self.end else None


def allot(budget: Budget, spent: Spent, share: float) -> Allotment:
    """Return a stage's part: the given share, from 0 to 1, of whatever is left of each limit.

    Of what is counted it is at least one, so that a short budget is taken by the first stages.
    """
    start: dict[str, Number] = {}
    end: dict[str, Number] = {}
    for name, limit in budget.limits().items():
        start[name] = used = getattr(spent, name)
        rest = max(0, limit - used)
        part = share * rest
        end[name] = used + (part if name == "seconds" else max(round(part), min(1, rest)))
    return Allotment(start, end)
