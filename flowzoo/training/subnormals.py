"""Numbers below the normal range, which cost a hundred times the others and carry nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flushed_subnormals() -> Iterator[None]:
    """Take numbers too small for the normal range (float32: below 1.2e-38) as zero, inside.

    A trained network makes many: exp, sigmoid and softplus of large negative numbers, products of
    small slopes. A processor takes them one by one, and a step of trained blocks can take twice as
    long. It holds for the calling thread on a CPU; where the processor cannot, nothing changes.
    """
    tiny = torch.tensor(torch.finfo(torch.float32).tiny) / 2
    flushed = bool(tiny * 1.0 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
