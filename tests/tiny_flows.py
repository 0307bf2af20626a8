"""Flows and objectives that are fitted in milliseconds, for the tests of the training loop."""

from __future__ import annotations

import torch
from torch import nn

from flowzoo.continuous import Continuous
from flowzoo.field import Velocity
from flowzoo.flow import Chain, Encoded, Flow, log_normal
from flowzoo.integrators import Evaluations
from flowzoo.objective import Batch, Loss, Objective, Stage
from flowzoo.settings import Budget, Optimizer, Schedule, Training
from flowzoo.training import fit


class Shift(Flow):
    """z = (x - mu) exp(-s): the normal distributions with a diagonal covariance."""

    def __init__(self, dim=2):
        super().__init__()
        self.dim = dim
        self.mu, self.s = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    def encode(self, x, running=(), context=None, generator=None):
        z = (x - self.mu) * torch.exp(-self.s)
        return Encoded(z, -self.s.sum().expand(x.shape[0]), x.new_zeros(x.shape[0], 0))

    def decode(self, z, context=None):
        return z * torch.exp(self.s) + self.mu


class Swirl(Velocity):
    """A velocity with one hidden layer."""

    def __init__(self, dim=2, width=4):
        super().__init__()
        self.dim = dim
        self.a, self.b = nn.Linear(dim + 1, width), nn.Linear(width, dim)

    def forward(self, t, x, context=None):
        return self.b(torch.tanh(self.a(torch.cat([x, t.expand(x.shape[0])[:, None]], -1))))


class Loud(Objective):
    """NLL of noisy points, with noise from the given generator and from torch's global one.

    `seen` are the batches; `before(step, flow)` may change the loss of a step, counted from 1.
    """

    def __init__(self, noise=0.1, before=None):
        self.noise, self.before, self.seen, self.modes = noise, before, [], []

    def stages(self, flow):
        yield Stage("loud", list(flow.parameters()), lambda batch, g: self.loss(flow, batch, g))

    def loss(self, flow, batch, generator):
        self.seen.append(batch)
        self.modes.append(flow.training)
        x = batch.x
        x = x + self.noise * torch.randn(x.shape, dtype=x.dtype, generator=generator)
        x = x + self.noise * torch.rand(())
        encoded = flow.encode(x, context=batch.context, generator=generator)
        nll = -(log_normal(encoded.z) + encoded.ladj).mean()
        if self.before is not None:
            nll = self.before(len(self.seen), nll)
        nfe = encoded.nfe or (Evaluations(forward=1),)
        return Loss(nll, {"nll": nll.detach(), "size": x.detach().abs().mean()}, nfe)


class BlockByBlock(Objective):
    """Trains the blocks of a chain one after another, each from the one before, on pushed points.

    `points` and `begin` draw from torch's global generator, as a third party's may.
    """

    def __init__(self, shares=None):
        self.shares, self.asked, self.pushed, self.begun = shares, [], [], []

    def stages(self, flow):
        for k in range(len(flow.blocks)):
            share = self.shares[k] if self.shares else 1.0
            yield self.stage(flow, k, share)

    def stage(self, flow, k, share):
        block, loud = flow.blocks[k], Loud()

        def pushed(data):
            self.asked.append((k, flow.training, torch.is_grad_enabled()))
            x = data.x
            for before in flow.blocks[:k]:
                x = before.encode(x).z
            self.pushed.append(x + 0.01 * torch.randn(x.shape, dtype=x.dtype))
            return Batch(self.pushed[-1])

        def begin(data):
            self.begun.append((k, data.x.shape[0], flow.training, torch.is_grad_enabled()))
            if k:
                block.load_state_dict(flow.blocks[k - 1].state_dict())
            for p in block.parameters():
                p.add_(0.01 * torch.randn(p.shape, dtype=p.dtype))

        return Stage(
            f"block {k}",
            list(block.parameters()),
            lambda batch, g: loud.loss(block, batch, g),
            pushed,
            begin,
            share=share,
        )


class Reflow(Objective):
    """Every stage trains the same weights, on points that those weights made at its beginning."""

    def stages(self, flow):
        for k in range(2):
            yield Stage(
                f"round {k}",
                list(flow.parameters()),
                lambda batch, g: Loud().loss(flow, batch, g),
                lambda data: Batch(flow.encode(data.x).z + 0.1 * torch.randn_like(data.x)),
            )


def swirl(integrator=None, trace=None):
    """Return a continuous flow with fixed first weights."""
    torch.manual_seed(1)
    return Continuous(Swirl(), integrator, trace)


def chain():
    """Return a chain of three affine flows."""
    torch.manual_seed(2)
    return Chain([Shift(), Shift(), Shift()])


def points(n=100, mean=5.0, dim=2, seed=0):
    """Return n points of N(mean, I)."""
    generator = torch.Generator().manual_seed(seed)
    return Batch(mean + torch.randn(n, dim, generator=generator))


class Killed(Exception):
    """What an observer raises in place of a kill."""


def killed_at(step):
    """Return an observer that ends the fit at a step."""

    def observe(progress):
        if progress.step >= step:
            raise Killed

    return observe


def same_weights(a, b):
    """Return whether two flows have the same bits."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def without_seconds(curve):
    """Return the rows of a curve without their times."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in curve]


QUICK = Training(batch_size=32, optimizer=Optimizer(lr=0.05), validate_every=0)


def fitted(flow=None, objective=None, budget=Budget(steps=20), training=QUICK, **kwargs):  # noqa: B008
    return fit(
        flow or Shift(),
        objective or Loud(),
        kwargs.pop("train", points()),
        kwargs.pop("validation", None),
        budget=budget,
        training=training,
        **kwargs,
    )


BUSY = Training(
    batch_size=32,
    optimizer=Optimizer(lr=0.3),
    schedule=Schedule("plateau", warmup=3, patience=1, factor=0.7),
    clip=1.0,
    clamp=3.0,
    ema=0.9,
    validate_every=4,
    restart_from_best=10,
)


def running(make, objective, training=BUSY, steps=30, **kwargs):
    """Fit a new flow with a new objective, validated, in 30 steps."""
    return fit(
        make(),
        objective(),
        points(mean=1.0),
        points(40, mean=1.0, seed=1),
        budget=Budget(steps=steps),
        training=training,
        **kwargs,
    )
