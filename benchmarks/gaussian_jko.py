"""JKO-iFlow on a Gaussian, where every step of the scheme has a closed form.

A chain is trained block by block on a law of variances 12 and 2 and a mean of length 3, then again
with reparametrised step sizes, round by round. In each principal direction the JKO step of size h
takes N(m, s^2) to N(m / (1 + h), (a s)^2),

    a = (s^2 / h + sqrt((s^2 / h)^2 + 4 s^2 (1 + 1 / h))) / (2 s^2 (1 + 1 / h)),

so how far each block should move the points is known. Printed is that movement, in W2, trained and
in closed form for the step sizes of the same round; how uneven the movements are, that is their
standard deviation over their mean; and KL(data || flow) after the last block. Drawn are the
movements, block by block and round by round.

    python benchmarks/gaussian_jko.py
    python benchmarks/gaussian_jko.py --quick
    python benchmarks/gaussian_jko.py --rounds 7 --steps 400
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tabulate import tabulate
from torch import Tensor

from flowzoo.continuous import Continuous
from flowzoo.integrators import RK438
from flowzoo.objective import Batch
from flowzoo.settings import Budget, Optimizer, Schedule, Training
from flowzoo.training import Progress, fit
from flowzoo_ffjord.velocity import ODENet
from flowzoo_jko_iflow.growing import Growing
from flowzoo_jko_iflow.objective import JKO
from flowzoo_jko_iflow.steps import Reparametrisation, Steps, unevenness

OUT = Path(__file__).parent / "results" / "gaussian_jko.png"
COVARIANCE = ((7.0, 5.0), (5.0, 7.0))  # the published example: variances 12 and 2
VARIANCES = (12.0, 2.0)
MEANS = (3.0, 0.0)  # in the principal directions, those of the variances
SCHEDULES = {"h = 1": Steps(1.0, 1.0), "h = 0.25 · 1.4^k": Steps(0.25, 1.4)}
LARGEST = 5.0  # step size in reparametrisation
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # of flowzoo's other pictures
FONTS: dict[Any, Any] = {
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.linewidth": 0.6,
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Round:
    """One pass over the blocks.

    Arguments:
        number: 0 trains them first; the others follow a reparametrisation.
        steps: The step sizes h.
        movements: How far each block moved the points, (E|T(x) - x|^2)^(1/2).
        kl: KL(data || flow) at the end, in nats.
    """

    number: int
    steps: list[float]
    movements: list[float]
    kl: float


def closed_form(steps: Sequence[float]) -> tuple[list[float], float]:
    """Return the movements of JKO steps of these sizes, and the KL that they leave, in nats."""
    means, deviations = list(MEANS), [math.sqrt(v) for v in VARIANCES]
    movements = []
    for h in steps:
        square = 0.0
        for i, (m, s) in enumerate(zip(means, deviations, strict=True)):
            b, c = s * s / h, s * s * (1 + 1 / h)
            a = (b + math.sqrt(b * b + 4 * c)) / (2 * c)
            square += (m - m / (1 + h)) ** 2 + (s - a * s) ** 2
            means[i], deviations[i] = m / (1 + h), a * s
        movements.append(math.sqrt(square))
    both = zip(means, deviations, strict=True)
    return movements, sum(0.5 * (m * m + s * s - 1) - math.log(s) for m, s in both)


def points(n: int, seed: int) -> Tensor:
    """Return points (n, 2) whose own mean and covariance are those of the law."""
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z = z - z.mean(0)
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(z.mT @ z / n), z.mT, upper=False).mT
    covariance = torch.tensor(COVARIANCE, dtype=torch.float64)
    variances, basis = torch.linalg.eigh(covariance)  # in ascending order
    mean = basis @ torch.tensor(MEANS[::-1], dtype=torch.float64)
    return (z * variances.sqrt()) @ basis.mT + mean


def trained(name: str, steps: Steps, args: argparse.Namespace) -> list[Round]:
    """Train a chain in all rounds, and return what became of each."""
    torch.manual_seed(args.seed)
    blocks = [
        Continuous(ODENet(2, (args.width,), layer="ignore", activation="softplus"), RK438(3))
        for _ in range(args.blocks)
    ]
    rounds = Reparametrisation(args.rounds, largest=LARGEST, even=0.0) if args.rounds else None
    fitted = fit(
        Growing(blocks),
        JKO(steps, reparametrise=rounds),
        Batch(points(args.points, args.seed)),
        Batch(points(args.points, args.seed + 1)),
        budget=Budget(steps=args.steps * args.blocks * (args.rounds + 1)),
        training=Training(
            batch_size=args.batch,
            optimizer=Optimizer(lr=args.lr),
            schedule=Schedule("cosine"),
            clip=1.0,
            validate_every=args.steps,  # held-out points, of which the KL is
            validate_rows=args.points,
            criterion="loss",
            keep="last",
        ),
        seed=args.seed,
        observe=Teller(name),
    )
    return rounds_of(fitted.stages, args.blocks)


class Teller:
    """Says which block is being trained."""

    def __init__(self, name: str) -> None:
        self.name, self.stage = name, ""

    def __call__(self, progress: Progress) -> None:
        """Print the stage where it is a new one."""
        if progress.stage != self.stage:
            self.stage = progress.stage
            print(f"{self.name}: {self.stage}", flush=True)


def rounds_of(stages: Sequence[dict[str, Any]], blocks: int) -> list[Round]:
    """Return the rounds from the rows that a fit records, one for each block of each round."""
    entropy = math.log(2 * math.pi * math.e) + 0.5 * sum(map(math.log, VARIANCES))
    rounds = []
    for i in range(0, len(stages), blocks):
        rows = stages[i : i + blocks]
        steps, moved = ([row[key] for row in rows] for key in ("h", "movement"))
        rounds.append(Round(i // blocks, steps, moved, rows[-1]["nll"] - entropy))
    return rounds


def movement_table(rounds: Sequence[Round]) -> str:
    """Return the movements block by block: step size, trained, closed form, difference."""
    rows = []
    for one in rounds:
        known, _ = closed_form(one.steps)
        for k, (h, s, t) in enumerate(zip(one.steps, one.movements, known, strict=True), 1):
            off = f"{100 * (s / t - 1):+.1f}"
            rows.append([one.number, k, f"{h:.3f}", f"{s:.4f}", f"{t:.4f}", off])
    head = ["round", "block", "h", "movement", "closed form", "off (%)"]
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def round_table(rounds: Sequence[Round]) -> str:
    """Return how uneven the movements are, and the KL, round by round."""
    rows = []
    for one in rounds:
        known, kl = closed_form(one.steps)
        uneven = [f"{unevenness(one.movements):.3f}", f"{unevenness(known):.3f}"]
        rows.append([one.number, *uneven, f"{one.kl:.2e}", f"{kl:.2e}"])
    head = ["round", "std / mean", "closed form", "KL (nats)", "closed form"]
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def drawn(found: dict[str, list[Round]]) -> Figure:
    """Return the figure: movement against block, a panel for each schedule."""
    figure = Figure(figsize=(3.0 * len(found), 2.4), layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axis, (name, rounds) in zip(axes, found.items(), strict=True):
        panel(axis, rounds)
        axis.set_title(name.replace("^k", "$^k$"))
    axes[0].set_ylabel(r"movement $(E\,|T(x) - x|^2)^{1/2}$")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return figure


def panel(axis: Axes, rounds: Sequence[Round]) -> None:
    """Draw the rounds of one schedule: the closed form as a line, the trained blocks as dots."""
    axis.plot([], [], "-", color="#666666", linewidth=1.0, label="closed form")
    for one in rounds:
        colour = COLOURS[one.number % len(COLOURS)]
        blocks = range(1, len(one.steps) + 1)
        axis.plot(blocks, closed_form(one.steps)[0], "-", color=colour, linewidth=1.0)
        label = f"trained, round {one.number}"
        axis.plot(blocks, one.movements, "o", color=colour, markersize=3.0, label=label)
    axis.set_yscale("log")
    axis.set_xlabel("block")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(linewidth=0.3, alpha=0.5)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two blocks, hardly trained")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="of reparametrisation")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of a block")
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--points", type=int, default=20_000, help="training points")
    parser.add_argument("--width", type=int, default=64, help="of the one hidden layer of a block")
    parser.add_argument("--lr", type=float, default=5e-3, help="learning rate, which falls to zero")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT, help="the figure, as .png and as .pdf")
    args = parser.parse_args(arguments)
    if args.quick:
        args.blocks, args.rounds, args.steps, args.points = 2, 1, 20, 1000
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, print the tables and draw the figure."""
    args = parsed(arguments)
    torch.set_num_threads(1)
    found = {name: trained(name, steps, args) for name, steps in SCHEDULES.items()}
    for name, rounds in found.items():
        print(f"\n{name}\n\n{movement_table(rounds)}\n\n{round_table(rounds)}")
    with mpl.rc_context(FONTS):
        figure = drawn(found)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(figure)
        for suffix in (".png", ".pdf"):
            figure.savefig(args.out.with_suffix(suffix), bbox_inches="tight", dpi=200)
    print(f"\nfigure: {args.out.with_suffix('.png')} and .pdf")


if __name__ == "__main__":
    main()
