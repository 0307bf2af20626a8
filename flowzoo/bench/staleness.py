"""Which records were made by code or from data that have changed since."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from flowzoo.bench.cells import Cell
from flowzoo.bench.record import MISSING, Record
from flowzoo.errors import UserError
from flowzoo.registry import Registry


class Staleness:
    """Compares records with the code and files of today; remembers what it has looked up."""

    def __init__(self) -> None:
        self._registries: dict[tuple[str, ...], Registry] = {}
        self._codes: dict[str, dict[str, str]] = {}
        self._files: dict[str, str | None] = {}

    def mark(self, record: Record, cell: Cell) -> Record:
        """Return the record with what has changed since it was made."""
        return record.with_stale(self.changes(record, cell))

    def changes(self, record: Record, cell: Cell) -> tuple[str, ...]:
        """Return what has changed since a record was made, e.g. `trace exact`."""
        if record.state in (*MISSING, "running") or not record.code:
            return ()
        try:
            current = self.code(cell)
        except UserError as error:
            return (str(error),)
        changed = [name for name, seen in record.code.items() if current.get(name) != seen]
        files = record.dataset.get("files", {})
        return (*changed, *(path for path, seen in files.items() if not self._same(path, seen)))

    def code(self, cell: Cell) -> dict[str, str]:
        """Return the fingerprints of a cell's code as it is today."""
        specs = [cell.flow_spec, cell.objective, cell.dataset, cell.metrics, cell.plugins]
        key = json.dumps(specs, sort_keys=True)
        if key not in self._codes:
            if cell.plugins not in self._registries:
                self._registries[cell.plugins] = cell.registry()
            self._codes[key] = cell.code(self._registries[cell.plugins])
        return self._codes[key]

    def _same(self, path: str, seen: dict[str, Any]) -> bool:
        """Return whether a data file is what it was; read only where its size or date differ."""
        if path not in self._files:
            try:
                stat = Path(path).stat()
            except OSError:
                return True  # not on this machine: nothing can be said
            if [stat.st_size, stat.st_mtime_ns] == [seen["size"], seen["mtime"]]:
                return True
            self._files[path] = sha256(Path(path))
        return self._files[path] == seen["sha256"]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_facts(path: Path) -> dict[str, Any]:
    """Return a file's size, time of change in nanoseconds, and SHA-256."""
    stat = path.stat()
    return {"size": stat.st_size, "mtime": stat.st_mtime_ns, "sha256": sha256(path)}
