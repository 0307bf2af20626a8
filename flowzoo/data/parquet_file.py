"""Reading .parquet files through duckdb, which is an extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flowzoo.data.folder import existing_file
from flowzoo.data.table import Table, pick_columns
from flowzoo.data.validation import Origin, describe
from flowzoo.errors import BadData, UserError


def read_parquet(path: Path, columns: list[str] | None = None) -> Table:
    """Read a .parquet file.

    Arguments:
        path: The file.
        columns: Names of the columns to read; None reads all.

    Returns:
        The table, float64.

    Raises:
        UserError: duckdb is not installed.
        BadData: The file is missing or damaged, or a cell is no finite number.
    """
    existing_file(path)
    try:
        import duckdb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"{path} needs duckdb: install it with pip install 'flowzoo[parquet]'."
        ) from None
    try:
        with duckdb.connect() as connection:
            cursor = connection.read_parquet(_literal(path))
            names = tuple(cursor.columns)
            picks = pick_columns(str(path), names, columns)
            fetched: dict[str, Any] = cursor.fetchnumpy()
    except duckdb.Error as error:
        raise BadData(
            f"{path} is no readable .parquet file: {str(error).splitlines()[0]}"
        ) from None
    origin = Origin(str(path), names)
    chosen = [_numbers(fetched[names[pick]], pick, origin) for pick in picks]
    return Table(np.stack(chosen, 1), tuple(names[pick] for pick in picks))


def _numbers(values: np.ndarray, index: int, origin: Origin) -> np.ndarray:
    """One column (n,) as float64, or an error for its first cell that is no finite number."""
    missing = np.ma.getmaskarray(values)
    if missing.any():
        raise origin.bad_cell(int(missing.argmax()) + 1, index, "")
    plain = np.ma.getdata(values)
    if plain.dtype.kind not in "biuf":
        raise _not_numeric(plain, index, origin)
    numbers = plain.astype(np.float64)
    finite = np.isfinite(numbers)
    if not finite.all():
        row = int(finite.argmin())
        raise origin.bad_cell(row + 1, index, str(numbers[row]))
    return numbers


def _not_numeric(values: np.ndarray, index: int, origin: Origin) -> BadData:
    for row, value in enumerate(values):
        if describe(str(value)).startswith("is not a number"):
            return origin.bad_cell(row + 1, index, str(value))
    return BadData(f"{origin.source}: {origin.column(index)} is of a type that is not numeric.")


def _literal(path: Path) -> str:
    """The path with glob characters escaped, as duckdb would expand them."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in str(path))
