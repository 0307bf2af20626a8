"""A number over seeds: mean, spread and error; when two are tied; how they are printed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_SMALL = 1e-3  # below it numbers are printed with a power of ten
TIE_RULE = (
    "the means differ by no more than sqrt(a^2 + b^2), where a and b are their errors, "
    "error^2 = (sample standard deviation)^2 / seeds + (error of the measurement)^2"
)


@dataclass(frozen=True)
class Summary:
    """One quantity over n seeds.

    Arguments:
        mean: The mean.
        n: Number of seeds.
        spread: Sample standard deviation over seeds; None for one seed.
        measurement: Root mean square of the measurements' own errors; None where not estimated.
        solver: The largest of the solver's errors, which no seed and no test point averages out.
    """

    mean: float
    n: int = 1
    spread: float | None = None
    measurement: float | None = None
    solver: float = 0.0

    def scaled(self, factor: float) -> Summary:
        """Return the summary in other units."""
        spread, measurement = (
            None if value is None else factor * value for value in (self.spread, self.measurement)
        )
        return Summary(factor * self.mean, self.n, spread, measurement, factor * self.solver)

    @property
    def error(self) -> float:
        """Standard error of the mean: spread^2 / n + measurement^2, as a root.

        The measurement's error does not shrink with n: all seeds are scored on the same points.
        """
        spread = 0.0 if self.spread is None else self.spread / math.sqrt(self.n)
        return math.hypot(spread, self.measurement or 0.0)

    @property
    def shown(self) -> float | None:
        """What follows ±: the spread over seeds, or for one seed the measurement's error."""
        return self.measurement if self.spread is None else self.spread


def summarise(
    values: Sequence[float],
    errors: Sequence[float | None] = (),
    solver: Sequence[float] = (),
) -> Summary:
    """Return the summary of one value per seed, with the errors of the measurements.

    Arguments:
        values: At least one value.
        errors: The values' own errors, None where not estimated.
        solver: The solver's parts of them.
    """
    n = len(values)
    mean = math.fsum(values) / n
    spread = None
    if n > 1:
        spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    known = [e for e in errors if e is not None]
    measurement = math.sqrt(math.fsum(e * e for e in known) / len(known)) if known else None
    return Summary(mean, n, spread, measurement, max(solver, default=0.0))


def tied(a: Summary, b: Summary) -> bool:
    """Return whether two numbers cannot be told apart: |a - b| <= sqrt(a.error^2 + b.error^2)."""
    return abs(a.mean - b.mean) <= math.hypot(a.error, b.error)


def resolved(best: Summary, next_best: Summary) -> bool:
    """Return whether the best is best beyond what its solver may be off by."""
    return best.solver <= abs(best.mean - next_best.mean)


def decimals(summary: Summary) -> int:
    """Return how many decimals a number deserves: those of its error's first significant digit.

    Of the first two where the first is 1. The error is what is shown, or a tenth of the
    measurement's where that is larger: on the same points, flows compare better than each is known.
    Without one, the value has four significant digits. Never more than six decimals.
    """
    errors = [e for e in (summary.shown or 0.0, (summary.measurement or 0.0) / 10) if e > 5e-7]
    if errors:
        error = max(errors)
        exponent = math.floor(math.log10(error))
        if round(error / 10**exponent) == 10:  # 0.096 is printed as 0.10
            exponent += 1
        leading = int(error / 10**exponent + 1e-9)
        return min(6, max(0, -exponent + (1 if leading <= 1 else 0)))
    if float(summary.mean).is_integer():
        return 0
    exponent = math.floor(math.log10(abs(summary.mean)))
    return min(6, max(0, 3 - exponent))


def printed(summary: Summary) -> tuple[str, str]:
    """Return a number and what follows its ± (empty for nothing), rounded by the error.

    Numbers below a thousandth have a power of ten, the same for both: `0.8e-05 ± 1.0e-05`. An
    error that is rounded to nothing is given with its own first digit.
    """
    error = summary.shown
    size = max(abs(summary.mean), error or 0.0)
    if 1e-300 < size < _SMALL:
        power = math.floor(math.log10(size))
        value, spread = printed(summary.scaled(10.0**-power))
        return f"{value}e{power:03d}", f"{spread}e{power:03d}" if spread else ""
    places = decimals(summary)
    value = f"{summary.mean:.{places}f}"
    if float(value) == 0:
        value = value.removeprefix("-")
    spread = "" if error is None else f"{error:.{places}f}"
    return value, f"{error:.1g}" if error and not float(spread) else spread
