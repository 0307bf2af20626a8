"""One table of numbers with its column names, and the choice of columns by name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np

from flowzoo.errors import BadData


@dataclass(frozen=True)
class Table:
    """Rows as read from a file, checked: float64, finite.

    Arguments:
        values: The numbers (n, d).
        columns: Their names (d,); "1", "2", ... where the file has none.
    """

    values: np.ndarray
    columns: tuple[str, ...]


def numbered(width: int) -> tuple[str, ...]:
    """Names of columns that have none: "1", "2", ..., as messages count them."""
    return tuple(str(index + 1) for index in range(width))


def pick_columns(source: str, names: tuple[str, ...], wanted: list[str] | None) -> list[int]:
    """Places of the wanted columns, in the order asked for; all of them for None.

    Raises:
        BadData: A name is unknown (with similar ones), ambiguous, or asked for twice.
    """
    if wanted is None:
        return list(range(len(names)))
    if not wanted:
        raise BadData(f"{source}: the option columns is empty; leave it out to take all columns.")
    for name in wanted:
        if names.count(name) > 1:
            raise BadData(f"{source} has {names.count(name)} columns named '{name}'; rename one.")
        if wanted.count(name) > 1:
            raise BadData(f"{source}: the option columns names '{name}' twice.")
        if name not in names:
            close = difflib.get_close_matches(name, names, n=3)
            shown = f"did you mean {' or '.join(close)}?" if close else f"it has {_list(names)}."
            raise BadData(f"{source} has no column '{name}'; {shown}")
    return [names.index(name) for name in wanted]


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
