"""Pictures of flows that were trained block by block: what each block did, and the way to noise."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from flowzoo.bench.blocks import block_rows
from flowzoo.bench.canvas import POINTS, box_around, data_of, density, places, points
from flowzoo.bench.captions import data_title
from flowzoo.bench.record import Record
from flowzoo.bench.store import Store
from flowzoo.bench.trained import Trained, load_trained
from flowzoo.flow import Chain, log_normal
from flowzoo.judge.numerics import JudgeTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "os^Dvp*"
_MOST = 8  # depths of a chain that are drawn
_SIDE = 112  # places along each side of a density; there are many
_CHUNK = 8192  # places at once


# --- numbers -----------------------------------------------------------------------------------


def blocks(records: Sequence[Record]) -> Figure | None:
    """Return the figure of NLL and movement of each block; None where nothing was so trained.

    A row for each flow on each data set, a line for each pass over the blocks and each seed.
    """
    rows = {r.folder: block_rows(r) for r in records}
    shown = [r for r in records if rows[r.folder]]
    if not shown:
        return None
    pairs = list(dict.fromkeys((r.data, r.label) for r in shown))
    passes = list(dict.fromkeys(row["pass"] for r in shown for row in rows[r.folder]))
    figure = Figure(figsize=(5.6, 1.7 * len(pairs) + 0.4), layout="constrained")
    axes = figure.subplots(len(pairs), 2, squeeze=False)
    for (data, label), (left, right) in zip(pairs, axes, strict=True):
        mine = [r for r in shown if (r.data, r.label) == (data, label)]
        for record in mine:
            _lines(left, rows[record.folder], "nll", passes)
            _lines(right, rows[record.folder], "movement", passes)
        _levels(left, mine, rows)
        left.set_title(f"{label} on {data_title(data, records)}")
        left.set_ylabel("NLL (nats)")
        right.set_ylabel("movement")
        right.set_ylim(bottom=0.0)
        for axis in (left, right):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(linewidth=0.3, alpha=0.5)
    for axis in axes[-1]:
        axis.set_xlabel("block")
    _legend(figure)
    return figure


def _lines(axis: Axes, rows: Sequence[dict[str, Any]], name: str, passes: Sequence[str]) -> None:
    """Draw a quantity of the blocks, a line for each pass; dark ones come first."""
    for i, one in enumerate(passes):
        mine = [row for row in rows if row["pass"] == one and row.get("block")]
        found = [(row["block"], row[name]) for row in mine if row.get(name) is not None]
        if found:
            colour = mpl.colormaps["viridis"](0.85 * i / max(1, len(passes) - 1))
            line = {"color": colour, "linewidth": 1.0, "markersize": 3.0, "alpha": 0.9}
            marker = _MARKERS[i % len(_MARKERS)]
            axis.plot(*zip(*found, strict=True), marker=marker, label=one or "first pass", **line)


def _levels(axis: Axes, records: Sequence[Record], rows: dict[str, list[dict[str, Any]]]) -> None:
    """Draw what the NLL of blocks is compared with: all blocks trained together, the entropy."""
    for record in records:
        for row in rows[record.folder]:
            if not row.get("block"):
                axis.axhline(row["nll"], color="#D55E00", ls="--", lw=0.9, label=row["stage"])
    entropy = records[0].reference.get("entropy")
    if entropy is not None:
        axis.axhline(entropy, color="#404040", ls=":", lw=0.9, label="entropy")


def _legend(figure: Figure) -> None:
    """Put one legend below, each name once."""
    named = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.legend(
        named.values(), named.keys(), loc="outside lower center", ncols=min(5, len(named)),
        frameon=False,
    )  # fmt: skip


# --- densities ---------------------------------------------------------------------------------


def block_densities(store: Store, records: Sequence[Record]) -> Figure | None:
    """Return the figure of chains cut off after each block; None without one on 2-D data.

    Two rows for each flow on each data set, from the first seed that is ok: the density of the flow
    that consists of the first k blocks, in the coordinates of the data, and the test points after k
    blocks, in those of the flow, where the noise has deviation 1. Of more than eight depths eight
    are drawn.
    """
    chains = list(_chains(store, records))
    if not chains:
        return None
    width = 1 + max(len(depths(len(chain.flows()))) for *_, chain in chains)
    figure = Figure(figsize=(1.25 * width, 2.7 * len(chains)), layout="constrained")
    axes = figure.subplots(2 * len(chains), width, squeeze=False)
    for i, (record, trained, chain) in enumerate(chains):
        above, below = axes[2 * i], axes[2 * i + 1]
        _drawn(above, below, data_of(store, record).test, trained, chain)
        flow = textwrap.fill(record.label, 22)
        above[0].set_ylabel(f"{data_title(record.data, records)}\n{flow}")
        below[0].set_ylabel("pushed on")
    return figure


def depths(blocks: int) -> list[int]:
    """Return which depths of a chain are drawn: all, or eight from 1 to all, evenly."""
    if blocks <= _MOST:
        return list(range(1, blocks + 1))
    return [1 + round(i * (blocks - 1) / (_MOST - 1)) for i in range(_MOST)]


def _chains(store: Store, records: Sequence[Record]) -> Iterator[tuple[Record, Trained, Chain]]:
    """Yield the first seed's chain of each flow on each 2-D data set, its divergences exact."""
    seen = set()
    for record in records:
        pair = (record.data, record.label)
        if record.state != "ok" or record.dataset.get("dim") != 2 or pair in seen:
            continue
        if block_rows(record):
            seen.add(pair)
            trained = load_trained(store.folder / record.folder)
            exact = trained.flow.with_numerics(trace=JudgeTrace())
            if isinstance(exact, Chain) and not exact.context_dim:
                yield record, replace(trained, flow=exact), exact


def _drawn(
    above: Sequence[Axes], below: Sequence[Axes], test: Tensor, trained: Trained, chain: Chain
) -> None:
    """Draw one chain: the data, then what is after each of some depths."""
    box, like = box_around(test), next(chain.parameters())
    x = test if trained.scale is None else trained.scale.forward(test)
    moved = list(_pushed(chain, x[:POINTS].to(like)))
    inner = _box_of_all([z for z, _ in moved])
    points(above[0], test, box)
    points(below[0], moved[0][0], inner)
    above[0].set_title("data")
    grid = places(box, _SIDE)
    volume = 0.0 if trained.scale is None else trained.scale.ladj
    inside = grid if trained.scale is None else trained.scale.forward(grid)
    on_grid = list(_pushed(chain, inside.to(like)))
    shown = depths(len(chain.flows()))
    for j, k in enumerate(shown, 1):
        z, ladj = on_grid[k]
        density(above[j], log_normal(z) + ladj + volume, box)
        points(below[j], moved[k][0], inner)
        above[j].set_title(f"{k} block{'s' if k > 1 else ''}")
    for axis in (*above[1 + len(shown) :], *below[1 + len(shown) :]):
        axis.set_axis_off()


def _box_of_all(clouds: Sequence[Tensor]) -> Tensor:
    """Return corners (2, 2) of a square that holds the boxes of all points, and the noise."""
    noise = clouds[0].new_tensor([[-3, -3], [3, 3]])
    boxes = torch.stack([box_around(torch.cat([z, noise])) for z in clouds])
    low, high = boxes[:, 0].amin(0), boxes[:, 1].amax(0)
    middle, half = (low + high) / 2, (high - low).max() / 2
    return torch.stack([middle - half, middle + half])


@torch.no_grad()
def _pushed(chain: Chain, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield points (n, d) and ladj (n,) before the first block, and after each."""
    ladj = x.new_zeros(len(x))
    yield x, ladj
    for block in chain.flows():
        parts = [block.encode(part) for part in x.split(_CHUNK)]
        x = torch.cat([part.z for part in parts])
        ladj = ladj + torch.cat([part.ladj for part in parts])
        yield x, ladj
