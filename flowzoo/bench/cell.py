"""Runs one cell in its own process: `python -m flowzoo.bench.cell FOLDER`.

Data, flow, fit, judge, record. Whatever happens that Python can see ends in a record; what it
cannot see (a crash, a kill, a limit) the launcher sees.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowzoo.bench.cells import Cell, read_cell
from flowzoo.bench.files import DISK_FULL, is_disk_full
from flowzoo.bench.orphan import die_with_parent
from flowzoo.bench.record import Record, State
from flowzoo.bench.store import now, write_record
from flowzoo.errors import Diverged, FlowzooError, Incompatible

_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory")


def main(arguments: list[str] | None = None) -> int:
    """Run the cell of a folder; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flowzoo.bench.cell", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    die_with_parent()
    faulthandler.enable()
    warnings.simplefilter("default")
    folder = given.folder.resolve()
    cell = read_cell(folder)
    _note(f"{cell.label} on {cell.data}, seed {cell.seed}, {given.device}")
    os.chdir(cell.base if Path(cell.base).is_dir() else folder)
    started = now()
    try:
        record = replace(run_cell(cell, folder, given.device), started=started)
        write_record(folder, record)
        _note(f"{record.state}{': ' if record.reason else ''}{record.reason}")
    except Exception as error:
        if not is_disk_full(error):
            raise
        _note(str(error))
        return DISK_FULL
    _listeners(cell).notify("flowzoo_cell_finished", cell=cell, record=record)
    return 0


def run_cell(
    cell: Cell, folder: Path, device: str = "cpu", observe: Callable[[Any], None] | None = None
) -> Record:
    """Run a cell in this process and return its record, whatever comes of it.

    Arguments:
        cell: The cell.
        folder: Where its checkpoints, curve and weights go; what is there already is gone on with.
        device: Where to compute.
        observe: Told where the fit stands (`training.Progress`).

    Raises:
        DiskFull: Nothing can be stored.
    """
    facts: dict[str, Any] = {}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if cell.skip:
            raise Incompatible(cell.skip)
        from flowzoo.bench.phases import run_phases

        listeners = _listeners(cell)
        listeners.notify("flowzoo_cell_started", cell=cell)
        run_phases(cell, folder, device, facts, _observer(listeners, cell, observe))
        state, reason, trace = "ok", "", ""
    except Exception as error:
        if is_disk_full(error):
            raise
        state, reason, trace = state_of(error)
        if trace:
            print(trace, file=sys.stderr, flush=True)
    return replace(Record.of(cell, state, reason), traceback=trace, finished=now(), **facts)


def state_of(error: Exception) -> tuple[State, str, str]:
    """Return an exception as state, sentence and, where nobody foresaw it, traceback."""
    said = " ".join(str(error).split())
    if isinstance(error, Incompatible):
        return "skipped", said, ""
    if isinstance(error, Diverged):
        return "diverged", said, ""
    if isinstance(error, MemoryError) or _out_of_memory(error):
        return "out-of-memory", said[:300] or "the system gave no more memory", ""
    if isinstance(error, FlowzooError):
        return "failed", said, ""
    name = type(error).__name__
    return "failed", f"{name}: {said[:300]}" if said else name, traceback.format_exc()


def _out_of_memory(error: Exception) -> bool:
    names = {cls.__name__ for cls in type(error).__mro__}
    said = str(error).lower()
    known = isinstance(error, RuntimeError | OSError) and any(m in said for m in _MEMORY)
    return "OutOfMemoryError" in names or known


def _listeners(cell: Cell) -> Any:
    from flowzoo.hooks import plugin_manager

    return plugin_manager(cell.registry())


def _observer(
    listeners: Any, cell: Cell, observe: Callable[[Any], None] | None
) -> Callable[[Any], None] | None:
    """Return what tells listeners of progress; None where there are none, which costs nothing."""
    if not listeners.hook.flowzoo_step.get_hookimpls():
        return observe

    def tell(progress: Any) -> None:
        terms = dict(progress.terms)
        listeners.notify("flowzoo_step", cell=cell, step=progress.step, terms=terms)
        if observe is not None:
            observe(progress)

    return tell


def _note(text: str) -> None:
    """Write a line of the log."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
