"""What is said around a table's numbers: the caption, the footnotes, the names of data sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flowzoo.bench.quantities import Quantity
from flowzoo.bench.record import Record
from flowzoo.bench.resources import duration_text
from flowzoo.bench.statistics import TIE_RULE

if TYPE_CHECKING:
    from flowzoo.bench.tables import Entry

BEST, STAR = "Bold: best", "*: best"  # the latter where letters are all alike
_LIMITS = {"steps": "steps", "samples": "training points", "nfe": "evaluations of the field"}


def caption(
    records: Sequence[Record], quantities: Sequence[Quantity], grid: Sequence[Sequence[Entry]]
) -> str:
    """Return what a table shows: quantity, seeds, budget, judge, and what its marks mean."""
    entries = [entry for line in grid for entry in line]
    sentences = [_what(quantities), _seeds(records, entries), _budgets(records)]
    notes = [f"{q.title} judged with {q.note}." for q in quantities if q.note]
    if any(entry.best for entry in entries):
        sentences.append(f"{BEST}.")
    if any(entry.tied for entry in entries):
        sentences.append(f"≈: tied with the best, that is, {TIE_RULE}.")
    return " ".join(filter(None, [*sentences[:3], *notes, *sentences[3:]]))


def _what(quantities: Sequence[Quantity]) -> str:
    def text(quantity: Quantity) -> str:
        facts = [quantity.unit, f"{quantity.better} is better" if quantity.better else ""]
        inside = ", ".join(filter(None, facts))
        return f"{quantity.title} ({inside})" if inside else quantity.title

    said = "; ".join(map(text, quantities))
    return said[:1].upper() + said[1:] + "."


def _seeds(records: Sequence[Record], entries: Sequence[Entry]) -> str:
    seeds = sorted({record.seed for record in records})
    if any(e.summary and e.summary.n > 1 for e in entries):
        listed = ", ".join(map(str, seeds))
        said = f"Mean ± sample standard deviation over {len(seeds)} seeds ({listed})"
        single = any(e.spread and e.summary and e.summary.n == 1 for e in entries)
        return said + ("; with one seed, ± is the measurement's 99 % interval." if single else ".")
    listed = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
    error = any(e.spread for e in entries)
    return f"One fit each ({listed})" + (
        "; ± is the measurement's 99 % interval." if error else "."
    )


def budget_text(budget: dict[str, Any]) -> str:
    """Return a budget in words: `30 s or 2000 steps`."""
    seconds = budget.get("seconds")
    parts = [duration_text(float(seconds))] if seconds is not None else []
    parts += [f"{budget[k]:g} {word}" for k, word in _LIMITS.items() if budget.get(k) is not None]
    return " or ".join(parts) or "none"


def _budgets(records: Sequence[Record]) -> str:
    by_budget: dict[str, list[str]] = {}
    for record in records:
        text = budget_text(record.composition.get("budget", {}))
        labels = by_budget.setdefault(text, [])
        if record.label not in labels:
            labels.append(record.label)
    if len(by_budget) == 1:
        return f"Budget of each fit: {next(iter(by_budget))}."
    each = "; ".join(f"{', '.join(labels)} {text}" for text, labels in by_budget.items())
    return f"Budgets differ: {each}."


def remarks(records: Sequence[Record], ok: Sequence[Record]) -> list[str]:
    """Return the footnotes of an entry: why seeds have no number, and which numbers are stale."""
    found: dict[tuple[str, str], list[int]] = {}
    for record in records:
        if record.state != "ok" and (record.reason or ok):
            found.setdefault((record.state, record.reason), []).append(record.seed)
    several = len({record.seed for record in records}) > 1
    notes = []
    for (state, reason), seeds in found.items():
        said = ": ".join(filter(None, (state.replace("not-run", "not run"), reason)))
        notes.append(f"{_seed_list(seeds)}: {said}." if several else f"{said}.")
    changed = list(dict.fromkeys(change for record in ok for change in record.stale))
    if changed:
        notes.append(f"Stale: changed since it was made: {', '.join(changed)}.")
    return notes


def _seed_list(seeds: Sequence[int]) -> str:
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))


def data_title(label: str, records: Sequence[Record]) -> str:
    """Return what a table calls a data set: its title, unless the matrix gives it another label."""
    for record in records:
        name = record.dataset.get("name")
        if record.data == label and name == label and record.dataset.get("title"):
            return record.dataset["title"]
    return label
