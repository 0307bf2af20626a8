"""Time OT-Flow against the layout of its published code, on the same weights and points.

The published algorithm is written here from its formulas, in the layout of its code: Jacobians are
width x d x batch, the activations of each layer are computed three times, A^T A is formed, the
opening layer's part of the trace is a full product, and generation computes a trace that it throws
away. Both sides run in flowzoo's own Runge-Kutta loop.

    python benchmarks/speed/ot_flow.py
    python benchmarks/speed/ot_flow.py --cases toy miniboone --batch 400 --repeat 5
    python benchmarks/speed/ot_flow.py --points 2x64 43x64 784x64 --cases

Times are processor times of a single thread, medians over interleaved repetitions.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from flowzoo.continuous import Continuous
from flowzoo.field import Gradient, LinearMap, Point, Velocity
from flowzoo.integrators import RK4
from flowzoo.objective import Batch, Likelihood
from flowzoo.regularizers import HJB, Transport
from flowzoo_ot_flow.potential import ResNetPotential


@dataclass(frozen=True)
class Case:
    """A published setting; `batch` is reduced so that a repetition ends within seconds."""

    dim: int
    width: int
    batch: int
    train_steps: int
    test_steps: int
    likelihood: float
    hjb: float


CASES = {
    "toy": Case(2, 32, 4096, 8, 12, 30, 1),
    "miniboone": Case(43, 256, 400, 6, 10, 100, 15),
    "bsds300": Case(63, 512, 24, 14, 30, 2000, 800),
}


class Known(LinearMap):
    """A symmetric map of which the trace alone is known."""

    symmetric = True

    def __init__(self, trace: Tensor) -> None:
        self.known = trace

    def trace(self) -> Tensor:
        """Return the trace."""
        return self.known

    def vjp(self, p: Tensor) -> Tensor:
        """Refuse: the published code has no products."""
        raise NotImplementedError("the published code has no products")

    jvp = vjp

    def dense(self) -> Tensor:
        """Refuse, likewise."""
        raise NotImplementedError("the published code has no products")


class Published(Velocity):
    """-grad Phi in the layout of the published code, with the weights of a `ResNetPotential`."""

    provides = frozenset({"phi_t", "symmetric"})

    def __init__(self, potential: ResNetPotential) -> None:
        super().__init__()
        self.potential, self.dim = potential, potential.dim

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return v; the trace is computed and thrown away, as there."""
        return self.at(t, x).v

    def at(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Point:
        """Return velocity, trace and time derivative."""
        s = torch.cat((x, t.expand(len(x))[:, None]), 1)
        gradient, trace = self.gradient_and_trace(s)
        d = self.dim
        return Point(t, x, -gradient[:, :d], Known(-trace), gradient[:, d])

    def gradient_and_trace(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return grad_s Phi (n, d + 1) and the trace over space (n,)."""
        phi, d, h = self.potential, self.dim, self.potential.step
        opening: Any = phi.opening
        hidden: list[Any] = list(phi.hidden)
        before = opening(s)
        u = [sig(before)]
        for layer in hidden:  # the last one is never used
            u.append(u[-1] + h * sig(layer(u[-1])))
        z: list[Tensor] = [phi.w[:, None]]
        for layer, inputs in zip(hidden[::-1], u[-2::-1], strict=True):
            slope = torch.tanh(layer(inputs).T)
            z.insert(0, z[0] + h * layer.weight.T @ (slope * z[0]))
        slope = torch.tanh(before.T)
        a = phi.A.T @ phi.A
        gradient = opening.weight.T @ (slope * z[0]) + a @ s.T + phi.b[:, None]

        space, (m, n) = opening.weight[:, :d, None], slope.shape
        bend = (1 - slope**2) * z[0]
        trace = (bend.view(m, 1, n) * space**2).sum((0, 1))
        jacobian = space * slope[:, None, :]
        for layer, inputs, after in zip(hidden, u[:-1], z[1:], strict=True):
            rows = (layer.weight @ jacobian.reshape(m, -1)).view(m, d, n)
            slope = torch.tanh(layer(inputs).T)
            bend = (1 - slope**2) * after
            trace = trace + h * (bend.view(m, 1, n) * rows**2).sum((0, 1))
            jacobian = jacobian + h * slope.view(m, 1, n) * rows
        return gradient.T, trace + a[:d, :d].trace()


def sig(q: Tensor) -> Tensor:
    """Return log(e^q + e^-q), as there."""
    return q.abs() + torch.log(1 + torch.exp(-2 * q.abs()))


def medians(jobs: Mapping[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Return the median processor time of each job in ms, run in turn so that all are hit alike."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for i in range(repeat + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            if i:  # the first round warms up
                times[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(t) for name, t in times.items()}


def compared(jobs: Mapping[str, Callable[[], object]], repeat: int) -> list[str]:
    """Return the times as cells, each with its ratio to the first job's."""
    found = medians(jobs, repeat)
    first, *rest = found.values()
    return [f"{first:.2f}", *(f"{t:.2f} ({first / t:.1f}x)" for t in rest)]


def agree(a: Tensor, b: Tensor) -> None:
    """Stop where the two sides do not compute the same."""
    gap = ((a - b).abs().max() / b.abs().max()).item()
    if gap > 1e-3:
        raise SystemExit(f"the two sides differ by {gap:.1e} relative: nothing to compare")


def trace_rows(sizes: list[tuple[int, int]], rows: int, repeat: int) -> list[list[str]]:
    """Time velocity and trace at `rows` points."""
    table = []
    t = torch.tensor(0.3)
    for d, m in sizes:
        potential, x = ResNetPotential(d, m), torch.randn(rows, d)
        sides: dict[str, Velocity] = {"there": Published(potential), "here": Gradient(potential)}

        def value(side: Velocity, x: Tensor = x) -> Tensor:
            at = side.at(t, x)
            trace = at.jacobian.trace()
            assert trace is not None
            return at.v.sum(-1) + trace

        agree(value(sides["here"]).detach(), value(sides["there"]).detach())
        forward = {k: lambda side=side, f=value: quiet(f, side) for k, side in sides.items()}
        both = {k: lambda side=side, f=value: f(side).sum().backward() for k, side in sides.items()}
        for name, jobs in (("forward", forward), ("forward + backward", both)):
            table.append([f"d={d} m={m}, {name}", *compared(jobs, repeat)])
    return table


def quiet(f: Callable[..., Tensor], *args: object) -> Tensor:
    """Call without gradients."""
    with torch.no_grad():
        return f(*args)


def case_rows(name: str, case: Case, repeat: int) -> list[list[str]]:
    """Time a training step, an evaluation and a generation."""
    potential = ResNetPotential(case.dim, case.width)
    x, z = torch.randn(case.batch, case.dim), torch.randn(case.batch, case.dim)
    there, here = Continuous(Published(potential)), Continuous(Gradient(potential))
    objective = Likelihood(case.likelihood, [Transport(), HJB(case.hjb)])

    def step(flow: Continuous, recompute: bool = False) -> Tensor:
        flow = flow.with_numerics(RK4(case.train_steps, recompute))
        potential.zero_grad()
        total = objective.loss(flow, Batch(x)).total
        total.backward()
        return total.detach()

    def score(flow: Continuous) -> Tensor:
        return quiet(flow.with_numerics(RK4(case.test_steps)).log_prob, x)

    def draw(flow: Continuous) -> Tensor:
        return quiet(flow.with_numerics(RK4(case.test_steps)).decode, z)

    table = []
    for job, f in (("training step", step), ("evaluation", score), ("generation", draw)):
        agree(f(here), f(there))
        jobs: dict[str, Callable[[], object]] = {
            "there": lambda f=f: f(there),
            "here": lambda f=f: f(here),
        }
        if f is step:
            jobs["recompute"] = lambda: step(here, recompute=True)
        label = f"{name} d={case.dim} m={case.width} B={case.batch}, {job}"
        table.append([label, *compared(jobs, repeat)])
    return table


def size(text: str) -> tuple[int, int]:
    """Read `43x64` as d = 43, m = 64."""
    try:
        d, m = text.split("x")
        return int(d), int(m)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected DIMxWIDTH such as 43x64, got {text}") from None


def processor() -> str:
    """Return the processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    points = ["2x32", "8x64", "43x64", "43x256", "256x64", "784x64"]
    parser.add_argument("--points", type=size, nargs="*", default=[size(p) for p in points])
    parser.add_argument("--rows", type=int, default=256, help="points of the first table")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--batch", type=int, help="batch of every case")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--double", action="store_true", help="float64 in place of float32")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64 if args.double else torch.float32)

    print(f"{processor()}, {platform.system()}, one thread; ", end="")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, ", end="")
    print(f"{torch.get_default_dtype()}, median of {args.repeat}; ms (speed-up over published)\n")
    table = trace_rows(args.points, args.rows, args.repeat)
    if table:
        head = [f"velocity and trace, {args.rows} points", "published", "flowzoo"]
        print(tabulate(table, head, tablefmt="github", disable_numparse=True), "\n")
    table = []
    for name in args.cases:
        case = CASES[name]
        if args.batch:
            case = Case(**{**vars(case), "batch": args.batch})
        table += case_rows(name, case, args.repeat)
    if table:
        head = ["flow", "published", "flowzoo", "flowzoo, recompute"]
        print(tabulate(table, head, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
