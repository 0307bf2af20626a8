"""What pictures are made of: colours, points and densities in a box, panels without axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flowzoo.bench.cells import read_cell
from flowzoo.bench.record import Record
from flowzoo.bench.store import Store
from flowzoo.build import build
from flowzoo.data import Data

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 1500  # at most this many are drawn
# Okabe & Ito (2008): told apart by everyone, also in grey with the line styles.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
SIDE = 160  # places along each side of a density


def data_of(store: Store, record: Record) -> Data:
    """Return the data that a cell was trained on."""
    cell = read_cell(store.folder / record.folder)
    return build("dataset", cell.dataset, cell.registry()).load()


def box_around(x: Tensor) -> Tensor:
    """Return corners (2, 2) of a square around all but the outermost points of x (n, 2)."""
    low, high = torch.quantile(x.double(), torch.tensor([0.002, 0.998], dtype=torch.float64), dim=0)
    middle, half = (low + high) / 2, 0.6 * float((high - low).max())
    return torch.stack([middle - half, middle + half])


def places(box: Tensor, side: int = SIDE) -> Tensor:
    """Return the grid (side^2, 2) of a box (2, 2) on which a density is drawn."""
    sides = [torch.linspace(float(a), float(b), side, dtype=torch.float64) for a, b in box.T]
    x, y = torch.meshgrid(*sides, indexing="xy")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def density(axis: Axes, log_prob: Tensor, box: Tensor) -> None:
    """Draw exp(log p) over a box (2, 2) of lower and upper corners, given log p at its `places`."""
    side = math.isqrt(len(log_prob))
    image = log_prob.double().exp().nan_to_num(0.0).reshape(side, side).numpy()
    extent = (float(box[0, 0]), float(box[1, 0]), float(box[0, 1]), float(box[1, 1]))
    # A few places of high density must not leave the rest dark.
    top = float(np.quantile(image, 0.999)) or 1.0
    axis.imshow(image, origin="lower", extent=extent, cmap="viridis", vmin=0.0, vmax=top)
    bare(axis)


def points(axis: Axes, x: Tensor, box: Tensor) -> None:
    """Draw points (n, 2) inside a box."""
    x = x[:POINTS]
    axis.plot(x[:, 0], x[:, 1], ".", markersize=1.2, color="#202020", alpha=0.6, rasterized=True)
    axis.set_xlim(float(box[0, 0]), float(box[1, 0]))
    axis.set_ylim(float(box[0, 1]), float(box[1, 1]))
    axis.set_aspect("equal")
    bare(axis)


def bare(axis: Axes) -> None:
    """Take the ticks away."""
    axis.set_xticks([])
    axis.set_yticks([])


def empty(*axes: Axes) -> None:
    """Mark panels that have nothing to show."""
    for axis in axes:
        bare(axis)
        axis.text(0.5, 0.5, "–", ha="center", va="center", transform=axis.transAxes)
