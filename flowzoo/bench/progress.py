"""How a run looks while it runs: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from flowzoo.bench.cells import Cell
from flowzoo.bench.observer import Observer
from flowzoo.bench.record import Record
from flowzoo.bench.resources import duration_text

_EVERY = 0.25  # seconds between two looks at what the cells say


def watcher(console: Console) -> Observer:
    """Return bars for a terminal, or plain lines for a file or a pipe."""
    return Bars(console) if console.is_terminal else Lines(console)


class Lines(Observer):
    """One line for each cell that starts or ends.

    Arguments:
        console: Where they go.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.total = self.done = 0

    def begin(self, cells: Sequence[Cell], todo: Sequence[Cell]) -> None:
        """Say how many cells there are."""
        self.total = len(todo)
        self.say(f"{len(cells)} cells, {len(cells) - len(todo)} done already")

    def started(self, cell: Cell) -> None:
        """Say that a cell starts."""
        self.say(f"start  {name(cell)}")

    def finished(self, cell: Cell, record: Record) -> None:
        """Say what came of a cell."""
        self.done += 1
        self.say(f"{self.done}/{self.total}  {name(cell)}  {outcome(record)}")

    def say(self, text: str) -> None:
        """Write one line, unwrapped."""
        self.console.print(Text(text), soft_wrap=True)


class Bars(Observer):
    """A bar for the run and one for each running cell; a line stays for each that ended.

    Arguments:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # what the others leave
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[said]}", markup=False, table_column=rest),
            TimeElapsedColumn(),
            console=console,
            expand=True,
        )
        self.tasks: dict[str, TaskID] = {}
        self.total: TaskID | None = None
        self.looked = 0.0

    def begin(self, cells: Sequence[Cell], todo: Sequence[Cell]) -> None:
        """Show the run's bar."""
        self.bars.start()
        done = len(cells) - len(todo)
        self.total = self.bars.add_task("cells", total=len(cells), completed=done, said="")
        self.count()

    def started(self, cell: Cell) -> None:
        """Show a cell's bar."""
        self.tasks[cell.folder] = self.bars.add_task(name(cell), total=1.0, said="starting")

    def running(self, progress: Mapping[Cell, dict[str, Any] | None]) -> None:
        """Move the cells' bars."""
        if time.monotonic() - self.looked < _EVERY:
            return
        self.looked = time.monotonic()
        for cell, said in progress.items():
            if said and cell.folder in self.tasks:
                fraction = 1.0 if said.get("phase") == "judge" else said.get("fraction", 0.0)
                task = self.tasks[cell.folder]
                self.bars.update(task, completed=fraction, said=progress_text(said))

    def finished(self, cell: Cell, record: Record) -> None:
        """Replace a cell's bar by a line."""
        self.bars.remove_task(self.tasks.pop(cell.folder))
        line = Text.assemble(name(cell), "  ", (outcome(record), _colour(record)))
        self.bars.console.print(line, soft_wrap=True)
        if self.total is not None:
            self.bars.advance(self.total)
            self.count()

    def end(self, interrupted: bool) -> None:
        """Take the bars away."""
        for task in [*self.tasks.values()]:
            self.bars.remove_task(task)
        self.tasks.clear()
        self.bars.stop()

    def count(self) -> None:
        """Write the numbers beside the run's bar."""
        task = next(task for task in self.bars.tasks if task.id == self.total)
        self.bars.update(task.id, said=f"{task.completed:g}/{task.total:g}")


def name(cell: Cell) -> str:
    """Return a cell in one line."""
    return f"{cell.label} on {cell.data}, seed {cell.seed}"


def outcome(record: Record) -> str:
    """Return what came of a cell: its state, its first numbers, or the reason."""
    if record.state != "ok":
        return f"{record.state}: {record.reason}" if record.reason else record.state
    judged = [(name, m) for name, m in record.metrics.items() if m.get("better")]
    numbers = [f"{name} {m['value']:.4g}" for name, m in judged[:3]]
    seconds = record.costs.get("train_seconds")
    took = [] if seconds is None else [f"trained {duration_text(seconds)}"]
    return ", ".join(["ok", *numbers, *took])


def progress_text(said: Mapping[str, Any]) -> str:
    """Return what a running cell says: stage, step, terms of the loss, the last validation."""
    if said.get("phase") == "judge":
        return "judging"
    terms = [f"{k} {v:.3g}" for k, v in (said.get("terms") or {}).items() if v is not None]
    valid = said.get("validation")
    last = [] if valid is None else [f"val {valid:.3g}"]
    stage = [str(said["stage"])] if said.get("stage") else []
    return "  ".join([*stage, f"step {said.get('step', 0)}", *terms[:3], *last])


def _colour(record: Record) -> str:
    return {"ok": "green", "skipped": "yellow"}.get(record.state, "red")
