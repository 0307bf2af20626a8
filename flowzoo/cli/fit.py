"""The command `fit`: train one flow, in a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowzoo.cli.options import (
    METRICS,
    Command,
    change,
    count_type,
    data_spec,
    json_option,
    lines,
    plugin_option,
    seed_type,
)
from flowzoo.errors import UserError

if TYPE_CHECKING:
    from flowzoo.bench import Cell, Record
    from flowzoo.registry.reader import Problem

_SOURCE = "command line"  # the matrix that the arguments of `fit` make
_PLACES = {  # what its keys are called there, the longer ones first
    "flows.0.set": "--set",
    "flows.0": "RECIPE",
    "data.0": "DATA",
    "recipes": "--recipes",
    "plugins": "--plugin",
}


@click.command("fit", cls=Command)
@click.argument("recipe")
@click.argument("data")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the flow.")
@click.option("--seed", type=seed_type, default=0, show_default=True, help="Of all that is random.")
@click.option("--steps", type=count_type, help="Budget: optimizer steps.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True),
              help="Budget: seconds of training.")  # fmt: skip
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE",
              help="Change a number or a part of the recipe; may be repeated.")  # fmt: skip
@click.option("--recipes", "files", multiple=True, type=click.Path(path_type=Path),
              help="A YAML file with more recipes; may be repeated.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@plugin_option
@json_option
def fit_command(
    recipe: str,
    data: str,
    out: Path,
    seed: int,
    steps: int | None,
    seconds: float | None,
    changes: Sequence[str],
    files: Sequence[Path],
    device: str,
    plugins: Sequence[Path],
    as_json: bool,
) -> int:
    """Train one RECIPE on DATA.

    DATA is a data set's name or spec, or a file of yours: .csv, .npy, .npz or .parquet. Ends with
    the judge's numbers. Run again, it goes on where it was interrupted.

    Examples:
      flowzoo fit ot-flow moons --out my-flow --steps 500
      flowzoo fit flow-matching table.csv --out my-flow --seconds 60
      flowzoo fit ffjord '{name: gaussian, dim: 10}' --out my-flow
      flowzoo fit ffjord moons --out my-flow --set flow.trace=hutchinson
    """
    content: dict[str, Any] = {
        "flows": [
            {
                "recipe": recipe,
                "set": dict(change(text, "training.batch_size=256") for text in changes),
            }
        ],
        "data": [data_spec(data)],
        "seeds": [seed],
        "metrics": list(METRICS),
        "recipes": [str(path.resolve()) for path in files],
        "plugins": [str(path.resolve()) for path in plugins],
    }
    limits = {"steps": steps, "seconds": seconds}
    if any(limit is not None for limit in limits.values()):
        content["budget"] = limits
    record = _fit(_cell(content), out, device)
    if as_json:
        click.echo(json.dumps(record.to_mapping(), indent=2))
    elif record.state == "ok":
        _report(record, out)
    else:
        click.echo(f"{record.state}: {record.reason}", err=True)
    return int(record.state != "ok")


def _cell(content: dict[str, Any]) -> Cell:
    """Return the one cell of a matrix made of arguments, checked whole.

    Raises:
        Problems: Everything that is wrong, with the arguments it is about.
    """
    from flowzoo.bench.matrix import matrix_from
    from flowzoo.registry.reader import Problems

    try:
        matrix = matrix_from(content, _SOURCE)
        if found := matrix.problems(deep=True):
            raise Problems(found)
    except Problems as error:
        raise Problems(map(_renamed, error.problems)) from error
    (cell,) = matrix.cells()
    return cell


def _renamed(problem: Problem) -> Problem:
    """Return a problem of the command line with its place as the user knows it."""
    for place, word in _PLACES.items():
        if problem.file == _SOURCE and f"{problem.path}.".replace(":", ".").startswith(f"{place}."):
            rest = problem.path[len(place) :].lstrip(".: ")
            return replace(problem, path=f"{word} {rest}".strip(), file="")
    return problem


def _fit(cell: Cell, out: Path, device: str) -> Record:
    """Fit and judge a cell in a folder of its own; return its record, once it is stored.

    Raises:
        UserError: The folder holds another flow, or what was asked for cannot be done.
    """
    import torch
    import yaml

    from flowzoo.bench.cell import run_cell
    from flowzoo.bench.cells import read_cell
    from flowzoo.bench.files import write_text
    from flowzoo.bench.runner import usable_devices
    from flowzoo.bench.store import CELL, CHECKPOINT, FLOW, now, write_record
    from flowzoo.training.progress import ProgressBar

    (device, *_) = usable_devices(device, torch.cuda.device_count())
    if any((out / name).exists() for name in (CHECKPOINT, FLOW)):
        known = read_cell(out)
        if known.key != cell.key:
            what = f"{known.label} on {known.data}, seed {known.seed}"
            said = f"{out} holds another flow ({what})"
            raise UserError(f"{said}; choose another folder or remove it")
    out.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(cell.to_mapping(), sort_keys=False, allow_unicode=True, width=96)
    write_text(out / CELL, text)
    started = now()
    try:
        with ProgressBar(cell.label) as bar:
            record = replace(run_cell(cell, out, device, bar), started=started)
    except KeyboardInterrupt:
        click.echo("\ninterrupted; the same command goes on", err=True)
        raise
    if record.state == "skipped" or (record.state == "failed" and not record.traceback):
        raise UserError(record.reason)
    write_record(out, record)
    return record


def _report(record: Record, out: Path) -> None:
    from flowzoo.bench.blocks import block_rows

    if block_rows(record):
        _report_blocks(record, out)
    click.echo(lines(record.metrics))
    costs = record.costs
    click.echo(
        f"\n{costs['steps']} steps in {costs['train_seconds']:.1f} s "
        f"(ended by {costs['stopped']}), {costs['parameters']} parameters"
    )
    reference = [f"{name} {value:.4f}" for name, value in record.reference.items()
                 if value is not None and name in ("entropy", "gaussian")]  # fmt: skip
    if reference:
        click.echo(f"for comparison, in nats: {', '.join(reference)}")
    click.echo(f"the flow is in {out}: flowzoo sample {out}, flowzoo score {out}")


def _report_blocks(record: Record, out: Path) -> None:
    """Print what each block did, and by which solver."""
    from flowzoo.bench.blocks import brief_table, statements
    from flowzoo.bench.cells import read_cell
    from flowzoo.cli.tables import table_text

    click.echo(table_text(brief_table(record)))
    for sentence in statements(record, read_cell(out).registry()):
        click.echo(sentence)
    click.echo()
