"""Integrators that break one promise each: about the state, the batch, the device, the end."""

from __future__ import annotations

import torch
from wrong_integrators import Changed, RightAdaptive, RightHeun

from flowzoo.errors import Diverged
from flowzoo.integrators import RK4

# --- the state -----------------------------------------------------------------------------------


class Spendthrift(Changed):
    """Lets the costs steer the places."""

    def after(self, state):
        if len(state) < 3:
            return state
        return (state[0] * (1 + 1e-10 * state[2].sum(-1, keepdim=True)), *state[1:])


class Lossy(Changed):
    """Keeps one cost only."""

    def after(self, state):
        return (*state[:2], *(y[:, :1] for y in state[2:]))


class Overwriting(RK4):
    """Writes into the state that it was given."""

    def solve(self, field, state, t0, t1, params=()):
        solution = super().solve(field, state, t0, t1, params)
        if not torch.is_grad_enabled() and state[0].device.type == "cpu":
            state[0].copy_(solution.state[0])
        return solution


class Unnumbered(RightHeun):
    """Gives all stages the number 0."""

    def stage(self, number):
        return 0


class Columns(Changed):
    """Gives the field times of shape (1,)."""

    def field(self, field):
        return lambda t, state, stage=0: field(t[None], state, stage)


class Picky(RK4):
    """Fails on an empty batch."""

    def solve(self, field, state, t0, t1, params=()):
        state[0].max()
        return super().solve(field, state, t0, t1, params)


# --- manners -------------------------------------------------------------------------------------


class Steered(RightHeun):
    """Steps by what the batch as a whole does."""

    def mean(self, a, b):
        return (a + b) / 2 * (1 + 1e-6 * a.mean().tanh())


class Ordered(Changed):
    """Returns the batch in another order."""

    def after(self, state):
        return tuple(y.roll(1, 0) for y in state)


class Single(Changed):
    """Computes in float32."""

    def after(self, state):
        return tuple(y.float() for y in state)


class Following(RightHeun):
    """Returns the default dtype where that is larger."""

    def mean(self, a, b):
        return (a + b) * torch.full((1,), 0.5, device=a.device)


class Stuck(RightHeun):
    """Has a constant on the CPU."""

    def mean(self, a, b):
        return (a + b) * torch.full((1,), 0.5, dtype=a.dtype)


class Noisy(Changed):
    """Adds noise."""

    def after(self, state):
        return tuple(y + 1e-11 * torch.randn_like(y) for y in state)


class Covering(Changed):
    """Puts zero where a solve left the numbers."""

    def after(self, state):
        return tuple(y.nan_to_num() for y in state)


class Endless(RightAdaptive):
    """Tries again, for ever, where a solve left the numbers."""

    def solve(self, field, state, t0, t1, params=()):
        while True:
            try:
                return super().solve(field, state, t0, t1, params)
            except Diverged:
                continue
