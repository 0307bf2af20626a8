"""A measured number with its error, and the interface of what measures it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from torch import Tensor

from flowzoo.errors import UserError

if TYPE_CHECKING:
    from flowzoo.judge.subject import Subject

Better: TypeAlias = Literal["lower", "higher"]

CONFIDENCE = 0.99  # of the interval value ± error: a table of a hundred numbers has one outside


@dataclass(frozen=True)
class Measure:
    """A number as it is printed: value ± error.

    Arguments:
        value: The number.
        error: Half the width of a 99 % interval, all parts together; None where not estimated.
        unit: What it is measured in, e.g. `nats`.
        better: Which direction is better; None for a description.
        parts: The errors one by one, and what else belongs to the number.
        note: How it was computed, in a clause.
    """

    value: float
    error: float | None = None
    unit: str = ""
    better: Better | None = None
    parts: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def finite(self) -> bool:
        """Whether value, error and parts are numbers."""
        return all(map(math.isfinite, (self.value, self.error or 0.0, *self.parts.values())))


class Metric(ABC):
    """Measures a trained flow on test points."""

    kind: ClassVar[str] = "metric"

    @abstractmethod
    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return the numbers by name; empty where the metric does not apply to the subject."""


def mean(
    values: Tensor,
    change: Tensor | None = None,
    *,
    finer: float = 0.0,
    trace: float = 0.0,
    unit: str = "",
    better: Better | None = None,
    parts: dict[str, float] | None = None,
    note: str = "",
) -> Measure:
    r"""Return the mean of a quantity over n test points, with what is known of its error.

    `sampling` is the standard error s / sqrt(n) of the mean; one point has none. `solver` bounds
    the bias of the solve by a subsample of k points that was solved again: with changes c_i of mean
    m and standard deviation s_c, and q the quantile of Student's law for a 99 % interval,

        solver = |m| + q s_c sqrt((1 - k / n) / k) + finer.

    The second term is what m may be off by as an estimate of the mean change of all n points, drawn
    without replacement: |m| alone is near zero, however large the changes are, where they happen
    to cancel on the subsample. The third is what the finer solve is trusted to: on easy fields both
    solves take the same steps, and m is zero. A bias is not random, so it adds to the random errors
    as it is:

        error = q sqrt(sampling^2 + trace^2) + solver.

    Arguments:
        values: The quantity at each test point (n,).
        change: What the judge's solve gave less what the finer solve gave, on the subsample (k,);
            None for a quantity that the solver has no part in.
        finer: The tolerance of the finer solve; 0 where nothing is solved.
        trace: Standard error of the mean from the noise of a trace estimator; 0 for an exact one.
        unit: What it is measured in.
        better: Which direction is better.
        parts: What else belongs to the number.
        note: How it was computed.
    """
    errors: dict[str, float] = {}
    if (sampling := standard_error(values)) is not None:
        errors["sampling"] = sampling
    if change is not None:
        errors["solver"] = bias_bound(change, len(values)) + finer
        errors["trace"] = trace
    error = None
    if sampling is not None:
        random = quantile(len(values)) * math.hypot(sampling, trace)
        error = random + errors.get("solver", 0.0)
    value = float(values.double().mean())
    return Measure(value, error, unit, better, errors | (parts or {}), note)


def standard_error(values: Tensor) -> float | None:
    """Return s / sqrt(n) for n values; None for a single one."""
    return float(values.double().std()) / len(values) ** 0.5 if len(values) > 1 else None


def bias_bound(change: Tensor, n: int) -> float:
    """Return a bound on the mean change of n points from that of k of them: `solver` of `mean`."""
    change, spread = change.double(), 0.0
    if 1 < len(change) < n:
        error = float(change.std()) * ((1 - len(change) / n) / len(change)) ** 0.5
        spread = quantile(len(change)) * error
    return abs(float(change.mean())) + spread


def error_of_noise(repeats: Tensor, n: int) -> float:
    """Return the standard error of a mean over n points from the noise of its values.

    The variance of a point's value is averaged over points, and divided by their number, as noise
    that is a point's own averages out; to it is added what the means of the repeats vary by beyond
    that, which is noise that points share.

    Arguments:
        repeats: Values (r, k) of k points with independent noise, r times.
        n: Number of points that the mean is taken over.
    """
    each = float(repeats.var(0).mean())
    shared = max(0.0, float(repeats.mean(1).var()) - each / repeats.shape[1])
    return (each / n + shared) ** 0.5


@lru_cache
def quantile(n: int) -> float:
    """Return how many standard errors of a mean of n values make half of a 99 % interval."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2))


def at_least_two(metric: str, subsample: int) -> int:
    """Return the size of a subsample.

    Raises:
        UserError: It is smaller than 2.
    """
    if subsample < 2:
        raise UserError(f"the subsample of {metric} must be at least 2 points, got {subsample}")
    return subsample
