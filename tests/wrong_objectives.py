"""Objectives that break one promise each, and right ones from which they differ by that alone."""

from __future__ import annotations

import torch
from torch import nn

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible, UserError
from flowzoo.flow import log_normal
from flowzoo.objective import Batch, Loss, Objective, Stage


class Right(Objective):
    """The negative log-likelihood, in one stage."""

    def stages(self, flow):
        yield Stage("all", list(flow.parameters()), lambda batch, g: self.loss(flow, batch, g))

    def loss(self, flow, batch, generator):
        total = self.each(flow, batch, generator).mean()
        return Loss(total, {"nll": total.detach()})

    def each(self, flow, batch, generator):
        encoded = flow.encode(batch.x, (), batch.context, generator)
        return -(log_normal(encoded.z) + encoded.ladj)


class Noisy(Right):
    """The likelihood of noisy points, rightly."""

    def each(self, flow, batch, generator):
        noise = torch.randn(batch.x.shape, generator=generator, dtype=torch.float64)
        return super().each(flow, Batch(batch.x + 0.1 * noise.to(batch.x), batch.context), None)


class Twice(Right):
    """The same in two stages, the second of which begins where the first one ended."""

    def stages(self, flow):
        for name in ("early", "late"):
            yield Stage(
                name, list(flow.parameters()), lambda b, g: self.loss(flow, b, g), share=0.5
            )


# --- stages --------------------------------------------------------------------------------------


class Eager(Right):
    """A list of stages."""

    def stages(self, flow):
        return list(super().stages(flow))


class Hasty(Right):
    """Changes the weights before the first stage begins."""

    def stages(self, flow):
        with torch.no_grad():
            next(iter(flow.parameters())).mul_(1.01)
        yield from super().stages(flow)


class Drawing(Right):
    """Draws noise while the stages are listed."""

    def stages(self, flow):
        torch.rand(1)
        yield from super().stages(flow)


class Foreign(Right):
    """A parameter of its own."""

    def stages(self, flow):
        own = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        yield Stage("all", [*flow.parameters(), own], lambda b, g: self.loss(flow, b, g))


class Greedy(Right):
    """A stage that leaves nothing of the budget, and takes nothing."""

    def stages(self, flow):
        yield Stage("all", list(flow.parameters()), lambda b, g: self.loss(flow, b, g), share=0.0)


class Namesakes(Right):
    """Two stages of one name, which a checkpoint cannot tell apart."""

    def stages(self, flow):
        yield from super().stages(flow)
        yield from super().stages(flow)


# --- losses --------------------------------------------------------------------------------------


class Attached(Right):
    """Terms that keep the graph alive."""

    def loss(self, flow, batch, generator):
        total = self.each(flow, batch, generator).mean()
        return Loss(total, {"nll": total})


class Careless(Right):
    """Noise from the global generator."""

    def each(self, flow, batch, generator):
        noise = torch.randn_like(batch.x)
        return super().each(flow, Batch(batch.x + 0.1 * noise, batch.context), None)


class Detached(Right):
    """A part of the loss without its gradient."""

    def each(self, flow, batch, generator):
        z = flow.encode(batch.x, (), batch.context, generator).z.detach()
        return super().each(flow, batch, generator) + 0.1 * z.square().sum(-1)


class VolumeOnly(Right):
    """The log-determinant alone, on which a shift has no influence."""

    def each(self, flow, batch, generator):
        return -flow.encode(batch.x, (), batch.context, generator).ladj


class Uphill(Right):
    """The likelihood with the wrong sign."""

    def each(self, flow, batch, generator):
        return -super().each(flow, batch, generator)


class Summed(Right):
    """A sum over the batch."""

    def loss(self, flow, batch, generator):
        total = self.each(flow, batch, generator).sum()
        return Loss(total, {"nll": total.detach()})


class NoisySum(Noisy, Summed):
    """A sum over a batch of noisy points."""


class Spread(Right):
    """A batch's standard deviation, which one point does not have."""

    def loss(self, flow, batch, generator):
        each = self.each(flow, batch, generator)
        total = each.mean() + 0.0 * (each.std() if len(each) else 0.0)
        return Loss(total, {"nll": total.detach()})


class Brittle(Right):
    """An index that no points do not have."""

    def loss(self, flow, batch, generator):
        batch.x[0].sum()
        return super().loss(flow, batch, generator)


class Refusing(Brittle):
    """The same, with a sentence."""

    def loss(self, flow, batch, generator):
        if not len(batch.x):
            raise UserError("the batch is empty; give at least one point")
        return super().loss(flow, batch, generator)


class Double(Right):
    """A float64 constant."""

    def loss(self, flow, batch, generator):
        total = self.each(flow, batch, generator).mean() * torch.ones(1, dtype=torch.float64)[0]
        total = total + torch.zeros(1, dtype=torch.float64).sum().double() * total.double()
        return Loss(total.double(), {"nll": total.detach()})


class Following(Right):
    """A dtype that follows the default."""

    def loss(self, flow, batch, generator):
        total = self.each(flow, batch, generator).mean()
        if batch.x.dtype == torch.float32:
            total = total.to(torch.get_default_dtype())
        return Loss(total, {"nll": total.detach()})


# --- flows and contexts --------------------------------------------------------------------------


class Blunt(Right):
    """An AttributeError for flows that have no velocity."""

    def stages(self, flow):
        weights = list(flow.velocity.parameters())
        yield Stage("all", weights, lambda b, g: self.loss(flow, b, g))


class Curt(Right):
    """A refusal without a reason."""

    def stages(self, flow):
        if not isinstance(flow, Continuous):
            raise Incompatible("no")
        yield from super().stages(flow)


class Promising(Right):
    """Accepts every flow and fails on those without a velocity."""

    def each(self, flow, batch, generator):
        return super().each(flow, batch, generator) + 0 * flow.velocity.dim


class Deaf(Right):
    """A context that is always zero."""

    def each(self, flow, batch, generator):
        context = None if batch.context is None else 0 * batch.context
        return super().each(flow, Batch(batch.x, context), generator)


class Mixed(Right):
    """Every point with another point's context."""

    def each(self, flow, batch, generator):
        context = None if batch.context is None else batch.context.roll(1, 0)
        return super().each(flow, Batch(batch.x, context), generator)


class Late(Right):
    """Trains flows that end at time 2 alone, rightly refusing all others."""

    def stages(self, flow):
        if getattr(flow, "end_time", 1) != 2:
            raise Incompatible("late trains flows that end at time 2: set end_time: 2")
        yield from super().stages(flow)


class Picky(Right):
    """Trains nothing that is at hand."""

    def stages(self, flow):
        raise Incompatible(f"{type(flow).__name__} is not a flow of the kind that I train")
        yield
