"""Section 5.2 of CP-Flow redone: Gaussians, whose optimal transport to N(0, I) is known.

A convex flow and a linear autoregressive one are trained by likelihood alone. Both fit the law;
only the convex one moves points as little as can be. Drawn is the cost E |x - z|^2 against
KL(data || flow) as training goes on, printed what the judge says of the trained flows.

    python benchmarks/gaussian_transport.py
    python benchmarks/gaussian_transport.py --published --dims 2 4 8 16 32 64

`--published` takes the settings of the released code: 782 batches of 128 out of 50,000 rows at a
rate of 0.05. Ours, by default: more steps at a lower rate; as many rows as points in all batches,
since 50,000 are overfitted in 32 dimensions; the data in units of their standard deviation, one
for all coordinates, which leaves optimal maps optimal; and a convex flow that begins with a larger
weight of its network, whose activations are then nearly quadratic where the data are.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor

from flowzoo.data.oracles import GaussianOracle
from flowzoo.data.wishart import WishartGaussian
from flowzoo.flow import Chain, Encoded, Flow, log_normal
from flowzoo.judge import Measure, evaluate
from flowzoo.judge.displacement import Displacement
from flowzoo.judge.likelihood import KL
from flowzoo.objective import Batch, Likelihood
from flowzoo.regularizers import RunningCost
from flowzoo.settings import Budget, Optimizer, Schedule, Training
from flowzoo.training import Progress, fit
from flowzoo_cp_flow.flow import ConvexFlow
from flowzoo_cp_flow.icnn import InputAugmented
from flowzoo_cp_flow.triangular import Triangular

OUT = Path(__file__).parent / "results" / "gaussian_transport.png"
COLOURS = {"CP-Flow": "#0072B2", "autoregressive": "#D55E00"}  # of flowzoo's other pictures
STYLES = {"CP-Flow": "-", "autoregressive": "--"}
FONTS: dict[Any, Any] = {
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.linewidth": 0.6,
    "pdf.fonttype": 42,
}
LEAST = 1e-3  # KL that a picture shows: 10,000 test points resolve no less
BATCH = 128  # points in a training batch
BLOCK = 1000  # test points that are encoded at once


@dataclass(frozen=True)
class Settings:
    """How a flow is trained.

    Arguments:
        steps: Optimizer steps.
        lr: Learning rate of Adam in the beginning; it falls to zero by a cosine.
        rows: Training rows.
        scaled: Whether the flow sees the data in units of their standard deviation.
        quadratic: The convex flow's factor of |x|^2 / 2 in the beginning.
        weight: Its factor of the network in the beginning.
    """

    steps: int
    lr: float
    rows: int
    scaled: bool = False
    quadratic: float = 1.0
    weight: float = math.log(2)


PUBLISHED = Settings(782, 0.05, 50_000)


@dataclass(frozen=True)
class Run:
    """What came of a flow.

    Arguments:
        dim: Dimension d.
        method: Its name.
        optimum: W2^2 to N(0, I).
        kl: KL(data || flow) as training went on, in nats.
        cost: E |x - z|^2 at the same steps.
        measures: What the judge says of the trained flow.
        seconds: Of training, without looks.
    """

    dim: int
    method: str
    optimum: float
    kl: list[float]
    cost: list[float]
    measures: dict[str, Measure]
    seconds: float


def chosen(method: str, dim: int, published: bool) -> Settings:
    """Return the settings of a method in d dimensions."""
    if published:
        return PUBLISHED
    if method == "autoregressive":
        return Settings(4000, 0.01, BATCH * 4000, scaled=True)
    steps = 3000 if dim < 16 else 7000
    return Settings(steps, 0.003, BATCH * steps, scaled=True, quadratic=0.5, weight=3.0 * dim)


class Unit(Flow):
    """z = x / unit, the same for all coordinates."""

    def __init__(self, dim: int, unit: float) -> None:
        super().__init__()
        self.dim, self.unit = dim, unit

    def encode(
        self,
        x: Tensor,
        running: Sequence[RunningCost] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """Divide by the unit."""
        ladj = x.new_full((len(x),), -self.dim * math.log(self.unit))
        return Encoded(x / self.unit, ladj, x.new_zeros(len(x), 0))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Multiply by it."""
        return z * self.unit


def made(method: str, settings: Settings, train: Tensor) -> Flow:
    """Return a new flow for training rows (n, d)."""
    torch.manual_seed(1)
    dim = train.shape[1]
    if method == "autoregressive":
        flow = Triangular(dim)
    else:
        potential = InputAugmented(dim, 64, 5, "gaussian", centred=True, symmetric=False)
        flow = ConvexFlow(potential, quadratic=settings.quadratic, weight=settings.weight)
    if not settings.scaled:
        return flow
    return Chain([Unit(dim, math.sqrt(float(train.var(0).mean()))), flow])


def trained(method: str, dim: int, settings: Settings, seed: int, looks: int) -> Run:
    """Train a flow, looking at it some times on the way, and have it judged."""
    source = WishartGaussian(dim, train=settings.rows, seed=seed)
    data, optimum = source.load(), source.oracle.w2_squared
    flow = made(method, settings, data.train)
    found: list[tuple[float, float]] = []
    spent = 0.0

    def look(progress: Progress) -> None:
        nonlocal spent
        if progress.step in when:
            before = time.perf_counter()
            found.append(seen(flow, source.oracle, data.test))
            spent += time.perf_counter() - before

    # Reports come every 20 steps; most of the way is gone in the beginning.
    when = {20 * round(settings.steps / 20 * (k / looks) ** 2) for k in range(1, looks + 1)}
    fitted = fit(
        flow,
        Likelihood(),
        Batch(data.train),
        budget=Budget(steps=settings.steps),
        training=Training(
            batch_size=BATCH,
            optimizer=Optimizer(lr=settings.lr),
            schedule=Schedule("cosine"),
            clip=10.0,
            validate_every=0,
        ),
        observe=look,
    )
    found.append(seen(flow, source.oracle, data.test))
    kl, cost = map(list, zip(*found, strict=True))
    measures = evaluate(flow, data, metrics=[KL(), Displacement()])
    return Run(dim, method, optimum, kl, cost, measures, fitted.seconds - spent)


@torch.no_grad()
def seen(flow: Flow, oracle: GaussianOracle, test: Tensor) -> tuple[float, float]:
    """Return KL and cost over test points, both less the sampling error of the known ones."""
    training = flow.training
    flow.eval()
    encoded = [flow.encode(x) for x in test.float().split(BLOCK)]
    flow.train(training)
    z, ladj = torch.cat([e.z for e in encoded]).double(), torch.cat([e.ladj for e in encoded])
    gap = oracle.log_prob(test) - log_normal(z) - ladj
    excess = (test - z).square().sum(-1) - (test - oracle.transport(test)).square().sum(-1)
    return float(gap.mean()), oracle.w2_squared + float(excess.mean())


def table(runs: Sequence[Run]) -> str:
    """Return what the judge says, one row for each flow."""
    rows = []
    for run in runs:
        kl, ratio = run.measures["kl"], run.measures["displacement-optimality"]
        assert kl.error is not None
        assert ratio.error is not None
        rows.append(
            [
                run.dim,
                run.method,
                f"{run.optimum:.4g}",
                f"{kl.value:.4f} ± {kl.error:.4f}",
                f"{run.optimum * ratio.value:.4g}",
                f"{100 * (ratio.value - 1):+.2f} ± {100 * ratio.error:.2f}",
                f"{run.seconds:.0f}",
            ]
        )
    head = ["d", "flow", "optimal cost", "KL (nats)", "cost", "excess (%)", "training (s)"]
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def drawn(runs: Sequence[Run]) -> Figure:
    """Return the figure: cost against KL, a panel for each dimension."""
    dims = list(dict.fromkeys(run.dim for run in runs))
    height = -(-len(dims) // (width := min(3, len(dims))))
    figure = Figure(figsize=(2.3 * width, 2.0 * height + 0.35), layout="constrained")
    axes = figure.subplots(height, width, squeeze=False).flatten()
    for axis, dim in zip(axes, dims, strict=False):
        panel(axis, [run for run in runs if run.dim == dim])
    for axis in axes[len(dims) :]:
        axis.set_axis_off()
    for axis in axes[::width]:
        axis.set_ylabel(r"cost $E\,|x - z|^2$")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def panel(axis: Axes, runs: Sequence[Run]) -> None:
    """Draw the flows of one dimension; each way ends in a dot."""
    optimum = runs[0].optimum
    axis.axhline(optimum, color="#000000", linewidth=0.8, linestyle=":", label="optimum")
    near = (0.98 * optimum, 1.02 * optimum)
    axis.axhspan(*near, color="#000000", alpha=0.08, linewidth=0, label="2 % around it")
    for run in runs:
        kl = [max(value, LEAST) for value in run.kl]
        colour, style = COLOURS[run.method], STYLES[run.method]
        axis.plot(kl, run.cost, style, label=run.method, color=colour, linewidth=1.2)
        axis.plot(kl[-1:], run.cost[-1:], "o", markersize=4.0, color=colour)
    axis.set_xscale("log")
    axis.set_xlim(5.0, 0.7 * LEAST)
    highest = max(run.cost[-1] for run in runs)
    axis.set_ylim(0.9 * optimum, max(1.1 * optimum, highest + 0.05 * optimum))
    axis.set_title(f"d = {runs[0].dim}")
    axis.set_xlabel(f"KL (nats), {LEAST:g} or more")
    axis.grid(linewidth=0.3, alpha=0.5)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, print the table and draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 8, 32], metavar="D")
    parser.add_argument("--published", action="store_true", help="the published settings")
    parser.add_argument("--steps", type=int, help="optimizer steps of every fit")
    parser.add_argument("--lr", type=float, help="learning rate of every fit")
    parser.add_argument("--seed", type=int, default=0, help="of the laws and their rows")
    parser.add_argument("--looks", type=int, default=25, help="evaluations during a fit")
    parser.add_argument("--out", type=Path, default=OUT, help="the figure, .png or .pdf")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    changes = {k: v for k in ("steps", "lr") if (v := getattr(args, k)) is not None}
    runs = []
    for dim in args.dims:
        for method in COLOURS:
            settings = replace(chosen(method, dim, args.published), **changes)
            runs.append(trained(method, dim, settings, args.seed, args.looks))
            print(f"d = {dim}, {method}: {settings}", flush=True)
    print(f"\n{table(runs)}\n")
    with mpl.rc_context(FONTS):
        figure = drawn(runs)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(figure)
        figure.savefig(args.out, bbox_inches="tight", dpi=200)
    print(f"figure: {args.out}")


if __name__ == "__main__":
    main()
