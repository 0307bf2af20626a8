"""Tables as the text that a command prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowzoo.bench import Record
    from flowzoo.bench.tables import Table
    from flowzoo.registry import Registry

FORMATS = ("terminal", "markdown", "latex", "csv", "json")


def table_text(made: Table, form: str = "terminal", out: Path | None = None) -> str:
    """Return a table as text; bold and wide as the terminal only where it goes to one."""
    from flowzoo.bench import render

    if form != "terminal":
        return render.RENDERERS[form](made)
    from rich.console import Console

    return render.plain(made, Console() if out is None and sys.stdout.isatty() else None)


def blocks_text(
    records: Sequence[Record],
    metrics: Sequence[str],
    registry: Registry,
    form: str,
    out: Path | None,
) -> str:
    """Return the tables of blocks as text; csv and JSON have all cells in one list of rows."""
    from flowzoo.bench import blocks
    from flowzoo.bench.files import finite

    if form == "csv":
        return blocks.comma_separated(records, metrics)
    if form == "json":
        return json.dumps(finite(blocks.plain_rows(records, metrics)), indent=2)
    made = blocks.block_tables(records, metrics, registry)
    return "\n\n".join(table_text(each, form, out).rstrip() for each in made)
