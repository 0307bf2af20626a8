"""What one cell may use, and the units in which a matrix writes it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from flowzoo.errors import UserError

_BYTES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MEMORY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", re.IGNORECASE)
_PIECE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])", re.IGNORECASE)


@dataclass(frozen=True)
class Resources:
    """Limits of one cell's process.

    Arguments:
        threads: Threads for tensor operations; one by default, so that parallel cells do not slow
            each other and results repeat.
        memory: Resident memory above which the process is ended, in bytes or as `4G`; null has no
            limit.
        timeout: Wall-clock time after which the process is ended, in seconds or as `10m`, `1h30m`;
            null has no limit.
    """

    threads: int = 1
    memory: int | str | None = None
    timeout: float | str | None = None
    checkpoint: float | str = 60.0

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UserError(f"threads is {self.threads}; it must be at least 1")
        object.__setattr__(self, "memory", memory_bytes(self.memory))
        object.__setattr__(self, "timeout", duration_seconds(self.timeout, "timeout"))
        object.__setattr__(self, "checkpoint", duration_seconds(self.checkpoint, "checkpoint"))

    @property
    def bytes(self) -> int | None:
        """The limit of memory in bytes."""
        return memory_bytes(self.memory)

    @property
    def seconds(self) -> float | None:
        """The limit of time in seconds."""
        return duration_seconds(self.timeout)

    @property
    def checkpoint_seconds(self) -> float:
        """The time between two checkpoints in seconds."""
        return duration_seconds(self.checkpoint) or 60.0


def memory_bytes(value: float | str | None) -> int | None:
    """Return an amount of memory in bytes; `4G` is 4 * 2^30.

    Raises:
        UserError: It is no positive amount.
    """
    if value is None or value == "none":
        return None
    match = _MEMORY.fullmatch(str(value))
    amount = float(match[1]) * _BYTES[match[2].lower()] if match else 0.0
    if amount < 1:
        raise UserError(f"memory is {value!r}; write a positive amount such as 500M or 4G")
    return int(amount)


def duration_seconds(value: float | str | None, name: str = "duration") -> float | None:
    """Return a duration in seconds; `1h30m` is 5400.

    Arguments:
        value: A number of seconds, a duration with units, or None or `none` for no limit.
        name: What an error calls it.

    Raises:
        UserError: It is no positive duration.
    """
    if value is None or value == "none":
        return None
    text = str(value).strip()
    pieces = _PIECE.findall(text)
    try:
        seconds = float(text)
    except ValueError:
        whole = not _PIECE.sub("", text).strip()
        seconds = sum(float(n) * _SECONDS[unit.lower()] for n, unit in pieces) if whole else 0.0
    if not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"{name} is {value!r}; write a positive duration such as 90, 10m or 1h30m")
    return seconds


def duration_text(seconds: float | None) -> str:
    """Return a duration as people say it: `45 s`, `12 min`, `1 h 30 min`."""
    if seconds is None:
        return "no limit"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{minutes} min" if not hours else f"{hours} h" + (f" {rest} min" if rest else "")


def memory_text(amount: float | None) -> str:
    """Return an amount of memory in the unit that fits it: `512 MB`, `4 GB` (powers of 1024)."""
    if amount is None:
        return "no limit"
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1024:
            return f"{amount:.3g} {unit}" if amount < 1000 else f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.3g} TB"
