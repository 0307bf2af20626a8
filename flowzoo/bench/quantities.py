"""What a table can show of a record: measures of the judge, and what the cell cost."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from flowzoo.bench.record import Record
from flowzoo.errors import UserError
from flowzoo.registry import Registry, suggest

Column = Callable[[Record], Any]


@dataclass(frozen=True)
class Quantity:
    """A kind of number.

    Arguments:
        name: What a table is asked for.
        title: What its header says.
        unit: What it is measured in.
        better: Which direction is better; None for a description.
        note: How it was measured.
    """

    name: str
    title: str
    unit: str = ""
    better: str | None = None
    note: str = ""

    @property
    def header(self) -> str:
        """Title, unit and arrow: `NLL (nats) ↓`."""
        unit = f" ({self.unit})" if self.unit else ""
        return self.title + unit + {"lower": " ↓", "higher": " ↑"}.get(str(self.better), "")


class Reading(NamedTuple):
    """What a record says of a quantity.

    Arguments:
        value: The number; text where a plugin's column gives text.
        error: Half the width of its 99 % interval, None where not estimated.
        solver: The solver's part of that error.
    """

    value: float | str
    error: float | None = None
    solver: float = 0.0


_MEGABYTE = 2.0**20
_COSTS: dict[str, tuple[Quantity, float]] = {
    q.name: (q, scale)
    for q, scale in (
        (Quantity("train_seconds", "training", "s", "lower"), 1.0),
        (Quantity("evaluate_seconds", "judging", "s", "lower"), 1.0),
        (Quantity("steps", "steps"), 1.0),
        (Quantity("samples", "points seen"), 1.0),
        (Quantity("nfe_forward", "NFE forward"), 1.0),
        (Quantity("nfe_backward", "NFE backward"), 1.0),
        (Quantity("parameters", "parameters"), 1.0),
        (Quantity("peak_memory", "memory", "MB", "lower"), _MEGABYTE),
        (Quantity("peak_gpu_memory", "GPU memory", "MB", "lower"), _MEGABYTE),
    )
}
_TITLES = {
    "nll": "NLL",
    "nll-own": "NLL, own numerics",
    "bits-per-dim": "bits/dim",
    "kl": "KL",
    "mmd-m": "MMD-m",
    "mmd-1": "MMD-1",
    "mmd-c": "MMD-c",
    "w2": "W2",
    "sliced-w2": "sliced W2",
    "nfe": "NFE",
    "npe": "NPE",
}


def quantity(records: Iterable[Record], name: str, extra: Mapping[str, Column]) -> Quantity:
    """Return what is known of a quantity from the records that have it.

    Raises:
        UserError: No record has it and it is no cost; says which there are.
    """
    records = list(records)
    found = [r.metrics[name] for r in records if name in r.metrics]
    if found:
        units = dict.fromkeys(m.get("unit") or "" for m in found)
        notes = dict.fromkeys(m.get("note") or "" for m in found)
        title = _TITLES.get(name, name)
        note = "; ".join(filter(None, notes))
        return Quantity(name, title, "/".join(units), found[0].get("better"), note)
    if name in _COSTS:
        return _COSTS[name][0]
    if name in extra:
        return Quantity(name, name)
    measured = {m for r in records for m in r.metrics}
    if not measured:  # nothing is ok yet: the states can be shown under any name
        return Quantity(name, _TITLES.get(name, name))
    known = [*sorted(measured), *_COSTS, *extra]
    raise UserError(f"no cell has the metric '{name}'{suggest(name, known, 'metrics')}")


def plugin_columns(registry: Registry) -> dict[str, Column]:
    """Return the columns that plugins add to tables, by title (hook `flowzoo_table_columns`)."""
    from flowzoo.hooks import plugin_manager

    offers = plugin_manager(registry).notify("flowzoo_table_columns")
    return {title: column for offer in offers for title, column in offer.items()}


def measured(record: Record, name: str, extra: Mapping[str, Column]) -> Reading | None:
    """Return a record's value with its own error; None where it has none.

    A plugin's column may give text; one that raises has none for this record.
    """
    if name in record.metrics:
        measure = record.metrics[name]
        value = measure["value"]
        if value is None or not math.isfinite(value):
            return None
        solver = (measure.get("parts") or {}).get("solver") or 0.0
        return Reading(float(value), measure.get("error"), solver)
    if name in _COSTS:
        value = record.costs.get(name)
        return None if value is None else Reading(float(value) / _COSTS[name][1])
    value = None
    if name in extra:
        try:
            value = extra[name](record)
        except Exception as error:
            warnings.warn(f"the column {name} raised {error!r} for {record.folder}", stacklevel=2)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return Reading(float(value) if number else str(value))
