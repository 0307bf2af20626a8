"""Commands on a trained flow: `sample`, `score`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowzoo.cli.options import (
    METRICS,
    Command,
    count_type,
    data_spec,
    json_option,
    lines,
    seed_type,
)
from flowzoo.errors import UserError

if TYPE_CHECKING:
    from flowzoo.bench.trained import Trained
    from flowzoo.data import Data, Standardisation

folder_argument = click.argument("folder", type=click.Path(path_type=Path))


@click.command("sample", cls=Command)
@folder_argument
@click.option("-n", "count", type=count_type, default=1000, show_default=True, help="How many.")
@click.option("--seed", type=seed_type, default=0, show_default=True, help="Seed of the samples.")
@click.option("--out", type=click.Path(path_type=Path), help="A .csv or .npy file [print csv].")
def sample_command(folder: Path, count: int, seed: int, out: Path | None) -> None:
    """Draw samples from the trained flow in FOLDER.

    FOLDER is what `fit --out` made, or a cell of a run. Samples are in the data's own coordinates.

    Examples:
      flowzoo sample my-flow -n 10000 --out samples.npy
      flowzoo sample my-flow -n 5
    """
    import torch

    trained = _trained(folder)
    if trained.flow.context_dim:
        raise UserError(f"{folder} is conditioned on a context; sample it from Python")
    generator = torch.Generator().manual_seed(seed)
    _write(trained.sample(count, generator=generator).numpy(), out)


@click.command("score", cls=Command)
@folder_argument
@click.argument("data", required=False)
@click.option(
    "--metric",
    "-m",
    "metrics",
    multiple=True,
    help="What to measure [nll, kl, transport, inverse-error].",
)
@click.option("--all", "everything", is_flag=True, help="Measure everything that applies.")
@click.option(
    "--tolerance", type=float, help="Tolerance of the judge's solver [that of the cell, 1e-5]."
)
@click.option("--parts", is_flag=True, help="Show what each error is made of.")
@json_option
def score_command(
    folder: Path,
    data: str | None,
    metrics: Sequence[str],
    everything: bool,
    tolerance: float | None,
    parts: bool,
    as_json: bool,
) -> None:
    """Score the trained flow in FOLDER with the judge.

    On its own test set, or on that of DATA. The trace is exact and the solver converged, whatever
    the flow was trained with; ± is half of a 99 % interval. docs/judging.md explains each number.

    Examples:
      flowzoo score my-flow
      flowzoo score my-flow -m nll --parts
      flowzoo score my-flow other.csv -m nll -m mmd
      flowzoo score my-flow --all
    """
    from flowzoo.build import build
    from flowzoo.judge import evaluate
    from flowzoo.settings import Judge

    trained = _trained(folder)
    registry = trained.cell.registry()
    names = registry.names("metric") if everything else metrics or METRICS
    chosen = [build("metric", name, registry) for name in names]
    points, scale = _points(trained, data)
    judge = trained.cell.judge if tolerance is None else Judge(tolerance)
    measures = evaluate(
        trained.flow,
        points,
        scale,
        chosen,
        seed=trained.cell.seed,
        tolerance=judge.tolerance,
    )
    found = {name: asdict(measure) for name, measure in measures.items()}
    click.echo(json.dumps(found, indent=2) if as_json else lines(found, parts))


def _trained(folder: Path) -> Trained:
    """Return the trained flow of a folder."""
    from flowzoo.bench.store import CELL, PLAN
    from flowzoo.bench.trained import load_trained

    if not (folder / CELL).is_file():
        run = f"; it holds a run, name one of its cells, {folder}/..."
        hint = run if (folder / PLAN).is_file() else ", as `flowzoo fit --out` makes it"
        raise UserError(f"{folder} holds no trained flow{hint}")
    return load_trained(folder)


def _points(trained: Trained, data: str | None) -> tuple[Data, Standardisation | None]:
    """Return points to score a flow on, in its coordinates, and the map to these."""
    from flowzoo.build import build
    from flowzoo.data import standardised

    cell = trained.cell
    spec, base = (cell.dataset, cell.base) if data is None else (data_spec(data), ".")
    here = Path.cwd()
    try:
        os.chdir(base if Path(base).is_dir() else here)  # paths in specs start there
        points = build("dataset", spec, cell.registry()).load()
    finally:
        os.chdir(here)
    if points.dim != trained.flow.dim:
        raise UserError(f"{data} has {points.dim} columns, but the flow has {trained.flow.dim}")
    if trained.scale is None:
        return points, None
    return standardised(points, trained.scale)


def _write(rows: Any, out: Path | None) -> None:
    import numpy as np

    if out is None:
        np.savetxt(sys.stdout, rows, delimiter=",", fmt="%.8g")
    elif out.suffix == ".npy":
        np.save(out, rows)
    elif out.suffix == ".csv":
        np.savetxt(out, rows, delimiter=",", fmt="%.8g")
    else:
        raise UserError(f"--out {out}: expected a file ending in .csv or .npy")
    if out is not None:
        click.echo(f"wrote {len(rows)} rows to {out}", err=True)
