"""Who watches a run: the interface, and nothing by default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flowzoo.bench.cells import Cell
from flowzoo.bench.record import Record


class Observer:
    """Told of what happens in a run; every method does nothing unless overridden."""

    def begin(self, cells: Sequence[Cell], todo: Sequence[Cell]) -> None:
        """Note all cells of the run, and those that have no result yet."""

    def started(self, cell: Cell) -> None:
        """Note that a cell's process starts."""

    def running(self, progress: Mapping[Cell, dict[str, Any] | None]) -> None:
        """Note how far the running cells are; called several times a second.

        What a cell says has `phase`, and while training `stage`, `step`, `fraction`, `seconds`,
        `terms` and `validation`; None before it says anything.
        """

    def finished(self, cell: Cell, record: Record) -> None:
        """Note a cell's result."""

    def end(self, interrupted: bool) -> None:
        """Note that the run is over, or was interrupted."""
