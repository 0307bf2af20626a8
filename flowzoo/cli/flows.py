"""Commands on one flow: `fit`, `sample`, `score`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowzoo.cli.options import json_option, plugin_option
from flowzoo.errors import UserError

if TYPE_CHECKING:
    from flowzoo.bench import Cell, Record

folder_argument = click.argument("folder", type=click.Path(path_type=Path))
FILES = (".csv", ".npy", ".npz", ".parquet")


@click.command("fit")
@click.argument("recipe")
@click.argument("data")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the flow.")
@click.option("--seed", default=0, show_default=True, help="Seed of everything random.")
@click.option("--steps", type=int, help="Budget: optimizer steps.")
@click.option("--seconds", type=float, help="Budget: seconds of training.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE",
              help="Change a number or a part of the recipe; may be repeated.")  # fmt: skip
@click.option("--recipes", "files", multiple=True, type=click.Path(path_type=Path),
              help="A YAML file with more recipes; may be repeated.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
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
    r"""Train one RECIPE on DATA: a data set's name or spec, or a file of yours.

    Run again, it goes on where it was interrupted. Ends with the judge's numbers.

    \b
    Examples:
      flowzoo fit ot-flow moons --out my-flow --steps 500
      flowzoo fit flow-matching table.csv --out my-flow --seconds 60
      flowzoo fit ffjord '{name: gaussian, dim: 10}' --out my-flow --set flow.trace=hutchinson
    """
    import yaml

    from flowzoo.bench.matrix import matrix_from

    content: dict[str, Any] = {
        "flows": [{"recipe": recipe, "set": dict(_change(text) for text in changes)}],
        "data": [_data(data)],
        "seeds": [seed],
        "metrics": ["nll", "kl", "transport", "round-trip"],
        "recipes": [str(path.resolve()) for path in files],
        "plugins": [str(path.resolve()) for path in plugins],
    }
    limits = {"steps": steps, "seconds": seconds}
    if any(limit is not None for limit in limits.values()):
        content["budget"] = limits
    matrix = matrix_from(yaml.safe_load(json.dumps(content)), Path.cwd() / "command line")
    problems = matrix.problems(deep=True)
    if problems:
        from flowzoo.registry.reader import Problems

        raise Problems(problems)
    record = _fit(matrix.cells()[0], out, device)
    if as_json:
        click.echo(json.dumps(record.to_mapping(), indent=2))
    else:
        _report(record, out)
    return int(record.state != "ok")


@click.command("sample")
@folder_argument
@click.option("-n", "count", default=1000, show_default=True, help="How many.")
@click.option("--seed", default=0, show_default=True, help="Seed of the samples.")
@click.option("--out", type=click.Path(path_type=Path), help="A .csv or .npy file [print csv].")
def sample_command(folder: Path, count: int, seed: int, out: Path | None) -> None:
    r"""Draw samples from the trained flow in FOLDER, in the data's own coordinates.

    FOLDER is what `fit --out` made, or a cell of a run.

    \b
    Examples:
      flowzoo sample my-flow -n 10000 --out samples.npy
      flowzoo sample my-flow -n 5
    """
    import torch

    from flowzoo.bench.trained import load_trained

    torch.manual_seed(seed)
    trained = load_trained(folder)
    if trained.flow.context_dim:
        raise UserError(f"{folder} is conditioned on a context; sample it from Python")
    generator = torch.Generator().manual_seed(seed)
    _write(trained.sample(count, generator=generator).numpy(), out)


@click.command("score")
@folder_argument
@click.argument("data", required=False)
@click.option("--metric", "-m", "metrics", multiple=True, help="What to measure [all].")
@json_option
def score_command(folder: Path, data: str | None, metrics: Sequence[str], as_json: bool) -> None:
    r"""Score the trained flow in FOLDER with the judge: on its own test set, or on that of DATA.

    The trace is exact and the solver converged, whatever the flow was trained with.

    \b
    Examples:
      flowzoo score my-flow
      flowzoo score my-flow other.csv -m nll
    """
    from flowzoo.bench.trained import load_trained
    from flowzoo.build import build
    from flowzoo.judge import evaluate

    trained = load_trained(folder)
    registry = trained.cell.registry()
    names = metrics or registry.names("metric")
    chosen = [build("metric", name, registry) for name in names]
    points = build(
        "dataset", trained.cell.dataset if data is None else _data(data), registry
    ).load()
    if points.dim != trained.flow.dim:
        raise UserError(
            f"{data} has {points.dim} columns, but the flow in {folder} has {trained.flow.dim}"
        )
    if trained.scale is not None:
        points = replace(points, test=trained.scale.forward(points.test), **_unknown())
    measures = evaluate(trained.flow, points, trained.scale, chosen, seed=trained.cell.seed)
    if as_json:
        click.echo(json.dumps({name: asdict(m) for name, m in measures.items()}, indent=2))
    else:
        click.echo(_lines({name: asdict(m) for name, m in measures.items()}))


def _unknown() -> dict[str, None]:
    # What is known of the law of the points holds in their own coordinates, not in the flow's.
    return {"entropy": None, "log_prob": None, "transport_cost": None}


def _fit(cell: Cell, out: Path, device: str) -> Record:
    import yaml

    from flowzoo.bench.cell import run_cell
    from flowzoo.bench.files import write_text
    from flowzoo.bench.store import CELL, now, write_record
    from flowzoo.training.progress import ProgressBar

    out.mkdir(parents=True, exist_ok=True)
    known = out / CELL
    text = yaml.safe_dump(cell.to_mapping(), sort_keys=False, allow_unicode=True, width=96)
    if known.is_file() and known.read_text(encoding="utf-8") != text:
        raise UserError(f"{out} holds another flow; choose another folder or remove it")
    write_text(known, text)
    started = now()
    with ProgressBar(cell.label) as bar:
        record = replace(run_cell(cell, out, device, bar), started=started)
    write_record(out, record)
    return record


def _report(record: Record, out: Path) -> None:
    if record.state != "ok":
        click.echo(f"{record.state}: {record.reason}", err=True)
        return
    click.echo(_lines(record.metrics))
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


def _lines(measures: dict[str, dict[str, Any]]) -> str:
    from tabulate import tabulate

    rows = []
    for name, m in measures.items():
        error = "" if m["error"] is None else f"± {m['error']:.2g}"
        rows.append([name, f"{m['value']:.5g}", error, m["unit"], m["note"]])
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _change(text: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: expected KEY=VALUE, e.g. training.batch_size=256")
    return key.strip(), yaml.safe_load(value)


def _data(text: str) -> Any:
    import yaml

    if text.lstrip().startswith("{"):
        return yaml.safe_load(text)
    if text.endswith(FILES):
        return {"name": "file", "path": str(Path(text).resolve())}
    return text


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
