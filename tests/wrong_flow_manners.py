"""Flows each of which breaks a promise of randomness, batches, precision, devices or storage.

`fails` names the checks that a wrong flow fails, the one that is meant for it first; `may_fail`
those that may fail, too, by chance.
"""

from __future__ import annotations

import itertools

import torch
from right_flows import Right, changed

from flowzoo.continuous import Continuous
from flowzoo.networks import MLP
from flowzoo.traces import Hutchinson

ANY = (
    "batch-independence", "context", "default-dtype", "gradients", "inference-mode", "ladj",
    "ladj-inverse", "mass-1d", "mass-2d", "own-noise", "permutation", "precision",
    "recorded-gradients", "round-trip", "samples", "save-load", "seeds", "train-eval",
)  # fmt: skip


class BatchStatistics(Right):
    """The scale of the batch is used, and the inverse does not know it."""

    fails = ("batch-independence", "round-trip", "ladj", "ladj-inverse", "context")
    may_fail = ("mass-1d", "mass-2d", "samples")

    def encode(self, x, running=(), context=None, generator=None):
        scale = 1 + 0.1 * x.square().mean(0)
        encoded = super().encode(x / scale, running, context)
        return changed(encoded, ladj=encoded.ladj - scale.log().sum())


class Redrawing(Hutchinson):
    """Probes are drawn anew at each evaluation, which nobody is told."""

    def probes(self, x, generator=None):
        self.generator = generator
        return super().probes(x, generator)

    def __call__(self, a, probes, fn=None):
        return super().__call__(a, super().probes(probes[0], self.generator), fn)


class FreshNoise(Continuous):
    fails = ("own-noise",)

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        velocity = MLP(dim, (16,), context_dim=context_dim)
        super().__init__(velocity, trace=Redrawing())
        with torch.no_grad():
            for layer in (velocity.net[0], velocity.net[2]):
                layer.weight.mul_(3)


class OneProbe(Right):
    """ladj is estimated by one probe from the global generator."""

    fails = ("two-calls", "seeds", "ladj", "ladj-inverse")
    may_fail = ANY

    def encode(self, x, running=(), context=None, generator=None):
        encoded = super().encode(x, running, context)
        return changed(encoded, ladj=encoded.ladj + 0.1 * torch.randn_like(encoded.ladj))


class OtherGenerator(Right):
    """Samples come from the global generator, whatever generator is given."""

    fails = ("seeds",)

    def sample(self, n, context=None, generator=None):
        return super().sample(n, context)


class OneSample(Right):
    """Samples are the same for all generators."""

    fails = ("seeds",)

    def sample(self, n, context=None, generator=None):
        return super().sample(n, context, torch.Generator().manual_seed(0))


class CPUConstant(Right):
    fails = ("device",)

    def encode(self, x, running=(), context=None, generator=None):
        return super().encode(x + torch.zeros(self.dim, dtype=x.dtype), running, context)


class CPUMatrix(Right):
    """As above in a matrix product, which the meta device lets pass."""

    fails = ("device",)

    def encode(self, x, running=(), context=None, generator=None):
        return super().encode(x @ torch.eye(self.dim, dtype=x.dtype), running, context)


class Promoting(Right):
    """A constant in float64 promotes what is in float32."""

    fails = ("shapes", "precision", "default-dtype")

    def encode(self, x, running=(), context=None, generator=None):
        one = torch.ones(self.dim, dtype=torch.float64, device=x.device)
        return super().encode(x * one, running, context)


class DefaultDtype(Right):
    """A constant has torch's default dtype, and that precision."""

    fails = ("default-dtype",)

    def encode(self, x, running=(), context=None, generator=None):
        third = torch.full((self.dim,), 1 / 3, device=x.device)
        encoded = super().encode(3 * third * x, running, context)
        return changed(encoded, ladj=encoded.ladj + (3 * third).log().sum())


class Cancelling(Right):
    """ladj comes from finite differences, which leaves no digits in float32."""

    fails = ("precision",)

    def encode(self, x, running=(), context=None, generator=None):
        encoded = super().encode(x, running, context)
        up, down = (super(Cancelling, self).encode(x + h, (), context).z for h in (1e-5, -1e-5))
        return changed(encoded, ladj=((up - down) / 2e-5).log().sum(-1))


class Drifting(Right):
    """A moving average follows the batches in evaluation mode, too."""

    fails = ("train-eval", "two-calls", "seeds", "round-trip")
    may_fail = ANY

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__(dim, context_dim)
        self.register_buffer("mean", torch.zeros(dim))

    def encode(self, x, running=(), context=None, generator=None):
        if len(x):
            with torch.no_grad():
                self.mean.lerp_(x.mean(0) + 1, 0.1)
        return super().encode(x - self.mean, running, context)


class Counting(Right):
    """What no state dict shows: the second call is off."""

    fails = ("train-eval", "two-calls")
    may_fail = ANY

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__(dim, context_dim)
        self.calls = itertools.count()

    def log_prob(self, x, context=None, generator=None):
        return super().log_prob(x, context) + 1e-6 * next(self.calls)


class LeakyContext(Right):
    """Every row sees the mean of all contexts."""

    fails = ("context",)

    def shift(self, context):
        return super().shift(None if context is None else context.mean(0, keepdim=True) + context)


class DeafToContext(Right):
    fails = ("context",)

    def shift(self, context):
        return self.m


class RowNumbers(Right):
    """What is done to a row depends on its number."""

    fails = (
        "permutation", "batch-independence", "round-trip", "ladj-inverse", "context",
    )  # fmt: skip
    may_fail = ("mass-1d", "mass-2d", "samples")

    def encode(self, x, running=(), context=None, generator=None):
        number = torch.arange(len(x), dtype=x.dtype, device=x.device)
        return super().encode(x + 1e-3 * number[:, None], running, context)


class Unsaved(Right):
    """A constant that is drawn when it is built is not part of the state dict."""

    fails = ("save-load", "device", "shapes", "precision", "default-dtype")

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__(dim, context_dim)
        self.offset = torch.randn(dim)

    def shift(self, context):
        return super().shift(context) + self.offset.double()


class Squeezing(Right):
    """Batches of one lose an axis."""

    fails = ("sizes", "batch-independence", "context")

    def encode(self, x, running=(), context=None, generator=None):
        encoded = super().encode(x, running, context)
        return changed(encoded, ladj=encoded.ladj.squeeze())


class Column(Right):
    """ladj is a column."""

    fails = ("shapes", "sizes", "ladj", "ladj-inverse", "mass-1d", "mass-2d")

    def encode(self, x, running=(), context=None, generator=None):
        encoded = super().encode(x, running, context)
        return changed(encoded, ladj=encoded.ladj[:, None])


class InPlace(Right):
    """The input is scaled in place, after use."""

    fails = ("shapes",)
    may_fail = ANY

    def encode(self, x, running=(), context=None, generator=None):
        encoded = super().encode(x, running, context)
        x.detach().mul_(1.01)
        return encoded


class OtherInInference(Right):
    """Without gradients it takes another way."""

    fails = ("inference-mode", "mass-1d", "mass-2d", "ladj", "ladj-inverse")

    def encode(self, x, running=(), context=None, generator=None):
        encoded = super().encode(x, running, context)
        return changed(encoded, ladj=encoded.ladj + 0.01 * (not torch.is_grad_enabled()))
