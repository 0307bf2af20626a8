"""What is timed of JKO-iFlow: a training step of a block, and pushing, by either side."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TypeAlias

import torch
from machine import Job, Machine
from published_jko import PublishedBlock
from torch import Tensor

from flowzoo.continuous import Continuous
from flowzoo.data.toys import Pinwheel
from flowzoo.field import Velocity
from flowzoo.integrators import RK438, Evaluations, Integrator
from flowzoo.objective import Batch
from flowzoo.odeint import Adjoint
from flowzoo.traces import Exact, Hutchinson, TraceEstimator
from flowzoo.training.subnormals import flushed_subnormals
from flowzoo_ffjord.layers import LayerName
from flowzoo_ffjord.velocity import ODENet
from flowzoo_jko_iflow.difference import FiniteDifference
from flowzoo_jko_iflow.growing import Growing
from flowzoo_jko_iflow.objective import JKO
from flowzoo_jko_iflow.push import Pushed, push

H = 1.0  # step size of all blocks
TRAINED = 500  # points of a training step behind a network


@dataclass(frozen=True)
class Case:
    """A block and a batch.

    Arguments:
        dim: Dimension d.
        hidden: Widths of the hidden layers.
        layer: Whether they see time.
        rows: Points n.
        steps: Solver steps S.
        training: Steps of Adam after which the block is timed.
    """

    dim: int
    hidden: tuple[int, ...]
    layer: LayerName
    rows: int
    steps: int = 3
    training: int = 200

    def net(self, machine: Machine) -> ODENet:
        """Return a velocity with the same weights each time."""
        net = self.fresh().to(machine.device, machine.dtype)
        net.load_state_dict(trained(replace(self, rows=TRAINED), machine))
        return net

    def fresh(self) -> ODENet:
        """Return it with its first weights."""
        torch.manual_seed(0)
        return ODENet(self.dim, self.hidden, layer=self.layer, activation="softplus20")

    def points(self, machine: Machine, rows: int | None = None, seed: int = 1) -> Tensor:
        """Return points (n, d) of one law: a pinwheel in each two coordinates, mixed."""
        law, drawn = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
        pairs = [Pinwheel().sample(rows or self.rows, drawn) for _ in range((self.dim + 1) // 2)]
        square = torch.randn(self.dim, self.dim, generator=law, dtype=torch.float64)
        x = torch.cat(pairs, 1)[:, : self.dim].double() @ torch.linalg.qr(square)[0]
        return x.to(machine.device, machine.dtype)

    def __str__(self) -> str:
        """Return network, batch and steps as a line."""
        net = "-".join(map(str, (self.dim, *self.hidden, self.dim)))
        time = "without time" if self.layer == "ignore" else "with time"
        return f"net {net} {time}, batch {self.rows}, {self.steps} steps of rk4-38"


CASES = {
    "rose-500": Case(2, (128, 128, 128), "ignore", 500),
    "rose": Case(2, (128, 128, 128), "ignore", 2000),
    "power": Case(6, (128, 128), "concat", 10_000),
    "gas": Case(8, (128, 128), "concat", 5000),
    "miniboone": Case(43, (128, 128), "concat", 2000),
    "bsds300": Case(63, (256, 256), "concat", 1000),
}


@cache
def trained(case: Case, machine: Machine) -> dict[str, Tensor]:
    """Return the weights after some steps of Adam, from a seeded start."""
    net = case.fresh().to(machine.device, machine.dtype)
    chain = Growing([Continuous(net, RK438(case.steps))])
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    for step in range(case.training):
        loss = JKO().loss(chain, 0, Batch(case.points(machine, seed=10 + step))).total
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
    return net.state_dict()


class Autograd(Velocity):
    """A network with the Jacobian that any velocity has: by automatic differentiation."""

    def __init__(self, net: ODENet) -> None:
        super().__init__()
        self.net, self.dim = net, net.dim

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return v(t, x) as (n, d)."""
        return self.net(t, x)


# The loss () of a block at points (n, d), and the counts that its backward pass adds to.
Side: TypeAlias = Callable[["Bench"], tuple[Tensor, Evaluations]]


class Bench:
    """A block and points, on which all sides work.

    Arguments:
        case: The setting.
        machine: Device and precision.
        seed: Seed of the noise.
    """

    def __init__(self, case: Case, machine: Machine, seed: int = 0) -> None:
        self.case, self.seed = case, seed
        self.net, self.points = case.net(machine), case.points(machine)

    def generator(self) -> torch.Generator:
        """Return the source of noise, at its beginning."""
        return torch.Generator(self.points.device).manual_seed(self.seed)

    def step(self, side: Side) -> tuple[Tensor, Tensor, Evaluations]:
        """Return the loss, its gradient in all weights, flattened, and the evaluations."""
        self.net.zero_grad(set_to_none=True)
        loss, nfe = side(self)
        loss.backward()
        slopes = [p.grad.flatten() for p in self.net.parameters() if p.grad is not None]
        return loss.detach(), torch.cat(slopes), nfe


def published(adjoint: bool, same_noise: bool = False) -> Side:
    """Return the published side; with `same_noise` all its solves have flowzoo's."""

    def side(bench: Bench) -> tuple[Tensor, Evaluations]:
        x, noise = bench.points, bench.generator()
        kept = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=noise)

        def draw(at: Tensor) -> Tensor:
            if same_noise:
                return kept
            return torch.randn(at.shape, dtype=at.dtype, device=at.device, generator=noise)

        block = PublishedBlock(bench.net, draw)
        return block.loss(x, H, bench.case.steps, adjoint), block.nfe

    return side


def ours(
    trace: TraceEstimator,
    solver: Callable[[int], Integrator] = RK438,
    velocity: Callable[[ODENet], Velocity] | None = None,
) -> Side:
    """Return flowzoo's side with a trace, a solver of so many steps, and a way to the Jacobian."""

    def side(bench: Bench) -> tuple[Tensor, Evaluations]:
        of = bench.net if velocity is None else velocity(bench.net)
        chain = Growing([Continuous(of, solver(bench.case.steps), trace)])
        loss = JKO().loss(chain.to(bench.points), 0, Batch(bench.points), bench.generator())
        return loss.total, loss.nfe[0]

    return side


def adjoint(steps: int) -> Integrator:
    """Return the adjoint method on the same grid."""
    return Adjoint("rk4", steps=steps)


STEP_SIDES: dict[str, Side] = {
    "published": published(adjoint=True),
    "published flushed": published(adjoint=True),
    "published backprop": published(adjoint=False),
    "difference": ours(FiniteDifference()),
    "difference redrawn": ours(FiniteDifference(redraw="stage")),
    "difference adjoint": ours(FiniteDifference(), adjoint),
    "hutchinson": ours(Hutchinson()),
    "hutchinson autograd": ours(Hutchinson(), velocity=Autograd),
    "exact": ours(Exact()),
    "exact adjoint": ours(Exact(), adjoint),
    "exact recompute": ours(Exact(), partial(RK438, recompute=True)),
}


AS_PUBLISHED = ("published", "published backprop")  # where subnormal numbers are not flushed


def stepped(bench: Bench, name: str) -> tuple[Tensor, Tensor, Evaluations]:
    """Return a step of a side, subnormal numbers flushed as `fit` does or left as published."""
    with nullcontext() if name in AS_PUBLISHED else flushed_subnormals():
        return bench.step(STEP_SIDES[name])


def step_job(name: str, case: Case, machine: Machine) -> Job:
    """Return a training step of which nothing but its own memory is new.

    One of two points has run before. The block is as drawn.
    """
    drawn = replace(case, training=0)
    stepped(Bench(replace(drawn, rows=2), machine), name)
    return partial(stepped, Bench(drawn, machine), name)


# --- pushing -------------------------------------------------------------------------------------


def push_jobs(bench: Bench, chunk: int) -> dict[str, Job]:
    """Return pushes of the points by either side."""
    chain = Growing([Continuous(bench.net, RK438(bench.case.steps))]).to(bench.points)
    points = Pushed.of(Batch(bench.points))
    chain.eval()

    def pushed() -> Tensor:
        points.x.copy_(bench.points)
        push(chain.flows()[0], points, chunk, seed=0)
        return points.x

    return {"published": lambda: PublishedBlock(bench.net).push(bench.points), "flowzoo": pushed}


def push_job(side: str, case: Case, chunk: int, machine: Machine) -> Job:
    """Return a push of which nothing but its own memory is new: one of few points has run."""
    fresh = replace(case, training=0)
    push_jobs(Bench(replace(fresh, rows=64), machine), 64)[side]()
    return push_jobs(Bench(fresh, machine), chunk)[side]
