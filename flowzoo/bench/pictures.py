"""Pictures of a run, from records and weights: densities and samples on 2-D data, curves."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from flowzoo.bench import canvas
from flowzoo.bench.canvas import COLOURS, POINTS, STYLES, box_around, data_of, empty, points
from flowzoo.bench.captions import data_title
from flowzoo.bench.pictures_blocks import block_densities, blocks
from flowzoo.bench.record import Record
from flowzoo.bench.store import CURVE, Store
from flowzoo.bench.trained import Trained, load_trained
from flowzoo.judge.numerics import JudgeTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SETTINGS: dict[Any, Any] = {
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.linewidth": 0.6,
    "pdf.fonttype": 42,  # fonts that journals accept
    "savefig.dpi": 200,
}


def draw_run(run_folder: str | Path, out: str | Path | None = None) -> list[Path]:
    """Draw a run's pictures, each as PNG and PDF.

    `densities`: one row for each 2-D data set: the data, then for each flow its density exp(log p)
    on a grid and samples of it, from the first seed that is ok. `curves`: validation NLL
    against seconds of training, one panel for each data set. Of flows trained block by block also
    `blocks`: NLL after each block and how far it moves the data; `block-densities`: on 2-D data,
    the density of the first k blocks, and the test points after them.

    Arguments:
        run_folder: The run.
        out: Where the pictures go; the run's folder by default.

    Returns:
        The files that were written.

    Raises:
        UserError: The folder holds no run.
    """
    store = Store.open(run_folder)
    out = Path(run_folder if out is None else out)
    out.mkdir(parents=True, exist_ok=True)
    records = store.records()
    written: list[Path] = []
    with mpl.rc_context(_SETTINGS):
        for name, figure in (
            ("densities", densities(store, records)),
            ("curves", curves(store, records)),
            ("blocks", blocks(records)),
            ("block-densities", block_densities(store, records)),
        ):
            if figure is not None:
                FigureCanvasAgg(figure)
                for suffix in ("png", "pdf"):
                    written.append(out / f"{name}.{suffix}")
                    figure.savefig(written[-1], bbox_inches="tight")
    return written


def densities(store: Store, records: Sequence[Record]) -> Figure | None:
    """Return the figure of densities and samples; None without a trained flow on 2-D data."""
    shown = [r for r in records if r.state == "ok" and r.dataset.get("dim") == 2]
    names, flows = (list(dict.fromkeys(getattr(r, a) for r in shown)) for a in ("data", "label"))
    if not shown:
        return None
    width = 1 + 2 * len(flows)
    figure = Figure(figsize=(1.25 * width, 1.35 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), width, squeeze=False)
    for i, name in enumerate(names):
        mine = {r.label: r for r in reversed(shown) if r.data == name}  # the first seed stays
        test = data_of(store, next(iter(mine.values()))).test
        box = box_around(test)
        points(axes[i, 0], test, box)
        axes[i, 0].set_ylabel(data_title(name, records))
        for j, flow in enumerate(flows):
            left, right = axes[i, 1 + 2 * j], axes[i, 2 + 2 * j]
            trained = load_trained(store.folder / mine[flow].folder) if flow in mine else None
            # Given a context, a flow has a density for each.
            if trained is not None and not trained.flow.context_dim:
                density(left, trained, box)
                generator = torch.Generator().manual_seed(mine[flow].seed)
                points(right, trained.sample(POINTS, generator=generator), box)
            else:
                empty(left, right)
    titles = ["data", *(t for flow in flows for t in (textwrap.fill(flow, 22), "samples"))]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    return figure


def density(axis: Axes, trained: Trained, box: Tensor) -> None:
    """Draw a flow's density, its divergence exact, over a box (2, 2) of opposite corners."""
    exact = replace(trained, flow=trained.flow.with_numerics(trace=JudgeTrace()))
    parts = canvas.places(box).split(8192)
    canvas.density(axis, torch.cat([exact.log_prob(part) for part in parts]), box)


def curves(store: Store, records: Sequence[Record]) -> Figure | None:
    """Return the figure of validations against seconds; None where nothing validated."""
    rows = {r.folder: _curve(store.folder / r.folder, r) for r in records}
    shown = [r for r in records if rows[r.folder]]
    names, flows = (list(dict.fromkeys(getattr(r, a) for r in shown)) for a in ("data", "label"))
    if not shown:
        return None
    width = min(3, len(names))
    height = -(-len(names) // width)
    figure = Figure(figsize=(2.6 * width, 2.0 * height), layout="constrained")
    axes = figure.subplots(height, width, squeeze=False).flatten()
    for axis, name in zip(axes, names, strict=False):
        for record in (r for r in shown if r.data == name):
            k = flows.index(record.label)
            seconds, values = zip(*rows[record.folder], strict=True)
            style = STYLES[k // len(COLOURS) % len(STYLES)]
            label = record.label if record is _first(shown, record.label) else None
            colour = COLOURS[k % len(COLOURS)]
            line = {"color": colour, "linewidth": 1.0, "alpha": 0.8, "label": label}
            axis.plot(seconds, values, style, marker=".", markersize=3.0, **line)
        axis.set_title(data_title(name, records))
        axis.set_xlabel("seconds of training")
        axis.set_ylabel("validation NLL (nats)")
        axis.grid(linewidth=0.3, alpha=0.5)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    figure.legend(loc="outside lower center", ncols=min(4, len(flows)), frameon=False)
    return figure


def _first(records: Sequence[Record], label: str) -> Record:
    return next(record for record in records if record.label == label)


def _curve(folder: Path, record: Record) -> list[tuple[float, float]]:
    """Return (seconds, validation NLL) of a cell's curve, in the coordinates of the data.

    Empty where validation measured the stage's own loss. A last row cut short does not count.
    """
    path = folder / CURVE
    usual = record.composition.get("training", {}).get("criterion", "nll")
    ladj = (record.dataset.get("standardised") or {}).get("ladj", 0.0)
    found = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row.get("validation") is not None and (row.get("criterion") or usual) == "nll":
            found.append((row["seconds"], row["validation"] - ladj))
    return found
