"""The one door that rows come through: bad data is refused with a sentence naming the cell."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from flowzoo.data.dataset import Data
from flowzoo.errors import BadData

MINIMUM_ROWS = 10  # per split: fewer say nothing about a density


@dataclass(frozen=True)
class Origin:
    """Where a table came from, to name its cells as the user sees them.

    Arguments:
        source: Name of the file or set, as printed.
        columns: Names of the columns; empty where they have none and are numbered from 1.
        counting: How rows are counted, as printed.
    """

    source: str
    columns: tuple[str, ...] = ()
    counting: str = "rows are counted from 1"

    def column(self, index: int) -> str:
        """Name column `index`, counted from 0, as the user sees it."""
        return f"column '{self.columns[index]}'" if self.columns else f"column {index + 1}"

    def bad_cell(self, row: int, column: int, value: str) -> BadData:
        """Make the error for a cell: `row` as the user counts it, `column` from 0."""
        return BadData(
            f"{self.source}: {self.column(column)}, row {row} {describe(value)}; every value must"
            f" be a finite number ({self.counting})."
        )


def describe(value: str) -> str:
    """Say what is wrong with the text of a cell, as the end of 'the cell ...'."""
    text = value.strip()
    if not text:
        return "is empty"
    try:
        number = float(text)
    except ValueError:
        shown = text if len(text) <= 40 else text[:37] + "..."
        return f"is not a number: {shown!r}"
    return "is NaN" if math.isnan(number) else f"is not finite: {text}"


def check_table(values: np.ndarray, origin: Origin) -> np.ndarray:
    """Return a table as float64 (n, d) when it is two-dimensional, real and finite.

    Raises:
        BadData: It is not; the sentence names the first offending cell.
    """
    if values.dtype.names is not None:
        raise BadData(f"{origin.source} is a structured array; save a plain (rows, columns) array.")
    if values.dtype.kind == "c":
        raise BadData(f"{origin.source} holds complex numbers; flows need real ones.")
    if values.ndim != 2:
        raise BadData(
            f"{origin.source} has {values.ndim} dimension{'s' * (values.ndim != 1)}, shape"
            f" {values.shape}; rows need shape (rows, columns)."
        )
    if values.shape[1] == 0:
        raise BadData(f"{origin.source} has no columns.")
    if values.dtype.kind not in "biuf":
        values = _parse_text(values, origin)
    table = values.astype(np.float64, copy=False)
    finite = np.isfinite(table)
    if not finite.all():
        row, column = divmod(int(finite.argmin()), table.shape[1])
        raise origin.bad_cell(row + 1, column, str(table[row, column]))
    return table


def _parse_text(values: np.ndarray, origin: Origin) -> np.ndarray:
    """Read an array of text as numbers, or name its first cell that is none."""
    if values.dtype.kind not in "US":
        raise BadData(f"{origin.source} holds values of type {values.dtype}, not numbers.")
    try:
        return values.astype(np.float64)
    except ValueError:
        for index, value in enumerate(values.flat):
            if describe(str(value)).startswith(("is not a number", "is empty")):
                row, column = divmod(index, values.shape[1])
                raise origin.bad_cell(row + 1, column, str(value)) from None
        raise BadData(f"{origin.source} holds text that is no number.") from None


def validate(data: Data, source: str, minimum: int = MINIMUM_ROWS) -> Data:
    """Return the data when flows can be fitted to it.

    Arguments:
        data: What a loader made.
        source: How messages name it: the file, or the name of the set.
        minimum: Least number of rows in each split.

    Raises:
        BadData: A split is no finite (n, d) table, splits differ in width, one has too few rows,
            names or contexts do not match, or a column is constant in the training rows.
    """
    for split, rows in _splits(data):
        check_table(rows.numpy(), Origin(f"{source} ({split})", data.columns))
        if rows.shape[1] != data.dim:
            raise BadData(
                f"{source} has {data.dim} columns in train but {rows.shape[1]} in {split}; all"
                " splits need the same columns."
            )
        if len(rows) < minimum:
            raise BadData(
                f"{source} gives {len(rows)} {split} rows; each of train, val and test needs at"
                f" least {minimum}."
            )
    if data.columns and len(data.columns) != data.dim:
        raise BadData(f"{source} names {len(data.columns)} columns but has {data.dim}.")
    _check_contexts(data, source)
    _check_spread(data, source)
    return data


def _splits(data: Data) -> list[tuple[str, Tensor]]:
    return [("train", data.train), ("val", data.val), ("test", data.test)]


def _check_contexts(data: Data, source: str) -> None:
    contexts = (data.train_context, data.val_context, data.test_context)
    if all(context is None for context in contexts):
        return
    for (split, rows), context in zip(_splits(data), contexts, strict=True):
        if context is None or len(context) != len(rows):
            found = "none" if context is None else f"{len(context)} rows"
            raise BadData(f"{source} has {len(rows)} {split} rows but {found} of context.")


def _check_spread(data: Data, source: str) -> None:
    """Refuse columns whose training values do not vary, or vary too much for float64."""
    low, high = data.train.amin(0), data.train.amax(0)
    origin = Origin(source, data.columns)
    for index in (low == high).nonzero().flatten().tolist():
        raise BadData(
            f"{source}: {origin.column(index)} is constant in the training rows (always"
            f" {low[index].item():g}), so it has no density; leave it out."
        )
    deviation = data.train.std(0, correction=0)
    for index in (~deviation.isfinite() | (deviation == 0)).nonzero().flatten().tolist():
        raise BadData(
            f"{source}: {origin.column(index)} has no usable standard deviation in float64 (values"
            f" from {low[index].item():g} to {high[index].item():g}); rescale it."
        )
