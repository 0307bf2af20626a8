"""Velocities that break one promise each: about the batch, time, context, storage, the device."""

from __future__ import annotations

import torch
from wrong_fields import Right


class Changed(Right):
    """A right velocity with something done to it."""

    def forward(self, t, x, context=None):
        return self.after(super().forward(self.clock(t), x, context), t, x)

    def clock(self, t):
        return t

    def after(self, v, t, x):
        return v


class Centred(Changed):
    """Has mean zero over the batch."""

    def after(self, v, t, x):
        return v - v.mean(0)


class Ordered(Changed):
    """Treats the first place unlike the others."""

    def after(self, v, t, x):
        return torch.cat((1.1 * v[:1], v[1:]))


class Single(Changed):
    """Rounds to half precision where it is asked for single."""

    def after(self, v, t, x):
        return v.bfloat16().to(v) if v.dtype == torch.float32 else v


class Following(Changed):
    """Returns the default dtype where that is larger."""

    def after(self, v, t, x):
        return v + torch.zeros(1, device=v.device)


class Stuck(Changed):
    """Has a constant on the CPU."""

    def after(self, v, t, x):
        return v + torch.zeros(v.shape, dtype=v.dtype)


class Noisy(Changed):
    """Adds noise."""

    def after(self, v, t, x):
        return v + 1e-9 * torch.randn_like(v)


class Learning(Changed):
    """Changes its weights when it is asked."""

    def after(self, v, t, x):
        if v.device.type == "cpu":
            self.last.bias.data.add_(1e-9)
        return v


class Overwriting(Changed):
    """Writes into its input."""

    def after(self, v, t, x):
        if not x.requires_grad and not torch.is_grad_enabled():
            x += 1.0
        return v


class Brittle(Changed):
    """Fails on an empty batch."""

    def after(self, v, t, x):
        return v + 0 * x.max()


class Jumping(Changed):
    """Jumps in time."""

    def clock(self, t):
        return t + torch.floor(4 * t)


class FirstTime(Changed):
    """Takes the first time for all."""

    def clock(self, t):
        return t if t.dim() == 0 or not len(t) else t[0]


class Deaf(Right):
    """Ignores its context."""

    def forward(self, t, x, context=None):
        return super().forward(t, x, None if context is None else 0 * context)


class Shared(Right):
    """Averages the context over the batch."""

    def forward(self, t, x, context=None):
        return super().forward(t, x, None if context is None else context + context.mean(0))


class Lenient(Right):
    """Makes up the context where none is given."""

    def forward(self, t, x, context=None):
        if context is None and self.context_dim:
            context = x.new_zeros(len(x), self.context_dim)
        return super().forward(t, x, context)


class Unsaved(Changed):
    """Scales by a number that is not saved."""

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__(dim, context_dim)
        self.scale = float(1 + torch.rand(()))

    def after(self, v, t, x):
        return self.scale * v


class Recording(Changed):
    """Computes something else where gradients are recorded."""

    def after(self, v, t, x):
        return v if torch.is_grad_enabled() else 1.001 * v


class Halved(Changed):
    """Has half the gradient in its last layer's weights."""

    def after(self, v, t, x):
        bias = self.last.bias
        return v - 0.5 * (bias - bias.detach())
