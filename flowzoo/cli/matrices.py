"""Commands on matrices and their runs: `plan`, `run`, `status`, `table`, `draw`."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowzoo.cli.options import Command, count_type, json_option
from flowzoo.cli.tables import FORMATS, blocks_text, table_text
from flowzoo.errors import UserError

if TYPE_CHECKING:
    from flowzoo.bench import Matrix, Record, Store
    from flowzoo.registry import Registry

matrix_argument = click.argument("matrix", type=click.Path(path_type=Path))
run_argument = click.argument("run", type=click.Path(path_type=Path))


@click.command("plan", cls=Command)
@matrix_argument
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder [runs/NAME].")
@json_option
def plan_command(matrix: Path, out: Path | None, as_json: bool) -> None:
    """Say what a MATRIX file would run.

    Lists its cells, and which of them have a result. Checks everything that can be checked
    without importing torch; runs nothing.

    Examples:
      flowzoo plan benchmarks/quickstart.yaml
      flowzoo plan my.yaml --json
    """
    from flowzoo.bench import load_matrix

    plan = load_matrix(matrix)
    rows = [_planned(cell, state) for cell, state in _states(plan, out)]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from tabulate import tabulate

    shown = [[row["flow"], row["data"], row["seed"], row["budget"], row["state"]] for row in rows]
    click.echo(f"{plan.title}: {len(rows)} cells, {_count(row['state'] for row in rows)}\n")
    click.echo(tabulate(shown, ["flow", "data", "seed", "budget", "state"], disable_numparse=True))
    for why in dict.fromkeys(row["skip"] for row in rows if row["skip"]):
        click.echo(f"\nskipped: {why}")


@click.command("run", cls=Command)
@matrix_argument
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder [runs/NAME].")
@click.option(
    "--jobs", "-j", type=count_type, default=1, show_default=True, help="Cells at a time."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--rerun", multiple=True, metavar="STATE", help="Run cells of this state again; "
              "`stale` means code or data changed. May be repeated.")  # fmt: skip
@json_option
def run_command(
    matrix: Path, out: Path | None, jobs: int, device: str, rerun: Sequence[str], as_json: bool
) -> int:
    """Run what a MATRIX file asks for and has no result yet.

    The same command goes on where it was interrupted: finished cells are not touched, a fit goes on
    from its checkpoint. Ends with the table and the pictures. Exit code 1 if a cell failed.

    Examples:
      flowzoo run benchmarks/quickstart.yaml --jobs 2
      flowzoo run my.yaml --device cuda --rerun failed --rerun stale
    """
    from rich.console import Console

    from flowzoo.bench import load_matrix, run
    from flowzoo.bench.progress import watcher
    from flowzoo.bench.runner import RUNS

    plan = load_matrix(matrix)
    folder = out or RUNS / plan.name
    try:
        observer = watcher(Console(stderr=True))
        records = run(plan, folder, jobs=jobs, device=device, rerun=rerun, observer=observer)
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; go on with: flowzoo run {matrix} --out {folder}", err=True)
        raise
    if as_json:
        click.echo(json.dumps([record.to_mapping() for record in records], indent=2))
    else:
        _conclude(folder, records)
    bad = {"failed", "diverged", "timeout", "out-of-memory", "killed", "not-run"}
    return int(any(record.state in bad for record in records))


@click.command("status", cls=Command)
@run_argument
@json_option
def status_command(run: Path, as_json: bool) -> None:
    """List the cells of a RUN with their states and reasons.

    Examples:
      flowzoo status runs/quickstart
    """
    from flowzoo.bench import Store

    store = Store.open(run)
    records, old = store.records(), store.superseded()
    if as_json:
        mappings = [{**r.to_mapping(), "stale": list(r.stale)} for r in records]
        click.echo(json.dumps(mappings, indent=2))
        return
    from tabulate import tabulate

    rows = [[r.label, r.data, str(r.seed), r.state, _why(r, store)] for r in records]
    header = ["flow", "data", "seed", "state", "reason"]
    before = tabulate([row[:-1] for row in rows], header[:-1]).split("\n")[1]
    left = max(24, shutil.get_terminal_size().columns - len(before) - 2)
    click.echo(f"{store.title}: {_count(r.state for r in records)}\n")
    click.echo(tabulate(rows, header, disable_numparse=True, maxcolwidths=[*[None] * 4, left]))
    if old:
        click.echo(f"\n{len(old)} results of recipes that the matrix no longer has: "
                   + ", ".join(record.folder for record in old))  # fmt: skip


@click.command("table", cls=Command)
@run_argument
@click.option("--rows", default="flow", show_default=True, help="flow, data, seed or metric.")
@click.option("--columns", default="data", show_default=True, help="Likewise.")
@click.option("--metric", "-m", multiple=True, help="What is shown [nll]; may be repeated.")
@click.option("--flow", "flows", multiple=True, metavar="LABEL",
              help="Show this flow; may be repeated [all].")  # fmt: skip
@click.option("--data", "datasets", multiple=True, metavar="LABEL",
              help="Show this data set; may be repeated [all].")  # fmt: skip
@click.option("--blocks", is_flag=True, help="Show what each block of a chain did that was trained "
              "block by block: a table for each cell.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(FORMATS), default="terminal",
              show_default=True, help="How it is written.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Write to this file.")
def table_command(
    run: Path,
    rows: str,
    columns: str,
    metric: Sequence[str],
    flows: Sequence[str],
    datasets: Sequence[str],
    blocks: bool,
    form: str,
    out: Path | None,
) -> None:
    """Print a comparison table of a RUN.

    Examples:
      flowzoo table runs/quickstart
      flowzoo table runs/quickstart --metric train_seconds
      flowzoo table runs/quickstart --data moons --columns metric
      flowzoo table runs/quickstart --format latex --out table.tex
      flowzoo table runs/jko --blocks --flow jko-iflow
    """
    from flowzoo.bench import Store
    from flowzoo.bench.quantities import plugin_columns
    from flowzoo.bench.tables import table

    store = Store.open(run)
    records = _chosen(_chosen(store.records(), "label", flows), "data", datasets)
    if blocks:
        if (rows, columns) != ("flow", "data"):
            raise UserError("--blocks has rows and columns of its own: leave out --rows, --columns")
        text = blocks_text(records, metric, _registry(store), form, out)
    else:
        extra = plugin_columns(_registry(store))
        made = table(records, rows, columns, list(metric) or None, extra)
        text = table_text(made, form, out)
    if out is None:
        click.echo(text)
    else:
        out.write_text(f"{text.rstrip()}\n", encoding="utf-8")
        click.echo(f"wrote {out}", err=True)


@click.command("draw", cls=Command)
@run_argument
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the pictures [RUN].")
def draw_command(run: Path, out: Path | None) -> None:
    """Draw the densities, samples and curves of a RUN, and what blocks did.

    Every picture is written as PNG and as PDF.

    Examples:
      flowzoo draw runs/quickstart
    """
    from flowzoo.bench.pictures import draw_run

    for path in draw_run(run, out or run):
        click.echo(path)


def _chosen(records: list[Record], what: str, labels: Sequence[str]) -> list[Record]:
    """Return the records with one of these labels; all where none is given."""
    from flowzoo.registry import suggest

    known = dict.fromkeys(getattr(record, what) for record in records)
    for label in labels:
        if label not in known:
            where = {"label": "flow"}.get(what, what)
            raise UserError(f"the run has no {where} '{label}'{suggest(label, known)}")
    return [record for record in records if not labels or getattr(record, what) in labels]


def _registry(store: Store) -> Registry:
    """Return the components that a run's cells know, with those of their plugin files."""
    from flowzoo.registry import Registry

    cells = store.cells()
    return cells[0].registry() if cells else Registry.installed()


def _conclude(folder: Path, records: Sequence[Record]) -> None:
    from flowzoo.bench.pictures import draw_run
    from flowzoo.bench.tables import table

    click.echo(table_text(table(records)))
    click.echo()
    for path in draw_run(folder, folder):
        if path.suffix == ".png":
            click.echo(f"picture: {path}")
    click.echo(f"the run is in {folder}: flowzoo status {folder}, flowzoo table {folder}")


def _states(plan: Matrix, out: Path | None) -> list[tuple[Any, str]]:
    from flowzoo.bench import Store
    from flowzoo.bench.runner import RUNS

    store = Store(out or RUNS / plan.name)
    return [(cell, store.record(cell).state) for cell in plan.cells()]


def _planned(cell: Any, state: str) -> dict[str, Any]:
    from flowzoo.bench.captions import budget_text

    row = asdict(cell)
    return {
        "flow": cell.label,
        "data": cell.data,
        "seed": cell.seed,
        "budget": budget_text(cell.budget),
        "state": "skipped" if cell.skip and state == "not-run" else state,
        "skip": cell.skip,
        "folder": cell.folder,
        "key": cell.key,
        **{name: row[name] for name in ("recipe", "flow_spec", "objective", "dataset", "training")},
    }


def _why(record: Record, store: Store) -> str:
    from flowzoo.bench.files import read_json
    from flowzoo.bench.progress import progress_text
    from flowzoo.bench.store import PROGRESS

    stale = f"stale: {', '.join(record.stale)} changed" if record.stale else ""
    said = read_json(store.folder / record.folder / PROGRESS) if record.state == "running" else None
    return "; ".join(text for text in (record.reason, stale, said and progress_text(said)) if text)


def _count(states: Any) -> str:
    return ", ".join(f"{n} {state}" for state, n in Counter(states).most_common())
