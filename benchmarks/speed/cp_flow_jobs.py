"""What is timed of CP-Flow: log-densities, their gradients and inversions, by either side."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any, TypeAlias

import torch
from machine import Job, Machine
from published_cp_flow import PublishedCPFlow
from torch import Tensor

from flowzoo.flow import log_normal
from flowzoo.krylov import solve
from flowzoo.logdet import CG, SLQ, Surrogate, preconditioned
from flowzoo.traces import Exact, TraceEstimator, draw
from flowzoo_cp_flow.flow import ConvexFlow
from flowzoo_cp_flow.icnn import InputAugmented
from flowzoo_cp_flow.inversion import Inversion
from flowzoo_cp_flow.newton import Newton

ATOL = 1e-3  # of conjugate gradients, as published
NETS = ("trained", "stiff")
TRAINED = 128  # points of a training step behind a network
SHARED = 64  # points whose mean Hessian preconditions
STEPS = 10  # of Lanczos quadrature, as published


@dataclass(frozen=True)
class Case:
    """A network and a batch.

    Arguments:
        dim: Dimension d.
        layers: Hidden layers K.
        width: Their width w.
        rows: Points n.
        training: Steps after which the network is timed.
        stiff: Whether the weights that take x are then multiplied by three, and softplus(w0) is
            made 0.1, by which condition numbers grow from below 10 to some hundreds.
    """

    dim: int
    layers: int
    width: int
    rows: int
    training: int = 200
    stiff: bool = False

    def flow(self, machine: Machine) -> ConvexFlow:
        """Return a flow with the same weights each time."""
        flow = ConvexFlow(InputAugmented(self.dim, self.width, self.layers))
        flow.to(machine.device, machine.dtype)
        flow.load_state_dict(trained(replace(self, rows=TRAINED, stiff=False), machine))
        network: Any = flow.potential
        if self.stiff:
            with torch.no_grad():
                for layer in (network.entry, *network.skips, *network.augments):
                    layer.weight.mul_(3)
                flow.raw_quadratic.fill_(math.log(math.expm1(0.1)))
        return flow

    def points(self, machine: Machine, rows: int | None = None, seed: int = 1) -> Tensor:
        """Return points (n, d) of one law: bent factors, a quarter of d of them, and noise.

        Coordinates have mean 0 and standard deviations near 1.
        """
        factors, size = max(1, self.dim // 4), (rows or self.rows, self.dim)
        law, drawn = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
        loadings = torch.randn(factors, self.dim, generator=law) / math.sqrt(factors)
        u = torch.randn(size[0], factors, generator=drawn)
        noise = torch.randn(size, generator=drawn)
        x = 0.9 * (u + torch.sin(2 * u)) @ loadings / 1.25 + 0.4 * noise
        return x.to(machine.device, machine.dtype)


@cache
def trained(case: Case, machine: Machine) -> dict[str, Tensor]:
    """Return the weights after some steps of Adam on exact log-densities, from a seeded start."""
    torch.manual_seed(0)
    flow = ConvexFlow(InputAugmented(case.dim, case.width, case.layers))
    flow.to(machine.device, machine.dtype)
    flow.potential.settle(case.points(machine, 512))
    adam = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for step in range(case.training):
        loss = -flow.log_prob(case.points(machine, seed=10 + step)).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return flow.state_dict()


CASES = {
    "2": Case(2, 5, 32, 256),
    "8": Case(8, 5, 64, 256),
    "21": Case(21, 10, 64, 256),
    "43": Case(43, 5, 64, 256),
    "43-deep": Case(43, 10, 64, 256),
    "63": Case(63, 10, 64, 256),
    "128": Case(128, 5, 128, 128),
    "256": Case(256, 5, 128, 64),
}


class Bench:
    """A flow and points, on which all sides work.

    Arguments:
        case: The setting.
        machine: Device and precision.
    """

    def __init__(self, case: Case, machine: Machine) -> None:
        self.case, self.flow, self.points = case, case.flow(machine), case.points(machine)
        self.published = PublishedCPFlow(self.flow)

    def generator(self) -> torch.Generator:
        """Return the source of probes, at its beginning."""
        return torch.Generator(self.points.device).manual_seed(3)

    def probe(self) -> Tensor:
        """Draw the published side's probe (n, d): the same as that of an estimator of ours."""
        return draw("rademacher", (1, *self.points.shape), self.points, self.generator())[0]

    def step(self, side: Side) -> list[Tensor]:
        """Return what `side` does, and the gradient of the mean log-density in each parameter."""
        z, ladj = side(self)
        return [z.detach(), ladj.detach(), *self.slopes(log_normal(z) + ladj)]

    @torch.no_grad()
    def density(self, side: Side) -> list[Tensor]:
        """Return noise and log-determinants."""
        return [part.detach() for part in side(self)]

    def slopes(self, of: Tensor) -> list[Tensor]:
        """Return the gradient of a mean over points in each parameter."""
        weights = [p for p in self.flow.parameters() if p.requires_grad]
        self.flow.zero_grad(set_to_none=True)
        of.mean().backward()
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]

    @cached_property
    def targets(self) -> Tensor:
        """What is inverted (n, d): the images of the points."""
        with torch.no_grad():
            return self.flow.at(self.points).gradient


Side: TypeAlias = Callable[[Bench], tuple[Tensor, Tensor]]


def traced(trace: TraceEstimator) -> Side:
    """Return flowzoo's side with a trace."""

    def side(bench: Bench) -> tuple[Tensor, Tensor]:
        encoded = bench.flow.with_numerics(trace=trace).encode(
            bench.points, generator=bench.generator()
        )
        return encoded.z, encoded.ladj

    return side


def published_cg(bench: Bench) -> tuple[Tensor, Tensor]:
    """Return what the published training step needs."""
    return bench.published.surrogate(bench.points, bench.probe(), ATOL)[:2]


def published_slq(bench: Bench, training: bool = False) -> tuple[Tensor, Tensor]:
    """Return the published validation, differentiable in training."""
    v = bench.probe() / math.sqrt(bench.case.dim)
    return bench.published.lanczos(bench.points, v, STEPS, training)


def published_brute(bench: Bench, training: bool = False) -> tuple[Tensor, Tensor]:
    """Return the published exact log-determinant, differentiable in training."""
    return bench.published.brute(bench.points, training)


STEP_SIDES: dict[str, Side] = {
    "published cg": published_cg,
    "published brute": partial(published_brute, training=True),
    "published slq": partial(published_slq, training=True),
    "exact": traced(Exact()),
    "cg": traced(CG(atol=ATOL)),
    f"cg, of {SHARED}": traced(CG(atol=ATOL, precondition=SHARED)),
    "exact value, cg": traced(Surrogate(Exact(), CG(atol=ATOL))),
    "slq": traced(SLQ(steps=STEPS)),
}
DENSITY_SIDES: dict[str, Side] = {
    "published brute": published_brute,
    "published slq": published_slq,
    "exact": traced(Exact()),
    "slq 1": traced(SLQ(1, STEPS)),
    "slq 4": traced(SLQ(4, STEPS)),
    "slq 16": traced(SLQ(16, STEPS)),
}


@dataclass(frozen=True)
class Found:
    """What an inversion found.

    Arguments:
        x: Points (n, d).
        residual: |f(x) - z| (n,).
        iterations: Of each sample (n,), or the one number of all (1,).
    """

    x: Tensor
    residual: Tensor
    iterations: Tensor


def inverted(inversion: Inversion, bench: Bench) -> Found:
    """Return what an inversion of flowzoo finds."""
    found = inversion.solve(bench.flow.at, bench.targets)
    return Found(found.x, found.residual, found.iterations)


def published_inverted(bench: Bench) -> Found:
    """Return what the published inversion finds; the residual, which it does not know, is added."""
    x, evaluations = bench.published.invert(bench.targets)
    with torch.no_grad():
        residual = (bench.flow.at(x).gradient - bench.targets).norm(dim=-1)
    return Found(x, residual, torch.tensor([evaluations]))


INVERSIONS: dict[str, Callable[[Bench], Found]] = {
    "published l-bfgs": published_inverted,
    "newton": partial(inverted, Newton(failed="keep")),
    "newton cholesky": partial(inverted, Newton(solver="cholesky", failed="keep")),
    "newton cg": partial(inverted, Newton(solver="cg", failed="keep")),
}


def iterations(bench: Bench) -> dict[str, str]:
    """Return how many iterations of conjugate gradients the sides of a step take."""
    v = bench.probe()
    *_, published = bench.published.surrogate(bench.points, v, ATOL)
    plain, shared = (conjugate_steps(bench, v[None], ATOL, m) for m in (0, SHARED))
    return {"published cg": str(published), "cg": plain, f"cg, of {SHARED}": shared}


@torch.no_grad()
def conjugate_steps(bench: Bench, probes: Tensor, atol: float, shared: int = 0) -> str:
    """Return the iterations of flowzoo's conjugate gradients, mean and most, in words."""
    a = bench.flow.at(bench.points).hessian
    if shared:
        a, _ = preconditioned(a, len(bench.points), shared)
    steps = solve(a, probes, atol).steps
    return f"{steps.to(torch.float64).mean().item():.1f} / {int(steps.max())}"


def heading(bench: Bench, machine: Machine) -> str:
    """Return the case in words."""
    case = bench.case
    with torch.no_grad():
        spectrum = torch.linalg.eigvalsh(bench.flow.at(bench.points).hessian.dense())
    cond = spectrum[:, -1] / spectrum[:, 0]
    kind = "stiff" if case.stiff else f"{case.training} steps"
    sizes = f"d={case.dim} K={case.layers} w={case.width} batch={case.rows} {machine.dtype}"
    return f"{sizes}, {kind}, cond {cond.median().item():.3g}, {cond.max().item():.3g}"


def step_job(name: str, case: Case, machine: Machine) -> Job:
    """Return a training step of which nothing but its own memory is new.

    One of two points has run before. The network is as drawn.
    """
    drawn, side = replace(case, training=0), STEP_SIDES[name]
    Bench(replace(drawn, rows=2), machine).step(side)
    return partial(Bench(drawn, machine).step, side)
