"""Tables as text: terminal, markdown, LaTeX, csv, JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flowzoo.bench.captions import BEST, STAR
from flowzoo.bench.files import finite
from flowzoo.bench.tables import Entry, Table

if TYPE_CHECKING:
    from rich.console import Console, Group

_POWER = re.compile(r"(\d)e-0*(\d+)")
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # a row that begins with one would give \\ an argument
    "]": "{]}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "–": "--",
    "−": "$-$",
}


def terminal(table: Table) -> Group:
    """Return what rich prints: the table, its caption and its footnotes."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(header_style="bold")
    grid.add_column(Text(table.corner))
    columns = [
        _aligned([line.entries[j] for line in table.lines]) for j in range(len(table.columns))
    ]
    for title, texts in zip(table.columns, columns, strict=True):
        width = max(map(len, [*title.split(), *texts]), default=1)
        grid.add_column(Text(title), width=width)  # titles may be wrapped, numbers may not
    for i, line in enumerate(table.lines):
        if line.reference and i and not table.lines[i - 1].reference:
            grid.add_section()
        styles = ["bold" if entry.best else "" for entry in line.entries]
        texts = [column[i] for column in columns]
        grid.add_row(Text(line.label), *map(Text, texts, styles))
    notes = "\n".join(f"[{mark}] {text}" for mark, text in table.footnotes.items())
    caption = table.caption.replace(BEST, STAR)
    below = [Padding(Text(text), (1, 0, 0, 0)) for text in (caption, notes) if text]
    return Group(grid, *below)


def plain(table: Table, console: Console | None = None) -> str:
    """Return a table as a terminal shows it, no number cut; without `console`, for a file or pipe.

    Arguments:
        table: The table.
        console: The terminal, which is made wider where it is too narrow for the numbers.
    """
    from rich.console import Console

    shown, tty = terminal(table), console is not None
    console = console or Console(width=80, force_terminal=False, color_system=None)
    wide = console.measure(shown.renderables[0], options=console.options.update(width=1000))
    console.width = max(console.width, wide.minimum if tty else wide.maximum)
    with console.capture() as capture:
        console.print(shown)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _aligned(entries: Sequence[Entry]) -> list[str]:
    """Return a column as text: numbers end in one place, marks follow."""
    parts = [_parts(entry) for entry in entries]
    numbers = [number for number, _, _ in parts]
    marks = [
        f" {'*' if entry.best else tie or ' '}{f' [{notes}]' if notes else ''}".rstrip()
        for entry, (_, tie, notes) in zip(entries, parts, strict=True)
    ]
    left, right = (max(map(len, texts), default=0) for texts in (numbers, marks))
    return [f"{n:>{left}}{m:<{right}}" for n, m in zip(numbers, marks, strict=True)]


def markdown(table: Table) -> str:
    """Return a GitHub-flavoured table with caption and footnotes."""
    rows = [[line.label, *map(_markdown, line.entries)] for line in table.lines]
    escaped = [[text.replace("|", r"\|") for text in row] for row in rows]
    header = [text.replace("|", r"\|") for text in (table.corner, *table.columns)]
    widths = [max(len(row[i]) for row in [header, *escaped]) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    lines = [
        "| " + " | ".join(f"{text:<{w}}" for text, w in zip(row, widths, strict=True)) + " |"
        for row in [header, rule, *escaped]
    ]
    notes = [f"[{mark}] {text}" for mark, text in table.footnotes.items()]
    below = [table.caption, "  \n".join(notes)]
    return "\n".join(lines) + "\n" + "".join(f"\n{text}\n" for text in below if text)


def latex(table: Table) -> str:
    r"""Return a `table` environment; the document needs `\usepackage{booktabs}`."""
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape(table.caption)}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule"]
    lines += [" & ".join(map(escape, (table.corner, *table.columns))) + r" \\", r"\midrule"]
    for i, line in enumerate(table.lines):
        if line.reference and i and not table.lines[i - 1].reference:
            lines.append(r"\midrule")
        lines.append(" & ".join([escape(line.label), *map(_latex, line.entries)]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.footnotes:
        lines.append(r"\par\smallskip\footnotesize")
        lines += [rf"\textsuperscript{{{m}}} {escape(t)}\par" for m, t in table.footnotes.items()]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def comma_separated(table: Table) -> str:
    """Return one line for each entry, numbers unrounded: what a program reads."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["row", "column", "value", "spread", "measurement_error", "error", "seeds",
                     "state", "best", "tied", "notes"])  # fmt: skip
    for line in table.lines:
        for column, entry in zip(table.columns, line.entries, strict=True):
            s = entry.summary
            text = entry.text if entry.state == "ok" else None
            numbers = [s.mean, s.spread, s.measurement, s.error, s.n] if s else [text, *[None] * 4]
            notes = " ".join(table.footnotes[mark] for mark in entry.notes)
            writer.writerow(
                [line.label, column, *numbers, entry.state, entry.best, entry.tied, notes]
            )
    return stream.getvalue()


def as_json(table: Table) -> str:
    """Return the whole table as JSON, numbers unrounded."""
    return json.dumps(finite(asdict(table)), indent=2, ensure_ascii=False) + "\n"


def escape(text: str) -> str:
    """Return text with everything that LaTeX would take for a command made plain."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _parts(entry: Entry) -> tuple[str, str, str]:
    """Return number, mark of a tie, marks of footnotes."""
    number = f"{entry.text} ± {entry.spread}" if entry.spread else entry.text
    return number, "≈" if entry.tied else "", ",".join(entry.notes)


def _markdown(entry: Entry) -> str:
    number, tie, notes = _parts(entry)
    number = f"**{number}**" if entry.best else number
    return " ".join(filter(None, (number, tie, f"[{notes}]" if notes else "")))


def _latex(entry: Entry) -> str:
    number, tie, notes = _parts(entry)
    if entry.summary is not None:  # digits and a sign
        number = f"{entry.text} \\pm {entry.spread}" if entry.spread else entry.text
        number = _POWER.sub(r"\1 \\cdot 10^{-\2}", number)
        number = f"$\\mathbf{{{number}}}$" if entry.best else f"${number}$"
    else:
        number = escape(number)
    return (
        number
        + (f"$^{{{escape(tie)[1:-1]}}}$" if tie else "")
        + (rf"\textsuperscript{{{notes}}}" if notes else "")
    )


RENDERERS: dict[str, Any] = {
    "markdown": markdown,
    "latex": latex,
    "csv": comma_separated,
    "json": as_json,
}
