"""Time a training step of FFJORD: the algorithm of its official code against flowzoo's.

Three comparisons (`--tables`), all on the same weights, points and probes within a table:

methods  One step, forward and backward, of a network that Adam has trained for `--warm` steps, as a
         fresh one flatters adaptive solvers. `toy` is the 2-D network of three layers of 64 (tanh,
         T = 0.5, exact trace, tolerances 1e-5), `miniboone` the 43-dimensional one of two layers of
         860 (softplus, T = 1, Hutchinson, Gaussian noise, rtol 1e-6, atol 1e-8).
           published        dopri5 and its adjoint, transcribed in published_ffjord.py
           adjoint-autograd flowzoo's adjoint at these tolerances, Jacobian by autograd
           adjoint          the same with the closed-form Jacobian
           rk4-autograd     Runge-Kutta, discretize-then-optimize, Jacobian by autograd
           rk4              the same with the closed-form Jacobian
           rk4-recompute    the same, each step recomputed in the backward pass
           rk4-exact        like rk4, with the exact trace whatever the setting says
         `gradient error` is relative to a Runge-Kutta solve of `--reference` steps with the same
         trace: a faster row can be seen to be as accurate.
grids    Time and peak memory of a step of the toy network at 8 to 256 steps. Memory is what the
         step adds at its peak, in a process of its own. rk4 under the adjoint is torchdiffeq's.
trained  The toy network trained on eight Gaussians by the published step and by recomputed rk4,
         from the same weights on the same batches, a step of one after a step of the other, with
         the published optimizer except for `--lr`: at the published 1e-3 the network would still be
         fresh after so few steps. Time (forward, backward, Adam) and evaluations are medians over
         the last quarter. Then the judge scores both on the same points; `published - this` is the
         difference of the two NLLs, paired by point. Errors are 99 % intervals.

    python benchmarks/speed/ffjord.py
    python benchmarks/speed/ffjord.py --tables methods --settings miniboone --steps 4
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

import torch
from ffjord_steps import SETTINGS, Setting, Step, counted, gradient, ours, published, train
from machine import Job, Machine, megabytes, options, show, started

from flowzoo.continuous import Continuous
from flowzoo.data.toys import EightGaussians
from flowzoo.integrators import RK4, Integrator
from flowzoo.judge import Measure, Subject, mean
from flowzoo.judge.likelihood import NLL
from flowzoo.odeint import Adjoint


def methods(s: Setting, steps: int) -> dict[str, tuple[Step, bool]]:
    """Return the compared steps by name, and whether each has the exact trace."""
    adjoint, grid = Adjoint(rtol=s.rtol, atol=s.atol), RK4(steps)
    made = {
        "published": published(s),
        "adjoint-autograd": ours(s, adjoint, autograd=True),
        "adjoint": ours(s, adjoint),
        "rk4-autograd": ours(s, grid, autograd=True),
        "rk4": ours(s, grid),
        "rk4-recompute": ours(s, RK4(steps, recompute=True)),
    }
    exact = {} if s.exact else {"rk4-exact": (ours(replace(s, exact=True), grid), True)}
    return {name: (step, s.exact) for name, step in made.items()} | exact


def methods_table(s: Setting, machine: Machine, args: argparse.Namespace) -> None:
    """Print time, evaluations and error of one step by every method."""
    net = s.net(machine)
    warm = replace(s, exact=True, batch=min(s.batch, 100))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for i in range(args.warm):
        gradient(ours(warm, RK4(args.steps)), net, warm.points(machine, i))
        optimizer.step()
    x, compared = s.points(machine, args.warm), methods(s, args.steps)
    truth = {
        exact: gradient(ours(replace(s, exact=exact), RK4(args.reference, True)), net, x)[0]
        for exact in {exact for _, exact in compared.values()}
    }
    jobs = {name: partial(gradient, step, net, x) for name, (step, _) in compared.items()}
    timed, table = machine.compare(jobs, args.repeat, args.patience), []
    for name, found in timed.items():
        (slope, nfe), exact = found.first, truth[compared[name][1]]
        error = ((slope - exact).norm() / exact.norm()).item()
        speedup = f"{timed['published'].ms / found.ms:.2f}x"
        table.append([name, f"{found.ms:.1f}", found.runs, speedup, counted(nfe), f"{error:.1e}"])
    trace = "exact trace" if s.exact else "Hutchinson's trace"
    title = f"{s}; {trace}, rtol {s.rtol:g}, atol {s.atol:g}, {args.steps} steps of rk4"
    show(title, ["method", "ms", "runs", "speed-up", "evaluations", "gradient error"], table)


def grid_job(s: Setting, integrator: Integrator, machine: Machine) -> Job:
    """Return a step of which nothing but its own memory is new: one of two points has run."""
    step, net, x = ours(s, integrator), s.net(machine), s.points(machine, 0)
    gradient(step, net, x[:2])
    net.zero_grad(set_to_none=True)
    return partial(gradient, step, net, x)


def grids_table(s: Setting, machine: Machine, args: argparse.Namespace) -> None:
    """Print time and peak memory against the number of steps, or the tolerance."""
    compared: dict[str, dict[str, Integrator]] = {
        f"{n} steps": {
            "rk4": RK4(n),
            "rk4, recompute": RK4(n, recompute=True),
            "rk4, adjoint": Adjoint("rk4", steps=n),
        }
        for n in args.grids
    }
    for tol in args.tolerances:
        compared[f"tolerance {tol:g}"] = {"dopri5, adjoint": Adjoint(rtol=tol, atol=tol)}
    table = []
    for grid, integrators in compared.items():
        jobs = {name: grid_job(s, i, machine) for name, i in integrators.items()}
        for name, found in machine.compare(jobs, args.repeat, args.patience).items():
            memory = machine.memory(grid_job, s, integrators[name], machine)
            row = [name, grid, counted(found.first[1]), f"{found.ms:.1f}", found.runs]
            table.append([*row, megabytes(memory)])
    table.sort(key=lambda row: row[0])  # stable: one method after another, its grids in order
    show(f"{s}; exact trace", ["method", "grid", "evaluations", "ms", "runs", "memory"], table)


def trained_rows(s: Setting, machine: Machine, args: argparse.Namespace) -> list[list[str]]:
    """Return what training by either step costs, and what the judge says of the flows."""
    grid = RK4(args.steps, recompute=True)
    steps = {"published": published(s), "rk4-recompute": ours(s, grid)}
    runs = train(steps, s, machine, args.train, args.lr)
    data = EightGaussians(train=2, val=2, test=args.test).load()
    judged = {
        name: Subject(Continuous(run.net, grid, end_time=s.end_time), data, device=machine.device)
        for name, run in runs.items()
    }
    first, rows = runs["published"], []
    for name, run in runs.items():
        nll = NLL().measure(judged[name])["nll"]
        gap = mean(judged[name].log_prob - judged["published"].log_prob)
        row = ["exact" if s.exact else "hutchinson", name, f"{run.ms:.1f}"]
        row += [f"{first.ms / run.ms:.2f}x", run.evaluations, f"{sum(run.seconds):.0f}"]
        rows.append([*row, plus_minus(nll), "" if run is first else plus_minus(gap)])
    return rows


def plus_minus(measure: Measure) -> str:
    """Return a measured number with its error."""
    return f"{measure.value:.4f} ± {measure.error:.4f}"


def trained_table(s: Setting, machine: Machine, args: argparse.Namespace) -> None:
    """Print both trainings, with the exact trace and with Hutchinson's."""
    both = [replace(s, exact=True), replace(s, exact=False)]
    rows = [row for each in both for row in trained_rows(each, machine, args)]
    title = f"{s}; after {args.train} steps of training, {args.steps} steps of rk4"
    head = ["trace", "step", "ms", "speed-up", "evaluations", "training, s"]
    show(title, [*head, "judged NLL", "published - this"], rows)


def chosen() -> argparse.Namespace:
    """Return the options."""
    parser = options(__doc__)
    tables = ["methods", "grids", "trained"]
    parser.add_argument("--tables", nargs="+", choices=tables, default=tables)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=8, help="Runge-Kutta steps")
    parser.add_argument("--reference", type=int, default=32, help="steps of the reference gradient")
    parser.add_argument("--warm", type=int, default=100, help="steps of Adam before measuring")
    grids, tolerances = [8, 16, 32, 64, 128, 256], [1e-3, 1e-4, 1e-5, 1e-6]
    parser.add_argument("--grids", type=int, nargs="+", default=grids)
    parser.add_argument("--tolerances", type=float, nargs="*", default=tolerances)
    parser.add_argument("--train", type=int, default=240, help="steps of Adam by either step")
    parser.add_argument("--lr", type=float, default=5e-3, help="learning rate of that training")
    parser.add_argument("--test", type=int, default=10_000, help="points that the judge scores on")
    parser.add_argument("--batch", type=int, help="rows; if left out as published, 256 and 512")
    parser.add_argument("--width", type=int, help="width of layers; as published if left out")
    return parser.parse_args()


def main() -> None:
    """Print the tables."""
    args = chosen()
    machine = started(args)
    sized = {
        name: replace(s, hidden=tuple(args.width or width for width in s.hidden))
        for name, s in SETTINGS.items()
    }
    if "methods" in args.tables:
        for name in args.settings:
            s = sized[name]
            methods_table(replace(s, batch=args.batch or s.batch), machine, args)
    if "grids" in args.tables:
        grids_table(replace(sized["toy"], batch=args.batch or 256), machine, args)
    if "trained" in args.tables:
        trained_table(replace(sized["toy"], batch=args.batch or 512), machine, args)


if __name__ == "__main__":
    main()
