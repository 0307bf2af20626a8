"""Flows each of which breaks a promise of mathematics, as published code has done.

`fails` names the checks that a wrong flow fails, the one that is meant for it first; `may_fail`
those that may fail, too, or find it too rough.
"""

from __future__ import annotations

import copy

import torch
from right_flows import Density, Right, changed

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible
from flowzoo.flow import Encoded, log_normal
from flowzoo.networks import MLP


class FlippedLadj(Right):
    fails = ("ladj", "ladj-inverse", "mass-1d")
    may_fail = ("mass-2d",)

    def encode(self, x, running=(), context=None, generator=None):
        encoded = super().encode(x, running, context)
        return changed(encoded, ladj=-encoded.ladj)


class ScaledLadj(Right):
    fails = ("ladj", "ladj-inverse", "mass-1d", "mass-2d")

    def encode(self, x, running=(), context=None, generator=None):
        encoded = super().encode(x, running, context)
        return changed(encoded, ladj=0.99 * encoded.ladj)


class FirstOnly(Right):
    """The first dimension's share of ladj stands for all of them: right in one dimension."""

    fails = ("mass-2d", "ladj", "ladj-inverse")

    def encode(self, x, running=(), context=None, generator=None):
        encoded = super().encode(x, running, context)
        y = (x - self.shift(context))[:, 0]
        return changed(encoded, ladj=self.dim * (self.s[0] + y.cosh().log()))


class SingularAtZero(Right):
    """asinh by a formula whose derivative at zero is found to be zero."""

    fails = ("ladj-inverse",)

    def decode(self, z, context=None):
        y = z * (-self.s).exp()
        return y.sign() * (y.abs() + (y.square() + 1).sqrt()).log() + self.shift(context)


class Unnormalised(Right):
    """The constant of the normal density is left out."""

    fails = ("mass-1d", "mass-2d", "samples")

    def log_prob(self, x, context=None, generator=None):
        encoded = self.encode(x, context=context)
        return -0.5 * encoded.z.square().sum(-1) + encoded.ladj


class OneStep(Right):
    """One step of Euler's method there, one back, and the divergence where the step starts."""

    fails = ("ladj", "round-trip", "ladj-inverse", "mass-1d", "mass-2d")

    def encode(self, x, running=(), context=None, generator=None):
        self.requires(running)
        y = x - self.shift(context)
        ladj = (0.3 * self.s.exp() * y.cos()).sum(-1)
        return Encoded(x + 0.3 * self.s.exp() * y.sin(), ladj, x.new_zeros(len(x), 0))

    def decode(self, z, context=None):
        return z - 0.3 * self.s.exp() * (z - self.shift(context)).sin()


class RoughInverse(Right):
    """The inverse is right to three digits."""

    fails = ("round-trip", "ladj-inverse")

    def decode(self, z, context=None):
        return super().decode(z, context) + 1e-3 * z.sin()


class Detached(Right):
    """No gradient passes through ladj."""

    fails = ("gradients",)

    def encode(self, x, running=(), context=None, generator=None):
        encoded = super().encode(x, running, context)
        return changed(encoded, ladj=encoded.ladj.detach())


class DetachedWeight(Right):
    """No gradient reaches m."""

    fails = ("gradients",)

    def shift(self, context):
        return super().shift(context).detach()


class OtherwiseRecorded(Right):
    """A gradient that is recorded counts one of its two paths twice."""

    fails = ("recorded-gradients",)

    def encode(self, x, running=(), context=None, generator=None):
        encoded = super().encode(x, running, context)
        return changed(encoded, ladj=_Twice.apply(encoded.ladj))


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ladj):
        return ladj.clone()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad if torch.is_grad_enabled() else grad


class Boasting(Right):
    """It accepts costs that it cannot integrate."""

    fails = ("running-costs",)

    def requires(self, running):
        pass

    def encode(self, x, running=(), context=None, generator=None):
        if running:
            raise Incompatible("there is no way along which to integrate")
        return super().encode(x, (), context)


class HalfPrice(Continuous):
    """Costs are half of what they are."""

    fails = ("running-costs",)

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__(MLP(dim, (8,), context_dim=context_dim))

    def encode(self, x, running=(), context=None, generator=None):
        encoded = super().encode(x, running, context, generator)
        return Encoded(encoded.z, encoded.ladj, 0.5 * encoded.costs, encoded.nfe)


class LeavesItsNumerics(HalfPrice):
    """Other numerics stay on the flow that was asked."""

    fails = ("numerics",)

    def encode(self, x, running=(), context=None, generator=None):
        return Continuous.encode(self, x, running, context, generator)

    def with_numerics(self, integrator=None, trace=None):
        other = super().with_numerics(integrator, trace)
        self.integrator, self.trace = other.integrator, other.trace
        return other


class CopiesItsWeights(LeavesItsNumerics):
    """Other numerics belong to a copy, whose training leaves the flow as it was."""

    fails = ("numerics",)

    def with_numerics(self, integrator=None, trace=None):
        return Continuous.with_numerics(copy.deepcopy(self), integrator, trace)


class Stubborn(LeavesItsNumerics):
    """It takes other numerics and keeps its own solver."""

    fails = ("numerics", "ladj", "ladj-inverse")

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__(dim, context_dim)
        self.integrator.steps = 1

    def with_numerics(self, integrator=None, trace=None):
        return Continuous.with_numerics(self, None, trace)


class DensityTooLarge(Density):
    fails = ("mass-1d", "mass-2d")

    def log_prob(self, x, context=None, generator=None):
        return super().log_prob(x, context) + 0.04


class WideSamples(Right):
    """Samples are drawn from noise that is too wide: no inverse of encode, but decode is."""

    fails = ("samples",)

    def sample(self, n, context=None, generator=None):
        z = torch.randn(n, self.dim, generator=generator, dtype=self.m.dtype, device=self.m.device)
        return self.decode(1.1 * z, context)


class WideDensity(Density):
    """The same of a density that sends no point to noise."""

    fails = ("samples",)

    def sample(self, n, context=None, generator=None):
        return 1.1 * super().sample(n, context, generator)


class OtherDensity(Right):
    """log_prob is a density, but not that of encode."""

    fails = ("samples",)

    def log_prob(self, x, context=None, generator=None):
        return super().log_prob(x + 0.2, context, generator)


class OtherPair(Right):
    """Samples come with the density of the noise that they were made of."""

    fails = ("samples",)

    def sample_and_log_prob(self, n, context=None, generator=None):
        x = self.sample(n, context, generator)
        return x, log_normal(self.encode(x, (), context).z)
