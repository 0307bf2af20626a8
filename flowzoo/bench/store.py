"""A run's folder: one sub-folder for each cell, of which many processes write and anyone reads.

A cell's folder holds `cell.yaml` (what to run), `record.json` (what came of it), `curve.jsonl`,
`flow.safetensors`, checkpoints and `log.txt`. Files are written under a temporary name and renamed,
so a reader never sees half of one, and a finished record is never touched again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from flowzoo.bench.cells import Cell, read_cell
from flowzoo.bench.claims import NAME as CLAIM
from flowzoo.bench.claims import held
from flowzoo.bench.files import read_json, write_json, write_text
from flowzoo.bench.grid import Matrix
from flowzoo.bench.record import MISSING, Record
from flowzoo.bench.staleness import Staleness
from flowzoo.errors import UserError

PLAN = "plan.json"
CELL, RECORD, LOG, CURVE, FLOW, PROGRESS = (
    "cell.yaml",
    "record.json",
    "log.txt",
    "curve.jsonl",
    "flow.safetensors",
    "progress.json",
)
CHECKPOINT = "checkpoint.pt"
CODE = "code.json"  # what wrote the checkpoint and the flow
KEPT = (CELL, LOG, CLAIM)


class Store:
    """The cells and records of one run.

    Arguments:
        folder: The run's folder, e.g. `runs/quickstart`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """Return the store of a run that exists.

        Raises:
            UserError: The folder holds no run.
        """
        store = cls(folder)
        if not (store.folder / PLAN).is_file():
            inside = sorted(p.parent.name for p in store.folder.glob(f"*/{PLAN}"))
            hint = f"; there are runs in it: {', '.join(inside)}" if inside else ""
            raise UserError(f"{store.folder} holds no run: it has no {PLAN}{hint}")
        return store

    def plan(self, matrix: Matrix) -> list[Cell]:
        """Write down what a matrix asks for; cells that have a record keep their files as they are.

        Raises:
            DiskFull: There is no space.
        """
        cells = matrix.cells()
        for cell in cells:
            folder = self.path(cell)
            folder.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(cell.to_mapping(), sort_keys=False, allow_unicode=True, width=96)
            if not (folder / RECORD).exists() and _text(folder / CELL) != text:
                write_text(folder / CELL, text)
        content = {
            "title": matrix.title,
            "matrix": str(matrix.source.resolve()),
            "cells": [cell.folder for cell in cells],
        }
        if read_json(self.folder / PLAN) != content:
            write_json(self.folder / PLAN, content)
        return cells

    @property
    def title(self) -> str:
        """The matrix's title."""
        return (read_json(self.folder / PLAN) or {}).get("title", self.folder.name)

    def path(self, cell: Cell) -> Path:
        """Return a cell's folder."""
        return self.folder / cell.folder

    def cells(self) -> list[Cell]:
        """Return the cells that the last plan has."""
        names = (read_json(self.folder / PLAN) or {}).get("cells", [])
        return [read_cell(self.folder / name) for name in names]

    def record(self, cell: Cell) -> Record:
        """Return what is known of a cell, whatever its state."""
        path = self.path(cell) / RECORD
        reason = ""
        try:
            return Record.from_mapping(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError) as error:
            reason = f"its {RECORD} cannot be read ({error}); it will be run again"
        if held(self.path(cell)):
            return Record.of(cell, "running")
        return Record.of(cell, "not-run", reason)

    def records(self) -> list[Record]:
        """Return every planned cell's record, marked where code or data have changed since."""
        stale = Staleness()
        return [stale.mark(self.record(cell), cell) for cell in self.cells()]

    def superseded(self) -> list[Record]:
        """Return the records of cells that the last plan no longer has: their recipe changed."""
        planned = {cell.folder for cell in self.cells()}
        found = []
        for path in sorted(self.folder.glob(f"*/{RECORD}")):
            if path.parent.name not in planned:
                with contextlib.suppress(OSError, ValueError, TypeError):
                    found.append(Record.from_mapping(json.loads(path.read_text(encoding="utf-8"))))
        return found

    def missing(self, rerun: Iterable[str] = ()) -> list[Cell]:
        """Return the cells to run: those without a result, and those whose state is in `rerun`.

        Arguments:
            rerun: States, or `stale` for results of code or data that have changed since.
        """
        wanted, stale = {*MISSING, *rerun}, Staleness()
        chosen = []
        for cell in self.cells():
            record = self.record(cell)
            marked = "stale" in wanted and bool(stale.changes(record, cell))
            if record.state in {*wanted, "running"} or marked:
                chosen.append(cell)
        return chosen

    def reopen(self, cell: Cell) -> None:
        """Set a cell's old record aside, so that the cell counts as not run.

        What it learned is kept where going on makes sense: after a kill or a limit; after a failure
        the flow, if its training was over.
        """
        folder = self.path(cell)
        record = self.record(cell)
        if not (folder / RECORD).exists():
            return
        number = 1 + len(list(folder.glob("record-*.json")))
        os.replace(folder / RECORD, folder / f"record-{number}.json")
        if record.state in ("ok", "diverged", "skipped"):
            discard(folder)
        elif record.state == "failed":
            (folder / CHECKPOINT).unlink(missing_ok=True)

    def write(self, cell: Cell, record: Record) -> None:
        """Store a record, in one step.

        Raises:
            DiskFull: There is no space.
        """
        write_record(self.path(cell), record)

    def progress(self, cell: Cell) -> dict[str, Any] | None:
        """Return how far a running cell is, as its process last said."""
        return read_json(self.path(cell) / PROGRESS)


def write_record(folder: Path, record: Record) -> None:
    """Store a cell's record, in one step; the note of its progress goes."""
    write_json(folder / RECORD, record.to_mapping())
    (folder / PROGRESS).unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Remove what a cell's process left, but for its spec, its log and old records."""
    for path in folder.iterdir():
        if path.name in KEPT or path.name.startswith("record"):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None
