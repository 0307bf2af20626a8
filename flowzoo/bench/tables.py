"""Comparison tables: records in, rows and columns out; every state is shown, nothing is dropped."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flowzoo.bench import captions
from flowzoo.bench.quantities import Column, Quantity, measured, quantity
from flowzoo.bench.record import Record
from flowzoo.bench.statistics import Summary, decimals, printed, resolved, summarise, tied
from flowzoo.errors import UserError
from flowzoo.registry import suggest

AXES = ("flow", "data", "seed", "metric")
REFERENCES = {"gaussian": "Gaussian, full covariance", "entropy": "true entropy"}
_ABSENT = "–"


@dataclass(frozen=True)
class Entry:
    """One entry of a table.

    Arguments:
        text: The number, or the state where there is none.
        spread: What follows ±; empty for nothing.
        summary: The numbers behind it; None where there are none.
        state: `ok`, the state of the cells, or `absent`.
        best: Whether it is the best of those it is compared with.
        tied: Whether it cannot be told from the best.
        notes: Marks of the footnotes.
    """

    text: str
    spread: str = ""
    summary: Summary | None = None
    state: str = "absent"
    best: bool = False
    tied: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """A row: its label, its entries, and whether it is a reference that nobody competes with."""

    label: str
    entries: tuple[Entry, ...]
    reference: bool = False


@dataclass(frozen=True)
class Table:
    """A table as data; `flowzoo.bench.render` makes text of it.

    Arguments:
        corner: What the rows are, and of which quantity if all entries are of one.
        columns: Headers.
        lines: The rows.
        caption: What the numbers are: quantity, budget, seeds, judge, marks.
        footnotes: Reasons and remarks by mark.
    """

    corner: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    caption: str
    footnotes: dict[str, str] = field(default_factory=dict)


def table(
    records: Sequence[Record],
    rows: str = "flow",
    columns: str = "data",
    metric: str | Sequence[str] | None = None,
    extra: Mapping[str, Column] | None = None,
) -> Table:
    """Return a table of records; seeds that are on no axis are averaged over.

    Arguments:
        records: What to show.
        rows: Axis of the rows: `flow`, `data`, `seed` or `metric`.
        columns: Axis of the columns.
        metric: The quantity or quantities shown; by default `nll`, or along an axis `metric` all.
        extra: More quantities by title, as functions of a record (hook `flowzoo_table_columns`).

    Raises:
        UserError: An axis or a metric is unknown, or entries would mix data sets or flows.
    """
    for axis in (rows, columns):
        if axis not in AXES:
            raise UserError(f"unknown axis '{axis}'{suggest(axis, AXES, 'axes')}")
    if rows == columns:
        raise UserError(f"rows and columns are both '{rows}'; choose two of {', '.join(AXES)}")
    if not records:
        raise UserError("there are no cells to make a table of")
    extra = extra or {}
    names = _names(records, "metric" in (rows, columns), metric, extra)
    quantities = {name: quantity(records, name, extra) for name in names}
    return _Maker(list(records), rows, columns, quantities, extra).table()


def _names(
    records: Sequence[Record], every: bool, metric: Any, extra: Mapping[str, Column]
) -> list[str]:
    if metric is not None:
        return [metric] if isinstance(metric, str) else list(metric)
    if not every:
        return ["nll"]
    judged = dict.fromkeys(name for record in records for name in record.metrics)
    return [*(judged or ["nll"]), "train_seconds", *extra]


class _Maker:
    """Makes one table: keys of rows and columns, entries, comparisons, footnotes."""

    def __init__(
        self,
        records: list[Record],
        rows: str,
        columns: str,
        quantities: dict[str, Quantity],
        extra: Mapping[str, Column],
    ) -> None:
        self.records, self.rows, self.columns = records, rows, columns
        self.quantities, self.extra = quantities, extra
        self.footnotes: dict[str, str] = {}  # mark by text
        for axis in ("flow", "data"):
            values = self.values(axis)
            if axis not in (rows, columns) and len(values) > 1:
                shown = ", ".join(map(str, values))
                raise UserError(
                    f"every entry would mix several of {axis} ({shown}); choose the axis '{axis}' "
                    "or show one of them"
                )

    def table(self) -> Table:
        """Return the table."""
        names = list(self.quantities)
        on_rows = self.rows == "metric"
        columns = [{self.columns: value} for value in self.values(self.columns)]
        if "metric" not in (self.rows, self.columns) and len(names) > 1:
            pairs = itertools.product(columns, names)
            columns = [{**column, "metric": name} for column, name in pairs]
        rows = [{self.rows: value} for value in self.values(self.rows)]
        rows, columns = self.with_references(rows), self.with_references(columns)
        keys = [[{"metric": names[0], **r, **c} for c in columns] for r in rows]
        grid = self.compared(keys, [[self.entry(key) for key in line] for line in keys])
        single = len(names) == 1 and not on_rows and self.columns != "metric"
        return Table(
            corner=self.quantities[names[0]].header if single else self.rows,
            columns=tuple(self.header(column) for column in columns),
            lines=tuple(
                Line(self.header(row), tuple(entries), "reference" in row)
                for row, entries in zip(rows, grid, strict=True)
            ),
            caption=captions.caption(self.records, list(self.quantities.values()), grid),
            footnotes={mark: text for text, mark in self.footnotes.items()},
        )

    def values(self, axis: str) -> list[Any]:
        """Return what stands along an axis, in the order of the records."""
        if axis == "metric":
            return list(self.quantities)
        name = {"flow": "label"}.get(axis, axis)
        return list(dict.fromkeys(getattr(record, name) for record in self.records))

    def with_references(self, keys: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the keys of the axis of flows followed by what the flows are compared with."""
        if not keys or "flow" not in keys[0] or "nll" not in self.quantities:
            return keys
        known = [n for n in REFERENCES if any(r.reference.get(n) is not None for r in self.records)]
        extra: list[dict[str, Any]] = [{"flow": None, "reference": name} for name in known]
        if "metric" in keys[0]:
            extra = [{**key, "metric": "nll"} for key in extra]
        return [*keys, *extra]

    def header(self, key: Mapping[str, Any]) -> str:
        """Return what a row or column is called."""
        if "reference" in key:
            return REFERENCES[key["reference"]]
        words = []
        for axis, value in key.items():
            if axis == "metric":
                words.append(self.quantities[value].header)
            elif axis == "data":
                words.append(captions.data_title(value, self.records))
            else:
                words.append(f"seed {value}" if axis == "seed" else str(value))
        return " ".join(words)

    def chosen(self, key: Mapping[str, Any]) -> list[Record]:
        """Return the records of one entry."""
        return [
            record
            for record in self.records
            if key.get("flow", record.label) in (record.label, None)
            and key.get("data", record.data) == record.data
            and key.get("seed", record.seed) == record.seed
        ]

    def entry(self, key: Mapping[str, Any]) -> Entry:
        """Return one entry, not yet compared with others."""
        records = self.chosen(key)
        if "reference" in key:
            return self.reference(records, key)
        if not records:
            return Entry(_ABSENT)
        ok = [record for record in records if record.state == "ok"]
        found = [v for r in ok if (v := measured(r, key["metric"], self.extra)) is not None]
        notes = tuple(dict.fromkeys(self.mark(text) for text in captions.remarks(records, ok)))
        if not found:
            states = dict.fromkeys(record.state for record in records)
            text = _ABSENT if ok else ", ".join(states).replace("not-run", "not run")
            return Entry(text, state="absent" if ok else next(iter(states)), notes=notes)
        texts = [v.value for v in found if isinstance(v.value, str)]
        if texts:
            return Entry(", ".join(dict.fromkeys(texts)), state="ok", notes=notes)
        numbers = [float(v.value) for v in found]
        summary = summarise(numbers, [v.error for v in found], [v.solver for v in found])
        value, spread = printed(summary)
        return Entry(value, spread, summary, "ok", notes=notes)

    def reference(self, records: list[Record], key: Mapping[str, Any]) -> Entry:
        """Return a reference's entry: the same for every flow, so the first that knows it."""
        name = key["reference"]
        if key["metric"] != "nll":
            return Entry(_ABSENT)
        values = [v for r in records if (v := r.reference.get(name)) is not None]
        if not values:
            return Entry(_ABSENT)
        error = max((r.reference.get(f"{name}_error") or 0.0 for r in records), default=0.0)
        summary = Summary(values[0], measurement=error or None)
        places = min(decimals(summary), 3)
        return Entry(f"{values[0]:.{places}f}", summary=summary, state="reference")

    def compared(self, keys: list[list[dict]], grid: list[list[Entry]]) -> list[list[Entry]]:
        """Mark the best flow, and its ties, among those of the same data, metric and seed.

        What is best by less than its solver may be off by is a tie, and a footnote says so.
        """
        groups: dict[tuple, list[tuple[int, int]]] = {}
        for i, line in enumerate(keys):
            for j, key in enumerate(line):
                if grid[i][j].state == "ok" and grid[i][j].summary is not None:
                    group = (key.get("data"), key["metric"], key.get("seed"))
                    groups.setdefault(group, []).append((i, j))
        for (_, metric, _), places in groups.items():
            better = self.quantities[metric].better
            if better not in ("lower", "higher") or len(places) < 2:
                continue
            sign = 1 if better == "lower" else -1
            numbers = {place: _summary(grid[place[0]][place[1]]) for place in places}
            best, second, *_ = sorted(places, key=lambda place: sign * numbers[place].mean)
            sure = resolved(numbers[best], numbers[second])
            for i, j in places:
                if (i, j) == best or numbers[i, j].mean == numbers[best].mean:
                    grid[i][j] = replace(grid[i][j], best=sure, tied=not sure)
                elif tied(numbers[i, j], numbers[best]) or (not sure and (i, j) == second):
                    grid[i][j] = replace(grid[i][j], tied=True)
            if not sure:
                notes = (*grid[best[0]][best[1]].notes, self.mark(_unresolved(numbers[best])))
                grid[best[0]][best[1]] = replace(grid[best[0]][best[1]], notes=notes)
        return grid

    def mark(self, text: str) -> str:
        """Return the mark of a footnote: a, b, ..., z, aa, ...; one for each text."""
        if text not in self.footnotes:
            n, mark = len(self.footnotes), ""
            while n >= 0:
                n, letter = divmod(n, 26)
                mark, n = chr(ord("a") + letter) + mark, n - 1
            self.footnotes[text] = mark
        return self.footnotes[text]


def _unresolved(best: Summary) -> str:
    return (
        f"Best by less than its solver may be off by ({best.solver:.2g}), so it is not set apart: "
        "judge it with more points solved again, or at a tighter tolerance."
    )


def _summary(entry: Entry) -> Summary:
    assert entry.summary is not None
    return entry.summary


def states(records: Iterable[Record]) -> dict[str, int]:
    """Return how many records are in each state, stale ones counted again as `stale`."""
    found: dict[str, int] = {}
    for record in records:
        for state in (record.state, *(["stale"] if record.stale else [])):
            found[state] = found.get(state, 0) + 1
    return found
