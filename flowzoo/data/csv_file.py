"""Reading .csv files fast, with the first bad cell named by its line."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path

import numpy as np

from flowzoo.data.folder import existing_file
from flowzoo.data.table import Table, numbered, pick_columns
from flowzoo.data.validation import Origin
from flowzoo.errors import BadData

Line = tuple[int, list[str]]  # number of the line in the file, its cells

_BLOCK = 8192  # lines turned into numbers at once
_DELIMITERS = ",;\t"


def read_csv(path: Path, columns: list[str] | None = None, header: bool | None = None) -> Table:
    """Read a .csv: commas, semicolons or tabs, UTF-8; empty lines are passed over.

    Arguments:
        path: The file.
        columns: Names of the columns to read, "1", "2", ... without a header; None reads all.
        header: Whether the first line holds names; None takes it so when none of its cells is a
            number.

    Returns:
        The table, float64.

    Raises:
        BadData: The file is missing, empty or no text, a line has another number of cells than
            the first, or a cell is no finite number.
    """
    existing_file(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            delimiter = _delimiter(stream.readline())
            stream.seek(0)
            reader = csv.reader(stream, delimiter=delimiter)
            return _parse(path, ((reader.line_num, row) for row in reader if row), columns, header)
    except UnicodeDecodeError:
        raise BadData(f"{path} is not UTF-8 text, so it is no .csv file.") from None
    except csv.Error as error:
        raise BadData(f"{path} cannot be read as .csv: {error}.") from None


def _parse(
    path: Path, lines: Iterator[Line], columns: list[str] | None, header: bool | None
) -> Table:
    first = next(lines, None)
    if first is None:
        raise BadData(f"{path} is empty.")
    number, cells = first
    headed = not any(_is_number(cell) for cell in cells) if header is None else header
    names = tuple(cell.strip() for cell in cells) if headed else numbered(len(cells))
    picks = pick_columns(str(path), names, columns)
    counting = "rows are lines of the file, counted from 1" + ", the header included" * headed
    origin = Origin(str(path), names if headed else (), counting)
    lines = lines if headed else chain([(number, cells)], lines)
    blocks = []
    while block := list(islice(lines, _BLOCK)):
        blocks.append(_numbers(block, picks, len(names), origin))
    if not blocks:
        raise BadData(f"{path} has a header but no rows.")
    return Table(np.concatenate(blocks), tuple(names[pick] for pick in picks))


def _numbers(block: list[Line], picks: list[int], width: int, origin: Origin) -> np.ndarray:
    """Turn lines into numbers (n, d), or raise for the first cell that is none."""
    rows = [cells for _, cells in block]
    if set(map(len, rows)) != {width}:
        raise _bad_line(block, picks, width, origin)
    if len(picks) == 1:  # itemgetter of one place gives the cell itself, not a tuple
        cells = map(itemgetter(picks[0]), rows)
    elif picks == list(range(width)):
        cells = chain.from_iterable(rows)
    else:
        cells = chain.from_iterable(map(itemgetter(*picks), rows))
    try:
        flat = np.fromiter(map(float, cells), np.float64, len(rows) * len(picks))
    except ValueError:
        raise _bad_line(block, picks, width, origin) from None
    if not np.isfinite(flat).all():
        raise _bad_line(block, picks, width, origin)
    return flat.reshape(len(rows), len(picks))


def _bad_line(block: list[Line], picks: list[int], width: int, origin: Origin) -> BadData:
    """Find the first line of a block that is too short, too long, or holds a bad cell."""
    for number, cells in block:
        if len(cells) != width:
            return BadData(
                f"{origin.source}: row {number} has {len(cells)} cells where {width} are expected;"
                f" the file may be truncated or its rows ragged ({origin.counting})."
            )
        for pick in picks:
            if not _is_number(cells[pick]) or not math.isfinite(float(cells[pick])):
                return origin.bad_cell(number, pick, cells[pick])
    raise AssertionError("a block was refused without a bad line")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _delimiter(line: str) -> str:
    """The delimiter that occurs most often in the first line; a comma where none does."""
    return max(_DELIMITERS, key=line.count)
