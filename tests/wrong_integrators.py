"""Integrators that break one promise each, and right ones from which they differ by that alone."""

from __future__ import annotations

import copy
import dataclasses

import torch

from flowzoo.integrators import (
    RK4,
    Evaluations,
    Integrator,
    Solution,
    Tableau,
    _Grid,
    _Recomputed,
)
from flowzoo.odeint import Dopri5

A, B = RK4.tableau.a, RK4.tableau.b


class Right(RK4):
    """The classic Runge-Kutta method."""


class RightHeun(Integrator):
    """Heun's method on a fixed grid, written by hand.

    Arguments:
        steps: Number of steps.
    """

    order = 2

    def __init__(self, steps: int = 8) -> None:
        self.steps, self.evaluations = steps, 2 * steps

    def solve(self, field, state, t0, t1, params=()):
        h = (t1 - t0) / self.steps
        for i in range(self.steps):
            state = self.step(field, state, t0, h, i)
        return Solution(state, Evaluations(2 * self.steps), self.steps)

    def step(self, field, state, t0, h, i):
        like = state[0]
        t, after = (
            torch.as_tensor(t0 + j * h, dtype=like.dtype, device=like.device) for j in (i, i + 1)
        )
        k = field(t, state, self.stage(2 * i))
        there = tuple(y + h * dy for y, dy in zip(state, k, strict=True))
        m = field(after, there, self.stage(2 * i + 1))
        return tuple(y + h * self.mean(a, b) for y, a, b in zip(state, k, m, strict=True))

    def stage(self, number):
        return number

    def mean(self, a, b):
        return (a + b) / 2


class RightAdaptive(Dopri5):
    """Dormand and Prince's method.

    Arguments:
        rtol: Relative tolerance.
        atol: Absolute tolerance.
    """

    def __init__(self, rtol: float = 1e-5, atol: float = 1e-5) -> None:
        super().__init__(rtol, atol)


class Changed(RK4):
    """Solves by RK4 what was changed before, and changes what came of it."""

    def solve(self, field, state, t0, t1, params=()):
        solution = super().solve(self.field(field), self.before(state), t0, t1, params)
        return dataclasses.replace(solution, state=self.after(solution.state))

    def field(self, field):
        return field

    def before(self, state):
        return state

    def after(self, state):
        return state


# --- accuracy ------------------------------------------------------------------------------------


class WrongWeight(RK4):
    """RK4 with a wrong coefficient in its third stage, which drops it to order 2."""

    tableau = Tableau(4, RK4.tableau.c, (A[0], A[1], (0.0, 0.0, 0.95)), B)


class WrongAbscissa(RK4):
    """RK4 that asks for the field at a wrong time."""

    tableau = Tableau(4, (0.0, 0.5, 0.45, 1.0), A, B)


class Overrated(RightHeun):
    """Declares an order that it does not have."""

    order = 3


class Loose(Dopri5):
    """Misses its tolerance by far.

    Arguments:
        rtol: Relative tolerance.
        atol: Absolute tolerance.
    """

    def __init__(self, rtol: float = 1e-5, atol: float = 1e-5) -> None:
        super().__init__(1e4 * rtol, 1e4 * atol)


class OneWay(RK4):
    """Does nothing when the end lies before the start."""

    def solve(self, field, state, t0, t1, params=()):
        if t1 < t0:
            return Solution(state, Evaluations(0))
        return super().solve(field, state, t0, t1, params)


class FromZero(RK4):
    """Takes the start for t = 0."""

    def solve(self, field, state, t0, t1, params=()):
        return super().solve(field, state, 0.0 * t0, t1 - t0, params)


# --- derivatives and counts ----------------------------------------------------------------------


class Deaf(RK4):
    """Has no gradient in its end time."""

    def solve(self, field, state, t0, t1, params=()):
        return super().solve(
            field, state, t0, float(t1.detach() if isinstance(t1, torch.Tensor) else t1), params
        )


class Cut(Changed):
    """Cuts the graph of the places at the start."""

    def before(self, state):
        return (0.5 * (state[0] + state[0].detach()), *state[1:])


class Vanishing(RK4):
    """Recomputes in the backward pass without a warning: a gradient of a gradient vanishes."""

    def solve(self, field, state, t0, t1, params=()):
        if not torch.is_grad_enabled():
            return super().solve(field, state, t0, t1, params)
        nfe, grid = Evaluations(self.evaluations), _Grid(self.tableau, self.steps, field, state[0])
        times = [torch.as_tensor(t, dtype=state[0].dtype) for t in (t0, t1)]
        wanted = [p for p in params if p.requires_grad]
        end = _Unguarded.apply(grid, nfe, len(state), *state, *times, *wanted)
        return Solution(tuple(end), nfe, self.steps)


class _Unguarded(_Recomputed):
    @staticmethod
    def backward(ctx, *grads):
        with torch.no_grad():
            return _Recomputed.backward(ctx, *grads)


class Keeping(RK4):
    """Keeps what the backward pass needs on itself, where the next solve overwrites it."""

    def solve(self, field, state, t0, t1, params=()):
        self.last = state[0]
        solution = super().solve(field, state, t0, t1, params)
        if torch.is_grad_enabled() and solution.state[0].requires_grad:
            solution.state[0].register_hook(
                lambda grad: grad if self.last is state[0] else 2 * grad
            )
        return solution


class Modest(RightHeun):
    """Counts every second evaluation."""

    def solve(self, field, state, t0, t1, params=()):
        solution = super().solve(field, state, t0, t1, params)
        solution.nfe.forward //= 2
        return solution


class Foretelling(RightHeun):
    """Foretells one evaluation too many."""

    def __init__(self, steps: int = 8) -> None:
        super().__init__(steps)
        self.evaluations += 1


class Silent(RK4):
    """Does not count what it recomputes.

    Arguments:
        steps: Number of steps.
    """

    def __init__(self, steps: int = 8) -> None:
        super().__init__(steps, recompute=True)

    def solve(self, field, state, t0, t1, params=()):
        solution = super().solve(field, state, t0, t1, params)
        return dataclasses.replace(solution, nfe=copy.copy(solution.nfe))
