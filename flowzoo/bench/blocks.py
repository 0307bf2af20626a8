"""What block-wise training left in a record: rows of blocks, as tables and as plain data."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flowzoo.bench.quantities import Quantity
from flowzoo.bench.record import Record
from flowzoo.bench.statistics import Summary, printed
from flowzoo.bench.tables import Entry, Line, Table
from flowzoo.build import resolved
from flowzoo.errors import FlowzooError, UserError
from flowzoo.registry import Registry, suggest

SHOWN = ("h", "nll", "kl_decrease", "movement", "ratio", "round_trip", "steps", "seconds",
         "nfe_forward")  # fmt: skip
BRIEF = ("h", "nll", "kl_decrease", "movement", "ratio", "round_trip", "seconds")
_QUANTITIES = {
    q.name: q
    for q in (
        Quantity("h", "h"),
        Quantity("nll", "NLL", "nats"),
        Quantity("train_nll", "NLL, training", "nats"),
        Quantity("kl_decrease", "KL decrease", "nats"),
        Quantity("movement", "movement"),
        Quantity("ratio", "ratio"),
        Quantity("round_trip", "round trip"),
        Quantity("steps", "steps"),
        Quantity("samples", "points seen"),
        Quantity("seconds", "training", "s"),
        Quantity("nfe_forward", "NFE forward"),
        Quantity("nfe_backward", "NFE backward"),
        Quantity("push_nfe", "NFE of the push"),
        Quantity("push_seconds", "push", "s"),
    )
}
_MEANING = {
    "nll": "of validation points (of training points where there are none) after the block, in the "
    "coordinates of the data",
    "kl_decrease": "what the block takes off KL(points || N(0, I)), likewise",
    "movement": "(E|T(x) - x|^2)^(1/2) of training points, in the coordinates of the flow",
    "ratio": "E|T(x) - x|^2 / E|T(x)|^2",
    "round_trip": "the mean |T^-1(T(x)) - x|",
}


def block_rows(record: Record) -> list[dict[str, Any]]:
    """Return the stages of a record that say what a block did, or all blocks together.

    `nll` and `train_nll` are in the coordinates of the data; everything else is as recorded, in the
    flow's. `pass` is which time the blocks were trained, in words: `` for the first, then such as
    `reparametrised 1`. Empty for a flow that was not trained by blocks.
    """
    if not any(row.get("block") for row in record.stages):
        return []
    ladj = (record.dataset.get("standardised") or {}).get("ladj", 0.0)
    rows = []
    for stage in record.stages:
        if stage.get("nll") is None and not stage.get("block"):
            continue
        shifted = {k: stage[k] - ladj for k in ("nll", "train_nll") if stage.get(k) is not None}
        rows.append({**stage, **shifted, "pass": stage["stage"].partition(", ")[2]})
    return rows


def block_tables(
    records: Sequence[Record], metrics: Sequence[str] = (), registry: Registry | None = None
) -> list[Table]:
    """Return a table for each cell that was trained by blocks: a row for each stage.

    Arguments:
        records: The cells.
        metrics: The columns; `SHOWN` where there are none.
        registry: With it, the captions say which solver the numbers are of.

    Raises:
        UserError: No cell was trained by blocks, or there is no such column.
    """
    _check(metrics)
    return [_table(r, metrics or SHOWN, statements(r, registry)) for r in _by_blocks(records)]


def brief_table(record: Record) -> Table:
    """Return the short table, without a caption, that the command `fit` ends with."""
    return replace(_table(record, BRIEF), caption="")


def _check(metrics: Sequence[str]) -> None:
    for name in metrics:
        if name not in _QUANTITIES:
            raise UserError(f"blocks have no '{name}'{suggest(name, _QUANTITIES, 'metrics')}")


def _by_blocks(records: Sequence[Record]) -> list[Record]:
    found = [record for record in records if block_rows(record)]
    if not found:
        raise UserError(
            "no cell was trained block by block; recipes whose objective does that are jko-iflow "
            "and those that extend it"
        )
    return found


def _table(record: Record, names: Sequence[str], sentences: Sequence[str] = ()) -> Table:
    footnotes: dict[str, str] = {}
    lines = []
    for row in block_rows(record):
        entries = [_entry(row.get(name)) for name in names]
        if why := row.get("enough_blocks"):
            footnotes["a"] = f"No more blocks were added: {why}."
            entries[0] = replace(entries[0], notes=("a",))
        lines.append(Line(row["stage"], tuple(entries)))
    meaning = "; ".join(f"{_QUANTITIES[n].title}: {_MEANING[n]}" for n in names if n in _MEANING)
    return Table(
        corner=f"{record.label} on {record.data}, seed {record.seed}",
        columns=tuple(_QUANTITIES[name].header for name in names),
        lines=tuple(lines),
        caption=" ".join(filter(None, [meaning and f"{meaning}.", *sentences])),
        footnotes=footnotes,
    )


def _entry(value: float | None) -> Entry:
    if value is None or not math.isfinite(value):  # a file has no other numbers, either
        return Entry("–")
    summary = Summary(float(value))
    return Entry(printed(summary)[0], summary=summary, state="ok")


# --- the solver --------------------------------------------------------------------------------


def statements(record: Record, registry: Registry | None) -> list[str]:
    """Return sentences on the solver of a record's flow, and on how far off it is."""
    return [] if registry is None else [*_solver(record, registry), *_gap(record)]


def _solver(record: Record, registry: Registry) -> Iterator[str]:
    """Yield what trains the flow, and what solves it when it is used."""
    spec: Any = {}
    with contextlib.suppress(FlowzooError):  # a component may be gone
        spec = resolved("flow", record.composition.get("flow"), registry)
    parts = list(_solved(spec))
    if not parts:
        return
    training = _listed(part["integrator"] for part in parts)
    using = _listed(part.get("evaluation") or part["integrator"] for part in parts)
    trace = _listed(part["trace"] for part in parts)
    if training == using:
        yield (
            f"One solver throughout, in training, pushing, likelihood and sampling: {using}; "
            f"trace: {trace}."
        )
    else:
        yield (
            f"Solved in training by {training}, in pushing, likelihood and sampling by {using}; "
            f"trace: {trace}."
        )


def _gap(record: Record) -> Iterator[str]:
    """Yield how far the flow's own NLL is from the judge's."""
    own, judge = (record.metrics.get(name) for name in ("nll-own", "nll"))
    gap = own and own.get("parts", {}).get("own_minus_judge")
    if judge is None or own is None or gap is None:
        return
    error = own["parts"].get("own_minus_judge_error")
    yield (
        f"Own NLL less the judge's ({judge['note']}), on test points: {gap:.2g}"
        + ("" if error is None else f" ± {error:.1g}")
        + " nats."
    )


def _solved(spec: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every flow in a resolved spec that is the solution of an ODE."""
    if isinstance(spec, Mapping):
        if {"integrator", "trace"} <= set(spec):
            yield spec
        for value in spec.values():
            yield from _solved(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from _solved(value)


def _listed(specs: Iterator[Any]) -> str:
    return ", ".join(dict.fromkeys(map(_said, specs)))


def _said(spec: Any) -> str:
    """Return a component in words, with its numbers: `rk4-38 (steps 3)`."""
    if not isinstance(spec, Mapping):
        return "the default" if spec is None else str(spec)
    numbers = [
        f"{key} {value:g}"
        for key, value in spec.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return spec["name"] + (f" ({', '.join(numbers)})" if numbers else "")


# --- for a program -----------------------------------------------------------------------------


def plain_rows(records: Sequence[Record], metrics: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the rows of all cells as plain data, each with its cell, numbers unrounded.

    Arguments:
        records: The cells.
        metrics: Which facts; all where there are none.

    Raises:
        UserError: As `block_tables`.
    """
    _check(metrics)
    found = []
    for record in _by_blocks(records):
        cell = {"flow": record.label, "data": record.data, "seed": record.seed}
        for row in block_rows(record):
            kept = {name: row.get(name) for name in ("stage", "pass", "block", *metrics)}
            found.append({**cell, **(kept if metrics else row)})
    return found


def comma_separated(records: Sequence[Record], metrics: Sequence[str] = ()) -> str:
    """Return `plain_rows` as a line each, with a column for each fact."""
    rows = plain_rows(records, metrics)
    stream = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
