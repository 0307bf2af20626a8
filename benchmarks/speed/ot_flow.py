"""Time OT-Flow against the algorithm of its published code, on the same weights and points.

  published            the published algorithm, transcribed in published_ot_flow.py: m x d x n
                       Jacobians, activations computed three times, automatic differentiation
                       through all steps, traces computed in generation too
  flowzoo              flowzoo with its defaults
  compiled             the same, its potential compiled by torch.compile
  recompute            the same, not compiled, each step recomputed in the backward pass
  compiled-recompute   both; only if asked for

Timed are a training step (the objective L + a1 C + a2 R and its gradient; no optimizer), an
evaluation (places, log-determinant, L and R at the steps of validation, without gradients), and a
generation (noise to data, at those steps). A table is printed only where all sides agree: on the
objective and on the gradient of every parameter, on all that an evaluation gives, on the data.

GFLOP/s counts what the mathematics needs, whatever a side computes. Per sample and evaluation of
the right-hand side, with M hidden layers of width m, d dimensions, A of r rows, in products of
matrices alone:

  F   = 4 m (d + 1) + 4 m^2 M + 4 r (d + 1) + 2 m^2 min(d, m) M      with the trace
  F_g = 4 m (d + 1) + 4 m^2 M + 4 r (d + 1)                          the gradient alone

times four per Runge-Kutta step; a training step counts 3 F, a generation F_g. `of peak` is relative
to the best product of two matrices in the same process. `memory` is what a training step adds at
its peak, in a process of its own. `runs` is how many the median is of; of a job that takes longer
than `--patience`, the first and only one counts.

    python benchmarks/speed/ot_flow.py
    python benchmarks/speed/ot_flow.py --cases miniboone --batch 400 --jobs training --repeat 5
    python benchmarks/speed/ot_flow.py --cases --points 43x64 784x64
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from inspect import signature

import torch
from machine import Job, Machine, agree, megabytes, options, show, started
from ot_flow_jobs import CASES, JOBS, SIDES, Case, training_job
from published_ot_flow import PublishedOTFlow
from torch import Tensor
from torch.nn.functional import pad

from flowzoo.field import Gradient
from flowzoo_ot_flow.potential import ResNetPotential


def case_table(case: Case, rows: int, machine: Machine, args: argparse.Namespace) -> None:
    """Print the measurements of one case at one batch."""
    workers = {name: SIDES[name].worker(case, rows, machine) for name in args.sides}
    peak, table = machine.peak(), []
    for job in args.jobs:
        jobs: dict[str, Job] = {
            name: getattr(worker, job)
            for name, worker in workers.items()
            if job == "training" or not SIDES[name].recompute  # which differs in training only
        }
        for name in jobs:
            if SIDES[name].compiled:
                compile_now(f"{name} {job}", jobs[name])
        timed = machine.compare(jobs, args.repeat, args.patience)
        published = timed["published"]
        for name, found in timed.items():
            agree(found.first, published.first, f"{job}, {name}")
            rate, memory = 1e3 * case.operations(job, rows) / found.ms, ""
            if job == "training" and not args.no_memory:
                memory = megabytes(machine.memory(training_job, name, case, rows, machine))
            numbers = [f"{found.ms:.1f}", found.runs, f"{published.ms / found.ms:.2f}x"]
            table.append(
                [job, name, *numbers, f"{rate / 1e9:.1f}", f"{100 * rate / peak:.0f} %", memory]
            )
    steps = f"{case.train_steps} steps in training, {case.test_steps} otherwise"
    show(
        f"d={case.dim} m={case.width} batch={rows}, {steps}; peak {peak / 1e9:.0f} GFLOP/s",
        ["job", "side", "ms", "runs", "speed-up", "GFLOP/s", "of peak", "memory"],
        table,
    )


def compile_now(what: str, job: Job) -> None:
    """Run a job once, and say how long it took to compile it, in wall time."""
    start = time.perf_counter()
    job()
    print(f"\n{what}: first run, compilation included, {time.perf_counter() - start:.0f} s")


def point_jobs(dim: int, width: int, rows: int, machine: Machine, backward: bool) -> dict[str, Job]:
    """Return velocity and trace at `rows` points by either side, and their gradients."""
    torch.manual_seed(0)
    potential = ResNetPotential(dim, width).to(machine.device, machine.dtype)
    x = machine.normal(rows, dim)
    published, field, t = PublishedOTFlow(potential), Gradient(potential), x.new_tensor(0.3)

    def theirs() -> list[Tensor]:
        gradient, trace = published.gradient_and_trace(pad(x, (0, 1), value=0.3))
        return [-gradient[:, :dim], -trace]

    def ours() -> list[Tensor]:
        at = field.with_divergence(t, x)
        trace = at.jacobian.trace()
        assert trace is not None
        return [at.v, trace]

    def run(side: Callable[[], list[Tensor]]) -> list[Tensor]:
        with torch.set_grad_enabled(backward):
            found = side()
        if not backward:
            return found
        potential.zero_grad(set_to_none=True)
        torch.cat([out.sum()[None] for out in found]).sum().backward()
        return [p.grad for p in potential.parameters() if p.grad is not None]

    return {"published": lambda: run(theirs), "flowzoo": lambda: run(ours)}


def point_rows(machine: Machine, args: argparse.Namespace) -> list[list[str]]:
    """Return times of velocity and trace alone."""
    table = []
    for dim, width in args.points:
        for backward in (False, True):
            jobs = point_jobs(dim, width, args.rows, machine, backward)
            found = machine.compare(jobs, args.repeat, args.patience)
            there, here = found["published"], found["flowzoo"]
            agree(here.first, there.first, f"d={dim} m={width}")
            label = "forward and backward" if backward else "forward"
            times = [f"{there.ms:.2f}", f"{here.ms:.2f}", f"{there.ms / here.ms:.1f}x"]
            table.append([str(dim), str(width), label, *times])
    return table


def no_compiling() -> str | None:
    """Return why nothing can be compiled here, if that is so."""
    if "compile" not in signature(ResNetPotential).parameters:
        return "ResNetPotential has no option `compile`"
    if not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        return "there is no C++ compiler"
    return None


def size(text: str) -> tuple[int, int]:
    """Read `43x64` as d = 43, m = 64."""
    try:
        d, m = text.split("x")
        return int(d), int(m)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected DIMxWIDTH such as 43x64, got {text}") from None


def chosen() -> argparse.Namespace:
    """Return the options."""
    parser = options(__doc__)
    points = ["2x64", "8x64", "43x64", "63x64", "43x256", "256x64", "784x64"]
    usual = list(SIDES)[:4]
    parser.add_argument("--points", type=size, nargs="*", default=[size(p) for p in points])
    parser.add_argument("--rows", type=int, default=1024, help="rows of the table of points")
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--batch", type=int, nargs="+", help="rows of a step, for every case")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=usual)
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    args = parser.parse_args()
    args.sides = list(dict.fromkeys(["published", *args.sides]))
    return args


def main() -> None:
    """Print the tables."""
    args = chosen()
    machine = started(args)
    reason = no_compiling()
    if reason and any(SIDES[name].compiled for name in args.sides):
        args.sides = [name for name in args.sides if not SIDES[name].compiled]
        print(f"nothing is compiled: {reason}")
    if args.points:
        head = ["d", "m", "", "published, ms", "flowzoo, ms", "speed-up"]
        show(f"Velocity and trace alone, {args.rows} points", head, point_rows(machine, args))
    for name in args.cases:
        print(f"\n{name}", flush=True)
        for rows in args.batch or CASES[name].batches:
            case_table(CASES[name], rows, machine, args)


if __name__ == "__main__":
    main()
