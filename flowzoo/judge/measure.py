"""A measured number with its error, and the interface of what measures it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from flowzoo.judge.subject import Subject


@dataclass(frozen=True)
class Measure:
    """A number as it is printed: value ± error.

    Arguments:
        value: The number.
        error: One standard error, all its parts together; None where it is not estimated.
        unit: What it is measured in, e.g. `nats`.
        better: Which direction is better; None for a description.
        parts: The errors one by one, and what else belongs to the number.
        note: How it was computed, in a clause.
    """

    value: float
    error: float | None = None
    unit: str = ""
    better: Literal["lower", "higher"] | None = None
    parts: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def finite(self) -> bool:
        """Whether value and error are numbers."""
        return math.isfinite(self.value) and (self.error is None or math.isfinite(self.error))


class Metric(ABC):
    """Measures a trained flow on test points."""

    kind: ClassVar[str] = "metric"

    @abstractmethod
    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return the numbers by name; empty where the metric does not apply to the subject."""
