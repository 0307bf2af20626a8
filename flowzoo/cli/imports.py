"""The command `import`: weights that somebody else trained, as a flow in a folder of its own."""

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
    from flowzoo.flow import Flow
    from flowzoo.importer import Imported
    from flowzoo.registry import Registry

_SHOWN = 3  # names of ignored tensors that are printed


@click.command("import", cls=Command)
@click.argument("importer")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("data")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the flow.")
@click.option("--steps", type=count_type, help="Steps of its own solver [those of the file].")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE",
              help="Change a part of the flow; may be repeated.")  # fmt: skip
@click.option("--seed", type=seed_type, default=0, show_default=True, help="Seed of the judge.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@plugin_option
@json_option
def import_command(
    importer: str,
    file: Path,
    data: str,
    out: Path,
    steps: int | None,
    changes: Sequence[str],
    seed: int,
    device: str,
    plugins: Sequence[Path],
    as_json: bool,
) -> int:
    """Import published weights from FILE as a flow, judged on DATA.

    IMPORTER says whose they are (`flowzoo list importer`). FILE is a .npz, .safetensors, .pth or
    .pt file; nothing in it is run. DATA is as for `fit`, in the coordinates that the weights were
    trained in: its rows are not standardised again. The folder is like one of `fit`.

    Examples:
      flowzoo import ot-flow checkpt.pth swissroll --out my-flow
      flowzoo import ot-flow checkpt.pth miniboone --out my-flow --steps 18
      flowzoo import ot-flow weights.npz table.csv --out my-flow
      flowzoo import ot-flow checkpt.pth moons --out my-flow --set steps=6
    """
    import torch

    from flowzoo.bench.runner import usable_devices
    from flowzoo.build import build
    from flowzoo.registry import Registry
    from flowzoo.weights import read_weights

    (device, *_) = usable_devices(device, torch.cuda.device_count())
    registry = Registry.installed().with_files(plugins)
    found = build("importer", importer, registry, "IMPORTER").convert(read_weights(file))
    wanted = dict(change(text, "trace=hutchinson") for text in changes)
    wanted |= {} if steps is None else {"steps": steps}
    cell = _cell(importer, found, wanted, data, seed, registry)
    flow = replace(found, flow=cell.flow_spec).build(registry)
    _store(cell, flow, file, out)
    if not as_json:
        click.echo(_described(found, flow, cell))
    record = _judged(cell, out, device)
    if as_json:
        click.echo(json.dumps(record.to_mapping(), indent=2))
    elif record.state == "ok":
        click.echo(f"\n{lines(record.metrics)}\n")
        click.echo(f"the flow is in {out}: flowzoo sample {out}, flowzoo score {out}")
    else:
        click.echo(f"{record.state}: {record.reason}", err=True)
    return int(record.state != "ok")


def _cell(
    importer: str,
    found: Imported,
    changes: dict[str, Any],
    data: str,
    seed: int,
    registry: Registry,
) -> Cell:
    """Return the cell of an imported flow on data, both checked.

    Raises:
        Problems: The flow's spec, its changes or the data's spec are wrong.
        UserError: The data have another dimension than the weights.
    """
    from flowzoo.bench.cells import Cell
    from flowzoo.build import Problems
    from flowzoo.recipes import Recipe, recipe_problems, swap

    name = f"{importer}-imported"
    recipe = Recipe(name, found.title or name, dict(found.flow), found.objective)  # pyright: ignore[reportArgumentType]
    for key, value in changes.items():
        recipe = swap(recipe, key, value, registry)
    if wrong := recipe_problems(recipe, registry, deep=True):
        place = f"recipes.{name}."
        raise Problems(replace(p, path=p.path.removeprefix(place)) for p in wrong)
    return Cell(
        flow=name,
        data=data if isinstance(data_spec(data), str) else Path(data).stem,
        seed=seed,
        recipe=name,
        title=recipe.title,
        flow_spec=recipe.flow,
        objective=recipe.objective,
        dataset=_dataset(data, found.dim, registry),
        metrics=METRICS,
        base=str(Path.cwd()),
        plugins=tuple(map(str, registry.files)),
    )


def _dataset(data: str, dim: int, registry: Registry) -> Any:
    """Return the spec of data that come in the coordinates of the weights, of the right dimension.

    Raises:
        UserError: They are of another dimension, or cannot be had without standardising.
    """
    from flowzoo.build import build

    spec = data_spec(data)
    dataset = build("dataset", spec, registry, "DATA")
    if dataset.standardise:
        spec = {**({"name": spec} if isinstance(spec, str) else spec), "standardise": False}
        dataset = build("dataset", spec, registry, "DATA")
    points = dataset.load()
    if points.dim != dim:
        raise UserError(f"{data} has {points.dim} columns, but the weights are of {dim} dimensions")
    return spec


def _described(found: Imported, flow: Flow, cell: Cell) -> str:
    """Return what was imported, a line for each thing to know."""
    like = next(flow.parameters())
    count = sum(p.numel() for p in flow.parameters())
    kind = str(like.dtype).removeprefix("torch.")
    said = [f"{cell.title}: {flow.dim} dimensions, {count} parameters, {kind}", *found.notes]
    if found.ignored:
        more = ", ..." if len(found.ignored) > _SHOWN else ""
        names = ", ".join(found.ignored[:_SHOWN]) + more
        said.append(f"not used: {len(found.ignored)} other tensors ({names})")
    return "\n".join(said)


def _store(cell: Cell, flow: Flow, file: Path, out: Path) -> None:
    """Write a folder as a finished fit leaves it, but for the record.

    Raises:
        UserError: The folder holds another flow.
    """
    import yaml

    from flowzoo.bench.cells import read_cell
    from flowzoo.bench.files import write_json, write_text
    from flowzoo.bench.store import CELL, CHECKPOINT, CODE, FLOW
    from flowzoo.bench.trained import flow_facts, save_flow
    from flowzoo.build import build
    from flowzoo.data.dataset import checksum

    origin = {"file": file.name, "sha256": checksum(file)}
    if any((out / name).exists() for name in (CHECKPOINT, FLOW)):
        known = (flow_facts(out) or {}).get("imported")
        if known != origin or read_cell(out).key != cell.key:
            raise UserError(f"{out} holds another flow; choose another folder or remove it")
    out.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(cell.to_mapping(), sort_keys=False, allow_unicode=True, width=96)
    write_text(out / CELL, text)
    registry = cell.registry()
    data = build("dataset", cell.dataset, registry).fingerprint()
    write_json(out / CODE, {"code": cell.code(registry), "data": data})
    costs = {"parameters": sum(p.numel() for p in flow.parameters())}
    save_flow(out, flow, None, {"costs": costs, "imported": origin})


def _judged(cell: Cell, out: Path, device: str) -> Record:
    """Judge the flow that a folder holds; return its record, once it is stored.

    Raises:
        UserError: It cannot be judged on these data.
    """
    from flowzoo.bench.cell import run_cell
    from flowzoo.bench.store import now, write_record

    started = now()
    record = replace(run_cell(cell, out, device), started=started)
    if record.state == "skipped" or (record.state == "failed" and not record.traceback):
        raise UserError(record.reason)
    write_record(out, record)
    return record
