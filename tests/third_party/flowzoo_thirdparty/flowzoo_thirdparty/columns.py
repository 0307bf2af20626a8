"""A table column, and a listener that counts cells."""

from __future__ import annotations

from typing import Any

from flowzoo.hooks import hookimpl

started: list[Any] = []


@hookimpl
def flowzoo_table_columns() -> dict[str, Any]:
    """Return one column: the length of a record's name."""
    return {"letters": lambda record: len(str(record))}


@hookimpl
def flowzoo_cell_started(cell: Any) -> None:
    """Remember the cell."""
    started.append(cell)
