"""Time CP-Flow against the algorithms of its published code, on the same weights and points.

  step        a training step: log-densities, and the gradient of their mean in all parameters
  density     log-densities, without gradients
  inversion   noise to data

  published cg        one probe, conjugate gradients (1e-3, at most d): what it trains with
  published brute     d backward passes and slogdet: what it tests tables with
  published slq       ten Lanczos steps, one probe: what it validates with; in a step differentiated
  published l-bfgs    what it samples with
  exact               flowzoo's default: the Hessian in closed form, Cholesky
  cg                  products in closed form, conjugate gradients that stop sample by sample (1e-3)
  cg, of 64           the same, preconditioned by the mean Hessian of 64 of the points
  exact value, cg     the value of the one with the gradient of the other
  slq k               Lanczos quadrature with k probes, ten steps
  newton ...          flowzoo's inversion: per sample, by its own choice, by Cholesky, by products

The published algorithms are transcribed in published_cp_flow.py. Networks are input-augmented and
trained for some steps; `stiff` ones have had their Hessians' condition numbers raised thereafter
(cp_flow_jobs.py). `cond` is the median of these at the points, and the largest.

A table is printed only where both sides agree: log-densities and gradients of `exact` and published
brute force, up to rounding; the gradients of both conjugate gradients, for the same probes, to 5 %;
the points of all inversions, as far as the residuals allow: points differ by at most the sum of the
residuals over softplus(w0), below which no eigenvalue lies.

`memory` is what a step adds at its peak, in a process of its own. `gradient off` is the distance of
the gradient to that of `exact`, relative to the length of the log-determinant's part of it: with
one probe for each point, most of it is the noise of the probes at this number of points. `off` is
the root mean square error of a log-determinant, in nats. `iterations` are those of conjugate
gradients or Newton steps, mean and most of all samples, or the one number that the published code
has for all; of L-BFGS, evaluations. The last columns say how much faster a row is than a published
one.

    python benchmarks/speed/cp_flow.py
    python benchmarks/speed/cp_flow.py --cases 43 --tables step --repeat 9 --double
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from cp_flow_jobs import (
    CASES,
    DENSITY_SIDES,
    INVERSIONS,
    NETS,
    STEP_SIDES,
    Bench,
    Case,
    Found,
    heading,
    iterations,
    step_job,
)
from machine import Machine, Timed, agree, megabytes, options, show, started
from torch import Tensor

TABLES = ("step", "density", "inversion")
BRUTE = "published brute"
CLOSE = 0.05  # gradients of two conjugate gradients, relative to that of the log-determinant


def step_table(bench: Bench, title: str, machine: Machine, args: argparse.Namespace) -> None:
    """Print training steps."""
    jobs = {n: partial(bench.step, STEP_SIDES[n]) for n in chosen(STEP_SIDES, bench.case, args)}
    timed = machine.compare(jobs, args.repeat, args.patience)
    if BRUTE in timed:
        agree(timed["exact"].first, timed[BRUTE].first, f"step, {title}")
    size = length(bench.slopes(STEP_SIDES["exact"](bench)[1]))
    exact, ours, theirs = (timed[name].first[2:] for name in ("exact", "cg", "published cg"))
    gap = distance(ours, theirs) / size
    require(gap < CLOSE, f"step, {title}: conjugate gradients differ by {gap:.1e}")
    taken, rows = iterations(bench), []
    for name, found in timed.items():
        off, memory = distance(found.first[2:], exact) / size, ""
        if not args.no_memory:
            memory = megabytes(machine.memory(step_job, name, bench.case, machine))
        rows.append([name, memory, taken.get(name, ""), f"{off:.1e}"])
    compared(f"training step, {title}", ["memory", "iterations", "gradient off"], rows, timed)


def density_table(bench: Bench, title: str, machine: Machine, args: argparse.Namespace) -> None:
    """Print evaluations of log-densities."""
    sides = chosen(DENSITY_SIDES, bench.case, args)
    jobs = {name: partial(bench.density, DENSITY_SIDES[name]) for name in sides}
    timed = machine.compare(jobs, args.repeat, args.patience)
    exact, rows = timed["exact"].first, []
    if BRUTE in timed:
        agree(exact, timed[BRUTE].first, f"density, {title}")
    for name, found in timed.items():
        off = (found.first[1] - exact[1]).square().mean().sqrt()
        rows.append([name, f"{off.item():.2g}"])
    compared(f"log-density, {title}", ["off, nats"], rows, timed)


def inversion_table(bench: Bench, title: str, machine: Machine, args: argparse.Namespace) -> None:
    """Print inversions."""
    jobs = {name: partial(side, bench) for name, side in INVERSIONS.items()}
    timed = machine.compare(jobs, args.repeat, args.patience)
    newton: Found = timed["newton"].first
    rows = []
    for name, run in timed.items():
        found: Found = run.first
        require(within(found, newton, bench), f"inversion, {title}: {name} is elsewhere")
        residual, off = found.residual.max(), (found.x - bench.points).norm(dim=-1).max()
        taken = found.iterations.to(torch.float64)
        effort = f"{taken.mean().item():.1f} / {int(taken.max())}"
        rows.append([name, effort, f"{residual.item():.1e}", f"{off.item():.1e}"])
    head = ["iterations", "largest residual", "largest error of x"]
    compared(f"inversion, {title}", head, rows, timed)


def compared(
    title: str,
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    timed: Mapping[str, Timed],
) -> None:
    """Print rows, each begun by the name of a side, with times, and ratios to published sides."""
    published = [name for name in timed if name.startswith("published")]
    table = []
    for name, *cells in rows:
        found = timed[str(name)]
        ratios = [f"{timed[there].ms / found.ms:.2f}x" for there in published]
        table.append([name, f"{found.ms:.1f}", found.runs, *cells, *ratios])
    show(title, ["side", "ms", "runs", *head, *(f"to {name}" for name in published)], table)


def within(found: Found, other: Found, bench: Bench) -> bool:
    """Return whether points are as close to each other as their residuals promise."""
    floor = torch.nn.functional.softplus(bench.flow.raw_quadratic).item()
    eps = torch.finfo(found.x.dtype).eps
    rounding = 100 * eps * bench.targets.norm(dim=-1)
    allowed = (found.residual + other.residual + rounding) / floor
    return bool(((found.x - other.x).norm(dim=-1) <= allowed).all())


def distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the distance of two gradients in parts."""
    return length([a - b for a, b in zip(found, expected, strict=True)])


def length(gradient: Sequence[Tensor]) -> float:
    """Return the length of a gradient in parts."""
    return torch.cat([g.flatten() for g in gradient]).norm().item()


def require(agreed: bool, what: str) -> None:
    """Stop where two sides do not compute the same."""
    if not agreed:
        sys.exit(f"{what}; nothing to compare")


def chosen(sides: Mapping[str, object], case: Case, args: argparse.Namespace) -> list[str]:
    """Return the sides that are timed: brute force up to a dimension."""
    return [name for name in sides if name != BRUTE or case.dim <= args.brute]


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = options(__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=NETS)
    parser.add_argument("--batch", type=int, help="points of every case, in place of its own")
    parser.add_argument(
        "--brute", type=int, default=63, help="dimension up to which brute force is timed"
    )
    parser.add_argument("--training", type=int, default=200, help="steps behind a network")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    return parser.parse_args()


def main() -> None:
    """Print the tables."""
    args = parsed()
    machine = started(args)
    tables = {"step": step_table, "density": density_table, "inversion": inversion_table}
    for name in args.cases:
        for net in args.nets:
            rows = args.batch or CASES[name].rows
            case = replace(CASES[name], rows=rows, training=args.training, stiff=net == "stiff")
            bench = Bench(case, machine)
            title = heading(bench, machine)
            for table in args.tables:
                tables[table](bench, title, machine, args)


if __name__ == "__main__":
    main()
