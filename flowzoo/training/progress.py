"""Where a fit stands: in numbers, and for a person (a bar on a terminal, elsewhere lines)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column


@dataclass(frozen=True)
class Progress:
    """Where a fit stands.

    Arguments:
        stage: Name of the stage.
        stage_index: Its number, from 0.
        step: Steps taken, over all stages.
        fraction: Which part of the budget is used, from 0 to 1.
        seconds: Wall-clock seconds of training, those before an interruption included.
        nfe_forward: Evaluations of the field in training, forward.
        nfe_backward: Likewise, backward.
        terms: The terms of the loss, averaged over the steps since the last row of the curve.
        validation: The stage's latest validation, None before the first.
        lr: Learning rate of the latest step.
    """

    stage: str
    stage_index: int
    step: int
    fraction: float
    seconds: float
    nfe_forward: int
    nfe_backward: int
    terms: dict[str, float]
    validation: float | None
    lr: float


class ProgressBar:
    """An observer of `fit`: `with ProgressBar() as bar: fit(..., observe=bar)`.

    It shows the stage, the used part of the budget, the terms of the loss, the latest validation
    and the seconds left; on a terminal as a bar, elsewhere as plain lines.

    Arguments:
        label: What the lines begin with, say the name of the cell.
        console: Where it writes; standard error when left out.
        every: Seconds between two plain lines.
    """

    def __init__(
        self, label: str = "", console: Console | None = None, every: float = 10.0
    ) -> None:
        self.label, self.every = label, every
        self.console = Console(stderr=True) if console is None else console
        self._bars: Bars | None = None
        self._task = TaskID(0)
        self._last: Progress | None = None
        self._shown: Progress | None = None
        self._shown_at = -float("inf")

    def __enter__(self) -> ProgressBar:
        if self.console.is_terminal:
            rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # what the others leave
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TaskProgressColumn(),
                TextColumn("{task.fields[status]}", markup=False, table_column=rest),
                console=self.console,
                transient=True,
                expand=True,
            )
            self._task = self._bars.add_task(self.label, total=1.0, status="")
            self._bars.start()
        return self

    def __call__(self, progress: Progress) -> None:
        """Show where the fit stands."""
        self._last, now = progress, time.monotonic()
        if self._bars is not None:
            self._bars.update(
                self._task,
                completed=progress.fraction,
                description=f"{self.label} {progress.stage}".strip(),
                status=status(progress),
            )
        elif now - self._shown_at >= self.every:
            self._shown_at = now
            self._line(progress)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the bar away and leave the last state as a line."""
        if self._bars is not None:
            self._bars.stop()
        if self._last is not None and self._last is not self._shown:
            self._line(self._last)

    def _line(self, progress: Progress) -> None:
        self._shown = progress
        text = f"{self.label} {progress.stage} {progress.fraction:4.0%} {status(progress)}".strip()
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def status(progress: Progress) -> str:
    """Return step, terms of the loss, validation and time left in one line."""
    parts = [f"step {progress.step}"]
    parts += [f"{name} {value:.4g}" for name, value in progress.terms.items()]
    if progress.validation is not None:
        parts.append(f"validation {progress.validation:.4f}")
    if 0 < progress.fraction < 1:
        left = progress.seconds * (1 - progress.fraction) / progress.fraction
        parts.append(f"{duration(left)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Return seconds as `12s`, `3m05s` or `2h07m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
