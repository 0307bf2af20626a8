"""Pictures of a run, from records and weights: densities and samples on 2-D data, curves."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from flowzoo.bench.captions import data_title
from flowzoo.bench.record import Record
from flowzoo.bench.store import CURVE, Store
from flowzoo.bench.trained import Trained, load_trained
from flowzoo.build import build
from flowzoo.data import Data

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GRID = 160  # places along each side of a density
_POINTS = 1500  # samples drawn beside it
# Okabe & Ito (2008): told apart by everyone, also in grey with the line styles.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")
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
    against seconds of training, one panel for each data set.

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
        data = _data(store, next(iter(mine.values())))
        box = _box(data.test)
        points(axes[i, 0], data.test, box)
        axes[i, 0].set_ylabel(data_title(name, records))
        for j, flow in enumerate(flows):
            left, right = axes[i, 1 + 2 * j], axes[i, 2 + 2 * j]
            trained = load_trained(store.folder / mine[flow].folder) if flow in mine else None
            # Given a context, a flow has a density for each.
            if trained is not None and not trained.flow.context_dim:
                density(left, trained, box)
                generator = torch.Generator().manual_seed(mine[flow].seed)
                points(right, trained.sample(_POINTS, generator=generator), box)
            else:
                _empty(left, right)
    titles = ["data", *(t for flow in flows for t in (textwrap.fill(flow, 22), "samples"))]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    return figure


def density(axis: Axes, trained: Trained, box: Tensor) -> None:
    """Draw exp(log p) on a grid over a box (2, 2) of lower and upper corners."""
    sides = [torch.linspace(float(a), float(b), _GRID, dtype=torch.float64) for a, b in box.T]
    x, y = torch.meshgrid(*sides, indexing="xy")
    places = torch.stack([x.flatten(), y.flatten()], dim=1)
    values = torch.cat([trained.log_prob(part) for part in places.split(8192)])
    image = values.double().exp().nan_to_num(0.0).reshape(_GRID, _GRID).numpy()
    extent = (float(box[0, 0]), float(box[1, 0]), float(box[0, 1]), float(box[1, 1]))
    # A few places of high density must not leave the rest dark.
    top = float(np.quantile(image, 0.999)) or 1.0
    axis.imshow(image, origin="lower", extent=extent, cmap="viridis", vmin=0.0, vmax=top)
    _bare(axis)


def points(axis: Axes, x: Tensor, box: Tensor) -> None:
    """Draw points (n, 2) inside a box."""
    x = x[:_POINTS]
    axis.plot(x[:, 0], x[:, 1], ".", markersize=1.2, color="#202020", alpha=0.6, rasterized=True)
    axis.set_xlim(float(box[0, 0]), float(box[1, 0]))
    axis.set_ylim(float(box[0, 1]), float(box[1, 1]))
    axis.set_aspect("equal")
    _bare(axis)


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
            style = _STYLES[k // len(_COLOURS) % len(_STYLES)]
            label = record.label if record is _first(shown, record.label) else None
            colour = _COLOURS[k % len(_COLOURS)]
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
    if record.composition.get("training", {}).get("criterion", "nll") != "nll":
        return []
    ladj = (record.dataset.get("standardised") or {}).get("ladj", 0.0)
    found = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row.get("validation") is not None:
            found.append((row["seconds"], row["validation"] - ladj))
    return found


def _data(store: Store, record: Record) -> Data:
    from flowzoo.bench.cells import read_cell

    cell = read_cell(store.folder / record.folder)
    return build("dataset", cell.dataset, cell.registry()).load()


def _box(x: Tensor) -> Tensor:
    """Return corners (2, 2) of a square around all but the outermost points of x (n, 2)."""
    low, high = torch.quantile(x.double(), torch.tensor([0.002, 0.998], dtype=torch.float64), dim=0)
    middle, half = (low + high) / 2, 0.6 * float((high - low).max())
    return torch.stack([middle - half, middle + half])


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])


def _empty(*axes: Axes) -> None:
    for axis in axes:
        _bare(axis)
        axis.text(0.5, 0.5, "–", ha="center", va="center", transform=axis.transAxes)
