"""Step sizes h of the scheme: their first schedule, reparametrisation and refinement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flowzoo.errors import UserError


@dataclass(frozen=True)
class Steps:
    """h_k = min(first * growth^k, largest) for the blocks k = 0, 1, ...

    Arguments:
        first: The first step size.
        growth: By what each exceeds the one before.
        largest: The largest step size; None has no limit.
        free_last: True leaves the movement of the last block free (h infinite): it goes all the way
            to the noise.

    References:
        JKO-iFlow (Xu, Cheng & Xie, NeurIPS 2023), appendix B.1; 0.25 and 1.4 in its code
    """

    first: float = 0.25
    growth: float = 1.4
    largest: float | None = None
    free_last: bool = False

    def __post_init__(self) -> None:
        for name in ("first", "growth", "largest"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"steps.{name} must be positive, got {value}")

    def sizes(self, blocks: int) -> list[float]:
        """Return the step sizes of so many blocks."""
        largest = math.inf if self.largest is None else self.largest
        found = [min(self.first * self.growth**k, largest) for k in range(blocks)]
        return [*found[:-1], math.inf] if self.free_last else found


@dataclass(frozen=True)
class Reparametrisation:
    """Rounds of training with step sizes that even out how far the blocks move the data.

    Arguments:
        rounds: How often all blocks are trained again. The paper's tables took seven.
        eta: How far a step size goes towards the one that would even out, in (0, 1].
        largest: The largest step size.
        even: The rounds end once the deviation of the blocks' movements is below this part of
            their mean.
        tail: Blocks at the end that move the data less than this part of the mean movement are
            given up before a round. Their steps sit at `largest`, and no reparametrisation wakes
            them; 0 keeps them, as published.

    References:
        JKO-iFlow (Xu, Cheng & Xie, NeurIPS 2023), section 4.2 and appendix B.3.1
    """

    rounds: int = 1
    eta: float = 0.5
    largest: float = 5.0
    even: float = 0.05
    tail: float = 0.0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UserError(f"reparametrise.rounds must be at least 1, got {self.rounds}")
        if not 0 < self.eta <= 1:
            raise UserError(f"reparametrise.eta must lie in (0, 1], got {self.eta}")
        if not self.largest > 0:
            raise UserError(f"reparametrise.largest must be positive, got {self.largest}")
        if not self.even >= 0:
            raise UserError(f"reparametrise.even must not be negative, got {self.even}")
        if not 0 <= self.tail < 1:
            raise UserError(f"reparametrise.tail must lie in [0, 1), got {self.tail}")

    def kept(self, movements: Sequence[float]) -> int:
        """Return how many blocks are kept: all up to the last that moves enough."""
        least = self.tail * sum(movements) / len(movements)
        return max(k for k, moved in enumerate(movements, 1) if moved >= least)

    def is_even(self, steps: Sequence[float], movements: Sequence[float]) -> bool:
        """Return whether the blocks with a step size move the data about equally far."""
        moved = [m for h, m in zip(steps, movements, strict=True) if math.isfinite(h)]
        return len(moved) < 2 or unevenness(moved) < self.even


@dataclass(frozen=True)
class Refinement:
    """Rounds in which every block is split into several, which are then trained.

    A chain that ends with n blocks begins with n / factor^rounds of them.

    Arguments:
        factor: Into how many blocks c one is split; their step size is h / c.
        rounds: How often.

    References:
        JKO-iFlow (Xu, Cheng & Xie, NeurIPS 2023), section 4.2
    """

    factor: int = 2
    rounds: int = 1

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise UserError(f"refine.factor must be at least 2, got {self.factor}")
        if self.rounds < 1:
            raise UserError(f"refine.rounds must be at least 1, got {self.rounds}")

    @property
    def blocks(self) -> int:
        """Into how many blocks one has become at the end."""
        return self.factor**self.rounds


def reparametrised(
    steps: Sequence[float], movements: Sequence[float], eta: float, largest: float
) -> list[float]:
    """Return h <- min(h + eta (h mean(S) / S - h), largest) for movements S of step sizes h.

    A free block (h infinite) stays free, and is left out of the mean. One that does not move at all
    gets the largest step.

    Arguments:
        steps: Step sizes h, one for each block.
        movements: Root mean square movements S, (E|T(x) - x|^2)^(1/2), likewise.
        eta: How far to go, in (0, 1].
        largest: The largest step size.
    """
    moved = [s for h, s in zip(steps, movements, strict=True) if math.isfinite(h)]
    mean = sum(moved) / len(moved) if moved else 0.0

    def new(h: float, s: float) -> float:
        if not math.isfinite(h):
            return h
        return min(h + eta * (h * mean / s - h), largest) if s else largest

    return [new(h, s) for h, s in zip(steps, movements, strict=True)]


def unevenness(movements: Sequence[float]) -> float:
    """Return the standard deviation of movements (divided by n) over their mean; 0 of none."""
    mean = sum(movements) / len(movements)
    square = sum((s - mean) ** 2 for s in movements) / len(movements)
    return math.sqrt(square) / mean if mean else 0.0
