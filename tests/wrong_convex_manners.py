"""Convex potentials whose manners are wrong: batches, precision, devices, contexts, settling."""

from __future__ import annotations

import copy
import functools

import torch
from wrong_convex import Right, RightClosed


class Column(Right):
    """F as (n, 1)."""

    def forward(self, x, context=None):
        return super().forward(x, context)[:, None]


class Centred(Right):
    """Mixes samples."""

    def forward(self, x, context=None):
        return super().forward(x, context) + 0.1 * (x - x.mean(0)).square().sum(-1)


class Counting(Right):
    """Changes its state in a call, in training mode."""

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__(dim, context_dim)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, context=None):
        if self.training:
            self.calls += 1
        return super().forward(x, context)


class Dropping(Right):
    """Another function in training mode."""

    def forward(self, x, context=None):
        return super().forward(x, context) * (0.9 if self.training else 1.0)


class Recording(RightClosed):
    """Records a graph under no_grad."""

    def at(self, x, context=None):
        with torch.enable_grad():
            return super().at(x, context)


class Brittle(Right):
    """Needs a point."""

    def forward(self, x, context=None):
        return super().forward(x, context) + 0.0 * x.max().detach()


class Single(Right):
    """Adds up where single precision loses digits."""

    def forward(self, x, context=None):
        return super().forward(x, context) + (1e5 - 1e5 * (1 + 1e-6 * x.square().sum(-1))).neg()


class Following(Right):
    """Follows the default dtype."""

    def forward(self, x, context=None):
        return super().forward(x, context).to(torch.get_default_dtype())


class Stuck(Right):
    """A constant that stays on the CPU."""

    def forward(self, x, context=None):
        return super().forward(x, context) + (torch.ones(x.shape, dtype=x.dtype) * x).sum(-1)


class Unsaved(Right):
    """A random part that is not saved."""

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__(dim, context_dim)
        self.register_buffer("tilt", torch.randn(dim), persistent=False)

    def forward(self, x, context=None):
        return super().forward(x, context) + x @ self.tilt


# --- context -------------------------------------------------------------------------------------


class Deaf(Right):
    """Ignores its context."""

    def arguments(self, x, context=None):
        return super().arguments(x, None if context is None else 0 * context)


class Shared(Right):
    """Takes the mean of all contexts."""

    def arguments(self, x, context=None):
        mean = None if context is None else context.mean(0).expand_as(context)
        return super().arguments(x, mean)


class Lenient(Right):
    """Takes a missing context for zero."""

    def arguments(self, x, context=None):
        if context is None and self.context_dim:
            context = x.new_zeros(len(x), self.context_dim)
        return super().arguments(x, context)


class Ignoring(Right):
    """Takes a context that it has no use for."""

    def arguments(self, x, context=None):
        return super().arguments(x, context if self.context_dim else None)


# --- settling ------------------------------------------------------------------------------------


class RightWaiting(Right):
    """Arguments are centred by the first batch."""

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__(dim, context_dim)
        self.register_buffer("centre", torch.zeros(8))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    @property
    def waits(self):
        return not bool(self.ready)

    @torch.no_grad()
    def settle(self, x, context=None):
        self.centre.copy_(self.seen(super().arguments(x, context)))
        self.ready.fill_(True)

    def seen(self, a):
        return a.mean(0)

    def arguments(self, x, context=None):
        return super().arguments(x, context) - self.centre


class Restless(RightWaiting):
    """Waits for ever."""

    @torch.no_grad()
    def settle(self, x, context=None):
        super().settle(x, context)
        self.ready.fill_(False)


class Idle(RightWaiting):
    """Takes nothing from the batch."""

    def seen(self, a):
        return torch.zeros_like(a[0])


class Ordered(RightWaiting):
    """Centres by the first row."""

    def seen(self, a):
        return a[0]


class Explosive(RightWaiting):
    """Divides by the spread of a batch."""

    def seen(self, a):
        return a.mean(0) / a.std(0)


class Attribute(RightWaiting):
    """Whether it waits is no part of its state."""

    done = False

    @property
    def waits(self):
        return not self.done

    def settle(self, x, context=None):
        super().settle(x, context)
        self.done = True


class Remembering(RightWaiting):
    """Once settled, it never looks at its state again."""

    @functools.cached_property
    def waits(self):
        return not bool(self.ready)

    def settle(self, x, context=None):
        super().settle(x, context)
        self.waits = False

    def load_state_dict(self, state_dict, *args, **options):
        settled = bool(state_dict["ready"])
        if settled:
            self.waits = False
        return super().load_state_dict(state_dict, *args, **options)


class Wasted(RightWaiting):
    """A copy waits again."""

    def __deepcopy__(self, memo):
        other = type(self)(self.dim, self.context_dim).double()
        other.load_state_dict(copy.deepcopy(self.state_dict()))
        other.ready.fill_(False)
        return other
