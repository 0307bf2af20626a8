"""Time JKO-iFlow against the algorithm of its published code, on the same weights and points.

  step     a training step of a block: its loss, and the gradient in all weights; no optimizer
  bytes    what a step keeps for its backward pass, by number of blocks
  push     all points through a trained block

  published            torchdiffeq's adjoint of each solver step, divergence by a difference
                       quotient along Gaussian noise: what its code does
  published flushed    the same where numbers below the normal range are zero
  published backprop   the first differentiated through the solver, as its paper says
  difference           flowzoo with that divergence, on the same grid
  difference redrawn   the same with new noise at each evaluation
  hutchinson           flowzoo with Rademacher probes and products in closed form
  hutchinson autograd  the same, products by differentiating twice
  exact                flowzoo's default: the divergence in closed form
  ... adjoint          the same through flowzoo's adjoint method on the same grid
  ... recompute        the same, each solver step recomputed in the backward pass

flowzoo's steps are timed as `fit` takes them, numbers below the normal range flushed to zero; the
published ones as its code takes them, but for that row. The published algorithm is transcribed in
published_jko.py. The settings are the published ones
(widths of the tables follow from numbers of weights); the block has been trained for some steps.

A table is printed only where both sides agree: for the same noise, loss and gradient of `published
backprop` and `difference` up to rounding, of the two adjoints to 5 %. `gradient off` is the
distance to the gradient of `exact`, relative to its length, root mean square over draws of noise:
with one probe for each point most of it is that noise. `to ...` says how much faster a row is than
a published one, `to its adjoint` than the same through the adjoint. `memory` is what a step adds
at its peak, in a process of its own.

`bytes` counts every tensor that a backward pass keeps, weights and points apart, at the worst
moment of forward and backward: it depends on no machine. `at once` of `push` is what pushing adds
beside the points. The published push is one dopri5 solve at 1e-5 of all points; flowzoo's has the
grid of training, the exact divergence and what a record says of a block (one chunk backwards).

    python benchmarks/speed/jko.py
    python benchmarks/speed/jko.py --quick
    python benchmarks/speed/jko.py --tables step --cases rose miniboone --repeat 9 --double
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from jko_bytes import WAYS, kept_bytes, published_bytes
from jko_jobs import (
    CASES,
    STEP_SIDES,
    Bench,
    Case,
    ours,
    published,
    push_job,
    push_jobs,
    step_job,
    stepped,
)
from machine import Machine, Timed, megabytes, options, show, started
from torch import Tensor

from flowzoo.traces import Exact, TraceEstimator
from flowzoo_jko_iflow.difference import FiniteDifference

TABLES = ("step", "bytes", "push")
# How far losses and gradients of both sides may be apart, relative to their length.
CLOSE = 0.05  # two adjoints
ROUNDING = 1e-3  # the rest, in float32
JUMP = 1e-6  # in float64: torch's softplus, which the published code has, jumps by 1e-10
TRACES: dict[str, TraceEstimator] = {"difference": FiniteDifference(), "exact": Exact()}


def step_table(name: str, case: Case, machine: Machine, args: argparse.Namespace) -> None:
    """Print training steps."""
    bench = Bench(case, machine)
    require_alike(bench, name)
    jobs = {side: partial(stepped, bench, side) for side in args.sides}
    timed = machine.compare(jobs, args.repeat, args.patience)
    off, rows = noise(case, machine, args), []
    for side, found in timed.items():
        _, _, nfe = found.first
        memory = ""
        if not args.no_memory:
            memory = megabytes(machine.memory(step_job, side, case, machine))
        numbers = [f"{found.ms:.1f}", found.runs, f"{nfe.forward} + {nfe.backward}", memory]
        rows.append([side, *numbers, f"{off[side]:.1e}", *ratios(side, timed)])
    head = ["side", "ms", "runs", "evaluations", "memory", "gradient off"]
    there = [f"to {side}" for side in timed if side.startswith("published")]
    show(f"training step, {name}: {case}", [*head, *there, "to its adjoint"], rows)


def require_alike(bench: Bench, name: str) -> None:
    """Stop where the two sides do not compute the same."""
    double = bench.points.dtype == torch.float64
    pairs = {
        "backprop": (ours(FiniteDifference()), False, JUMP if double else ROUNDING),
        "adjoint": (STEP_SIDES["difference adjoint"], True, CLOSE),
    }
    for way, (side, adjoint, limit) in pairs.items():
        loss, slope, _ = bench.step(side)
        there, theirs, _ = bench.step(published(adjoint, same_noise=True))
        gap = max(distance(loss, there), distance(slope, theirs))
        if not gap < limit:
            sys.exit(f"step, {name}: {way} differs by {gap:.1e}; nothing to compare")


def noise(case: Case, machine: Machine, args: argparse.Namespace) -> dict[str, float]:
    """Return how far each side's gradient is from the exact one, over draws of its noise."""
    squares = dict.fromkeys(args.sides, 0.0)
    for seed in range(args.draws):
        bench = Bench(case, machine, seed)
        _, exact, _ = bench.step(STEP_SIDES["exact"])
        for side in args.sides:
            squares[side] += distance(bench.step(STEP_SIDES[side])[1], exact) ** 2
    return {side: (square / args.draws) ** 0.5 for side, square in squares.items()}


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the distance of two gradients, relative to the length of the second."""
    return ((found - expected).norm() / expected.norm()).item()


def ratios(side: str, timed: Mapping[str, Timed]) -> list[str]:
    """Return how much faster a side is than the published ones, and than its own adjoint."""
    others = [other for other in timed if other.startswith("published")]
    own = {"published backprop": "published"}.get(side, f"{side} adjoint")
    cells = [f"{timed[other].ms / timed[side].ms:.2f}x" for other in others]
    return [*cells, f"{timed[own].ms / timed[side].ms:.2f}x" if own in timed else ""]


def bytes_table(name: str, case: Case, machine: Machine, args: argparse.Namespace) -> None:
    """Print what is kept for a backward pass, against the number of blocks."""
    rows = []
    for side, adjoint in (("published", True), ("published backprop", False)):
        rows.append([side, "", mebibytes(published_bytes(case, adjoint, machine))])
    for trace, estimator in TRACES.items():
        for way in WAYS:
            found = [kept_bytes(way, estimator, case, k, machine) for k in args.blocks]
            rows.append([way, trace, *map(mebibytes, found)])
    blocks = [f"{k} block" + "s" * (k > 1) for k in args.blocks]
    show(f"kept for the backward pass, {name}: {case}", ["step", "divergence", *blocks], rows)


def mebibytes(amount: int) -> str:
    """Return an amount of memory in MiB (2^20 bytes)."""
    return f"{amount / 2**20:.1f} MiB"


def push_table(name: str, case: Case, machine: Machine, args: argparse.Namespace) -> None:
    """Print pushes of more and more points."""
    rows: list[Sequence[object]] = []
    for n in args.points:
        many = replace(case, rows=n)
        timed = machine.compare(
            push_jobs(Bench(many, machine), args.chunk), args.repeat, args.patience
        )
        for side, found in timed.items():
            at_once = ""
            if not args.no_memory:
                at_once = megabytes(machine.memory(push_job, side, many, args.chunk, machine))
            speed = f"{timed['published'].ms / found.ms:.2f}x"
            size = megabytes(n * case.dim * machine.dtype.itemsize)
            rate = f"{n / found.ms / 1e3:.3f}"
            rows.append([side, n, f"{found.ms:.1f}", found.runs, rate, size, at_once, speed])
    head = ["side", "points", "ms", "runs", "million a second", "points' memory", "at once"]
    show(f"pushing in chunks of {args.chunk}, {name}: {case}", [*head, "to published"], rows)


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = options(__doc__)
    parser.add_argument("--quick", action="store_true", help="small batches, a few seconds in all")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--sides", nargs="+", choices=list(STEP_SIDES), default=list(STEP_SIDES))
    parser.add_argument("--batch", type=int, help="points of every case, in place of its own")
    parser.add_argument("--training", type=int, default=200, help="steps behind a block")
    parser.add_argument("--draws", type=int, default=4, help="of noise, of `gradient off`")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--points", type=int, nargs="+", default=[20_000, 100_000, 500_000])
    parser.add_argument("--chunk", type=int, default=8192, help="points pushed at once")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    args = parser.parse_args()
    if args.quick:
        args.batch, args.training, args.draws, args.repeat = args.batch or 64, 5, 1, 1
        args.blocks, args.points, args.chunk, args.no_memory = [1, 2], [300, 600], 128, True
    return args


def main() -> None:
    """Print the tables."""
    args = parsed()
    machine = started(args)
    cases = {
        name: replace(CASES[name], rows=args.batch or CASES[name].rows, training=args.training)
        for name in args.cases
    }
    if "step" in args.tables:
        for name, case in cases.items():
            step_table(name, case, machine, args)
    first, *_ = cases
    if "bytes" in args.tables:
        bytes_table(first, cases[first], machine, args)
    if "push" in args.tables:
        push_table(first, cases[first], machine, args)


if __name__ == "__main__":
    main()
