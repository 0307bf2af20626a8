"""When a chain has enough blocks."""

from __future__ import annotations

from dataclasses import dataclass

from flowzoo.errors import UserError


@dataclass(frozen=True)
class Stopping:
    """No more blocks after one that hardly moves the data and hardly lowers the KL.

    The paper stops by the ratio alone, which on its rose gave up 0.09 nats that three more blocks
    still brought; where both are set, both must hold.

    Arguments:
        ratio: The block moves the data less than this: E|x - T(x)|^2 < ratio E|T(x)|^2. None does
            not ask.
        decrease: It lowers the KL of held-out points (of training points without validation) by
            less than this, in nats. None does not ask.

    Raises:
        UserError: Neither is asked, or one is not positive.

    References:
        JKO-iFlow (Xu, Cheng & Xie, NeurIPS 2023), section 3.2: the ratio, with 0.01
    """

    ratio: float | None = 0.01
    decrease: float | None = 0.01

    def __post_init__(self) -> None:
        if self.ratio is None and self.decrease is None:
            raise UserError("stop: give ratio, decrease, or both")
        for name in ("ratio", "decrease"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"stop.{name} must be positive, got {value}")

    def reason(self, ratio: float, decrease: float) -> str:
        """Return why the chain is long enough after a block; empty where it is not.

        Arguments:
            ratio: The block's movement ratio.
            decrease: By how much it lowered the KL, in nats.
        """
        rules = (
            ("movement ratio", ratio, self.ratio),
            ("KL decrease", decrease, self.decrease),
        )
        asked = [(name, value, limit) for name, value, limit in rules if limit is not None]
        if not all(value < limit for _, value, limit in asked):
            return ""
        return " and ".join(f"{name} {value:.2g} < {limit:g}" for name, value, limit in asked)
