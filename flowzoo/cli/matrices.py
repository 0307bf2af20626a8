"""Commands on matrices and their runs: `plan`, `run`, `status`, `table`, `draw`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowzoo.cli.options import json_option

if TYPE_CHECKING:
    from flowzoo.bench import Matrix, Record

matrix_argument = click.argument("matrix", type=click.Path(path_type=Path))
run_argument = click.argument("run", type=click.Path(path_type=Path))
FORMATS = ("terminal", "markdown", "latex", "csv", "json")


@click.command("plan")
@matrix_argument
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder [runs/NAME].")
@json_option
def plan_command(matrix: Path, out: Path | None, as_json: bool) -> None:
    r"""Say what a MATRIX file would run: its cells, and which of them have a result.

    Checks everything that can be checked without importing torch; runs nothing.

    \b
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


@click.command("run")
@matrix_argument
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder [runs/NAME].")
@click.option("--jobs", "-j", default=1, show_default=True, help="Cells at a time.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--rerun", multiple=True, metavar="STATE", help="Run cells of this state again; "
              "`stale` means code or data changed. May be repeated.")  # fmt: skip
@json_option
def run_command(
    matrix: Path, out: Path | None, jobs: int, device: str, rerun: Sequence[str], as_json: bool
) -> int:
    r"""Run what a MATRIX file asks for and has no result yet.

    The same command goes on where it was interrupted: finished cells are not touched, a fit goes on
    from its checkpoint. Ends with the table and the pictures. Exit code 1 if a cell failed.

    \b
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


@click.command("status")
@run_argument
@json_option
def status_command(run: Path, as_json: bool) -> None:
    r"""List the cells of a RUN with their states and reasons.

    \b
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

    rows = [[r.label, r.data, r.seed, r.state, _why(r)] for r in records]
    click.echo(f"{store.title}: {_count(r.state for r in records)}\n")
    click.echo(tabulate(rows, ["flow", "data", "seed", "state", "reason"], disable_numparse=True,
                        maxcolwidths=[None, None, None, None, 60]))  # fmt: skip
    if old:
        click.echo(f"\n{len(old)} results of recipes that the matrix no longer has: "
                   + ", ".join(record.folder for record in old))  # fmt: skip


@click.command("table")
@run_argument
@click.option("--rows", default="flow", show_default=True, help="flow, data, seed or metric.")
@click.option("--columns", default="data", show_default=True, help="Likewise.")
@click.option("--metric", "-m", multiple=True, help="What is shown [nll]; may be repeated.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="terminal",
              show_default=True)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Write to this file.")
def table_command(
    run: Path, rows: str, columns: str, metric: Sequence[str], form: str, out: Path | None
) -> None:
    r"""Print a comparison table of a RUN.

    \b
    Examples:
      flowzoo table runs/quickstart
      flowzoo table runs/quickstart --metric train_seconds
      flowzoo table runs/quickstart --format latex --out table.tex
    """
    from flowzoo.bench import Store

    text = _table(Store.open(run).records(), rows, columns, metric, form)
    if out is None:
        click.echo(text)
    else:
        out.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
        click.echo(f"wrote {out}", err=True)


@click.command("draw")
@run_argument
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the pictures [RUN].")
def draw_command(run: Path, out: Path | None) -> None:
    r"""Draw densities, samples and learning curves of a RUN, as PNG and PDF.

    \b
    Examples:
      flowzoo draw runs/quickstart
    """
    from flowzoo.bench.pictures import draw_run

    for path in draw_run(run, out or run):
        click.echo(path)


def _table(
    records: Sequence[Record], rows: str, columns: str, metric: Sequence[str], form: str
) -> str:
    from flowzoo.bench import render
    from flowzoo.bench.tables import table
    from flowzoo.hooks import plugin_manager
    from flowzoo.registry import Registry

    extra: dict[str, Any] = {}
    listeners: Any = plugin_manager(Registry.installed()).hook
    for more in listeners.flowzoo_table_columns():
        extra |= more
    made = table(records, rows, columns, list(metric) or None, extra)
    if form == "terminal":
        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else 120)
        with console.capture() as capture:
            console.print(render.terminal(made))
        return capture.get().rstrip()
    return render.RENDERERS[form](made)


def _conclude(folder: Path, records: Sequence[Record]) -> None:
    from flowzoo.bench.pictures import draw_run

    click.echo(_table(records, "flow", "data", (), "terminal"))
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


def _why(record: Record) -> str:
    stale = f"stale: {', '.join(record.stale)} changed" if record.stale else ""
    return "; ".join(text for text in (record.reason, stale) if text)


def _count(states: Any) -> str:
    return ", ".join(f"{n} {state}" for state, n in Counter(states).most_common())
