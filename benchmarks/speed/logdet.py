"""The error of each estimate of a log-determinant, and of its gradient, against its cost.

Maps are Hessians of CP-Flow's networks (cp_flow_jobs.py), whose log-determinant a Cholesky factor
gives exactly. Of values:

  exact                 Cholesky
  slq k x m             Lanczos quadrature with k probes and m steps
  slq k x m, of c       the same, preconditioned by the mean Hessian of c points of the batch
  slq k x m, radau      the same with Radau's rule, which lies below
  cg k, t               quadrature from conjugate gradients that stop at residuals of t
  published slq         the published code's, one probe

`RMSE` is the root mean square error of a sample's value, in nats; all of it is the noise of the
probes but for the `bias` of stopping early, which is what the mean is off from that of d steps with
the same probes. `bracket` is how far Gauss's rule lies above Radau's on the mean, for the same
probes: the bias is smaller. Of gradients of the mean log-determinant of a few points in all
parameters, one probe for each point:

  cg t                  conjugate gradients from 0, which stop sample by sample at residuals of t
  slq m                 m Lanczos steps
  published cg t        the published code's

`bias` is the length of the mean deviation from the gradient that d steps give with the same probes,
`std` the root mean square length of what the probes add, both relative to the exact gradient.

    python benchmarks/speed/logdet.py
    python benchmarks/speed/logdet.py --cases 43 --nets stiff --draws 400
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, TypeAlias

import torch
from cp_flow_jobs import ATOL, CASES, NETS, SHARED, STEPS, Bench, conjugate_steps, heading
from machine import Machine, options, show, started
from torch import Tensor

from flowzoo.logdet import CG, SLQ, brackets
from flowzoo.traces import Exact, TraceEstimator, draw

PROBES, KRYLOV = (1, 4, 16), (5, 10, 20)

Estimate: TypeAlias = Callable[[Bench, Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """An estimate, and what it is without stopping early.

    Arguments:
        estimate: (bench, probes) -> log-determinants (n,), or what has their gradient.
        limit: The same by d steps; the same object for all rows that have it in common.
        probes: How many it takes.
        steps: (bench, probes) -> the products it takes, in words.
        bracketed: Steps after which Gauss's and Radau's rules bracket it, None where they do not.
    """

    estimate: Estimate
    limit: Estimate
    probes: int
    steps: Callable[[Bench, Tensor], str]
    bracketed: int | None = None


def ours(trace: TraceEstimator) -> Estimate:
    """Return flowzoo's estimate."""
    return lambda bench, p: trace(bench.flow.at(bench.points).hessian, p, torch.log)


@cache
def limit(dim: int, probes: int, shared: int = 0) -> Estimate:
    """Return the quadrature by d steps."""
    return ours(SLQ(probes, dim, precondition=shared))


def lanczos(dim: int, probes: int, steps: int, shared: int = 0, rule: Any = "gauss") -> Row:
    """Return the row of a Lanczos quadrature."""
    estimate = ours(SLQ(probes, steps, rule=rule, precondition=shared))
    bracketed = None if shared else steps
    return Row(estimate, limit(dim, probes, shared), probes, lambda *_: str(steps), bracketed)


def conjugate(dim: int, atol: float, probes: int = 1, shared: int = 0) -> Row:
    """Return the row of conjugate gradients."""

    def steps(bench: Bench, p: Tensor) -> str:
        return conjugate_steps(bench, p, atol, shared)

    estimate = ours(CG(probes, atol, precondition=shared))
    return Row(estimate, limit(dim, probes, shared), probes, steps)


def published_lanczos(dim: int) -> Row:
    """Return the row of the published quadrature."""

    def estimate(bench: Bench, p: Tensor) -> Tensor:
        return bench.published.lanczos(bench.points, p[0] / math.sqrt(dim), STEPS)[1]

    return Row(estimate, limit(dim, 1), 1, lambda *_: str(min(STEPS, dim)))


def published_conjugate(dim: int, atol: float) -> Row:
    """Return the row of the published surrogate."""

    def estimate(bench: Bench, p: Tensor) -> Tensor:
        return bench.published.surrogate(bench.points, p[0], atol)[1]

    def steps(bench: Bench, p: Tensor) -> str:
        return str(bench.published.surrogate(bench.points, p[0], atol)[2])

    return Row(estimate, limit(dim, 1), 1, steps)


def value_rows(dim: int) -> dict[str, Row]:
    """Return the rows of the table of values."""
    steps = [m for m in KRYLOV if m < dim]
    rows = {f"slq {k} x {m}": lanczos(dim, k, m) for k in PROBES for m in (steps or [dim])}
    for k in PROBES:
        m = min(STEPS, dim)
        rows[f"slq {k} x {m}, radau"] = lanczos(dim, k, m, rule="radau")
        rows[f"slq {k} x {m}, of {SHARED}"] = lanczos(dim, k, m, SHARED)
        rows[f"cg {k}, {ATOL:g}"] = conjugate(dim, ATOL, k)
    return {**rows, "published slq": published_lanczos(dim)}


def gradient_rows(dim: int) -> dict[str, Row]:
    """Return the rows of the table of gradients."""
    rows = {f"cg {atol:g}": conjugate(dim, atol) for atol in (3, 1, 0.1, ATOL)}
    rows |= {f"slq {m}": lanczos(dim, 1, m) for m in KRYLOV if m < dim}
    rows |= {f"cg {ATOL:g}, of {SHARED}": conjugate(dim, ATOL, shared=SHARED)}
    return rows | {f"published cg {a:g}": published_conjugate(dim, a) for a in (0.1, ATOL)}


def drawn(bench: Bench, probes: int, draws: int) -> Iterator[Tensor]:
    """Draw probes (k, n, d) again and again, the same for all rows that take as many."""
    generator = bench.generator()
    for _ in range(draws):
        yield draw("rademacher", (probes, *bench.points.shape), bench.points, generator)


@torch.no_grad()
def value_table(bench: Bench, machine: Machine, args: argparse.Namespace) -> None:
    """Print errors of values."""
    rows, exact = value_rows(bench.case.dim), ours(Exact())
    first = {name: next(drawn(bench, row.probes, 1)) for name, row in rows.items()}
    jobs = {name: partial(row.estimate, bench, first[name]) for name, row in rows.items()}
    timed = machine.compare(
        {"exact": partial(exact, bench, bench.points), **jobs}, args.repeat, args.patience
    )
    truth, a = timed["exact"].first, bench.flow.at(bench.points).hessian
    table = [["exact", f"{timed['exact'].ms:.1f}", "0", "0"]]
    for name, (found, limits) in samples(rows, lambda side, p: side(bench, p), bench, args.draws):
        row, bracket = rows[name], ""
        if row.bracketed:
            below, above = brackets(a, first[name], row.bracketed)
            bracket = f"{(above - below).mean().item():.1e}"
        rmse, bias = (found - truth).square().mean().sqrt(), (found - limits).mean()
        numbers = [f"{timed[name].ms:.1f}", f"{rmse.item():.2g}", f"{bias.item():+.1e}", bracket]
        table.append([name, *numbers, row.steps(bench, first[name])])
    head = ["estimate", "ms", "RMSE, nats", "bias, nats", "bracket, nats", "steps"]
    show(f"log-determinant, {heading(bench, machine)}, {args.draws} draws", head, table)


def gradient_table(bench: Bench, machine: Machine, args: argparse.Namespace) -> None:
    """Print errors of gradients."""
    rows, p = gradient_rows(bench.case.dim), next(drawn(bench, 1, 1))
    jobs = {name: partial(gradient, bench, row.estimate, p) for name, row in rows.items()}
    exact = partial(gradient, bench, ours(Exact()), p)
    timed = machine.compare({"exact": exact, **jobs}, args.repeat, args.patience)
    size = timed["exact"].first.norm()
    table = [["exact", f"{timed['exact'].ms:.1f}", "0", "0"]]
    once = partial(gradient, bench)
    for name, (found, limits) in samples(rows, once, bench, args.draws):
        bias = (found - limits).mean(0).norm() / size
        std = found.var(0).sum().sqrt() / size
        numbers = [f"{timed[name].ms:.1f}", f"{bias.item():.1e}", f"{std.item():.2g}"]
        table.append([name, *numbers, rows[name].steps(bench, p)])
    head = ["estimate", "ms", "bias", "std", "steps"]
    show(f"gradient of its mean, {heading(bench, machine)}, {args.draws} draws", head, table)


def samples(
    rows: Mapping[str, Row], of: Callable[[Estimate, Tensor], Tensor], bench: Bench, draws: int
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Yield what each row gives for its draws, and its limit for the same ones."""
    limits: dict[Estimate, Tensor] = {}
    for name, row in rows.items():
        found = torch.stack([of(row.estimate, p) for p in drawn(bench, row.probes, draws)])
        if row.limit not in limits:
            every = [of(row.limit, p) for p in drawn(bench, row.probes, draws)]
            limits[row.limit] = torch.stack(every)
        yield name, (found, limits[row.limit])


def gradient(bench: Bench, estimate: Estimate, probes: Tensor) -> Tensor:
    """Return the gradient of the mean over points in all parameters, in one vector."""
    return torch.cat([g.flatten() for g in bench.slopes(estimate(bench, probes))])


def main() -> None:
    """Print the tables."""
    parser = options(__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["8", "43", "63"])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=NETS)
    parser.add_argument("--rows", type=int, default=256, help="points of the values")
    parser.add_argument("--few", type=int, default=32, help="points of the gradients")
    parser.add_argument("--draws", type=int, default=16, help="draws of probes behind each error")
    parser.add_argument("--training", type=int, default=200, help="steps behind a network")
    args = parser.parse_args()
    machine = started(args)
    for name in args.cases:
        for net in args.nets:
            case = replace(CASES[name], training=args.training, stiff=net == "stiff")
            value_table(Bench(replace(case, rows=args.rows), machine), machine, args)
            gradient_table(Bench(replace(case, rows=args.few), machine), machine, args)


if __name__ == "__main__":
    main()
