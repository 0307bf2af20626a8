"""Integrators: how the augmented ODE is stepped, and how its solution is differentiated.

Here: the interface, and our own Runge-Kutta loop on a fixed grid (`rk1`, `midpoint`, `heun`,
`rk4`, `rk4-38`): discretize-then-optimize, where each step can be recomputed in the backward pass.
`flowzoo.odeint` has the solvers of torchdiffeq, among them `adjoint`: optimize-then-discretize.

A state is a tuple of tensors: places (n, d) first, then ladj (n,), then integrated costs (n, r). A
field maps (t, state, stage) to the state's time derivative; `stage` counts the evaluations of a
fixed grid, so that a field that redraws noise repeats itself when a step is recomputed. Error
control looks at places and ladj only.

A field of a flow reads the places alone: what is integrated along the way never feeds back. It says
so by an attribute `reads`, the number of leading entries that it looks at, and a Runge-Kutta step
then leaves out what nobody reads.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor

from flowzoo.errors import Diverged, Incompatible

State: TypeAlias = tuple[Tensor, ...]
Time: TypeAlias = float | Tensor


class Field(Protocol):
    """The right-hand side of one solve."""

    def __call__(self, t: Tensor, state: State, stage: int = 0) -> State:
        """Return the time derivative of every entry of the state."""
        ...


@dataclass
class Evaluations:
    """How often a field was evaluated; `backward` grows when gradients are taken."""

    forward: int = 0
    backward: int = 0


@dataclass(frozen=True)
class Solution:
    """The state at the end of a solve, and what it cost.

    Arguments:
        state: The state at t1.
        nfe: Evaluations of the field.
        accepted: Steps taken.
        rejected: Steps that error control repeated with a smaller size.
    """

    state: State
    nfe: Evaluations
    accepted: int = 0
    rejected: int = 0


class Integrator(ABC):
    """Solves dy/dt = field(t, y) from t0 to t1, in either direction.

    `evaluations` is the number of evaluations that a solve takes where it is known beforehand (a
    fixed grid whose stages are numbered), else None.
    """

    kind: ClassVar[str] = "integrator"
    evaluations: int | None = None

    @abstractmethod
    def solve(
        self, field: Field, state: State, t0: Time, t1: Time, params: Sequence[Tensor] = ()
    ) -> Solution:
        """Return the state at t1.

        Arguments:
            field: The right-hand side.
            state: The state at t0.
            t0: Start; a tensor () where its gradient is wanted.
            t1: End, likewise.
            params: Every tensor besides the state and the times that the field depends on and that
                may need a gradient: weights, context. Integrators that solve or recompute in the
                backward pass need them named.

        Raises:
            Diverged: The step size underflowed, or a value is not finite.
        """


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: stage i sits at c_i, is reached by row a_i, and counts b_i.

    Arguments:
        order: Order of convergence.
        c: Abscissae of the stages, the first is 0.
        a: Rows of coefficients for the stages after the first.
        b: Weights of the stages.
    """

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


class FixedGrid(Integrator):
    """A Runge-Kutta method on the grid t0 + i h; a member declares its tableau.

    Arguments:
        steps: Number of steps.
        recompute: True keeps only the state at each step and recomputes the step when gradients are
            taken: the memory of the adjoint method with the exact gradient of the discrete
            solution, for one more forward pass.
    """

    tableau: ClassVar[Tableau]
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"recompute": True})

    def __init__(self, steps: int = 8, recompute: bool = False) -> None:
        if steps < 1:
            raise Incompatible(f"a fixed grid needs at least one step, got steps={steps}")
        self.steps, self.recompute = steps, recompute
        self.evaluations = steps * len(self.tableau.b)

    def solve(
        self, field: Field, state: State, t0: Time, t1: Time, params: Sequence[Tensor] = ()
    ) -> Solution:
        """Return the state at t1."""
        nfe = Evaluations(forward=self.steps * len(self.tableau.b))
        grid = _Grid(self.tableau, self.steps, field, state[0])
        if self.recompute and torch.is_grad_enabled():
            times = tuple(
                torch.as_tensor(t, dtype=state[0].dtype, device=state[0].device) for t in (t0, t1)
            )
            params = tuple(p for p in params if p.requires_grad)
            state = _Recomputed.apply(grid, nfe, len(state), *state, *times, *params)  # pyright: ignore
        else:
            for i in range(self.steps):
                state = grid.step(i, t0, t1, state)
        return Solution(tuple(state), nfe, accepted=self.steps)


class RK1(FixedGrid):
    """Forward Euler, order 1."""

    tableau = Tableau(1, (0.0,), (), (1.0,))


class Midpoint(FixedGrid):
    """The explicit midpoint rule, order 2."""

    tableau = Tableau(2, (0.0, 0.5), ((0.5,),), (0.0, 1.0))


class Heun(FixedGrid):
    """Heun's method, the explicit trapezoidal rule, order 2: diffusion samplers' usual choice."""

    tableau = Tableau(2, (0.0, 1.0), ((1.0,),), (0.5, 0.5))


class RK4(FixedGrid):
    """The classic Runge-Kutta method, order 4 (Kutta 1901): OT-Flow's."""

    tableau = Tableau(
        4, (0.0, 0.5, 0.5, 1.0), ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    )


class RK438(FixedGrid):
    """Kutta's 3/8 rule, order 4: what torchdiffeq calls rk4."""

    tableau = Tableau(
        4,
        (0.0, 1 / 3, 2 / 3, 1.0),
        ((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
    )


class _Grid:
    """One solve on a fixed grid."""

    def __init__(self, tableau: Tableau, steps: int, field: Field, like: Tensor) -> None:
        self.tableau, self.steps, self.field = tableau, steps, field
        self.dtype, self.device = like.dtype, like.device
        # All times leave for the device at once: a copy per stage would stall an accelerator.
        at = [[i + c for c in tableau.c] for i in range(steps)]
        self.fraction = (
            torch.tensor(at, dtype=torch.float64).div_(steps).to(like.device, like.dtype)
        )

    def step(self, i: int, t0: Time, t1: Time, state: State) -> State:
        """Return the state after step i."""
        times = t0 + (t1 - t0) * self.fraction[i]
        h = (t1 - t0) / self.steps
        slopes: list[State] = []
        reads = getattr(self.field, "reads", len(state))
        for j, row in enumerate(((), *self.tableau.a)):
            at = (*_moved(state[:reads], h, row, slopes), *state[reads:])
            slopes.append(self.field(times[j], at, i * len(self.tableau.b) + j))
        return _moved(state, h, self.tableau.b, slopes)


def _moved(state: State, h: Time, weights: Sequence[float], slopes: list[State]) -> State:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            state = tuple(_add(y, k, h * weight) for y, k in zip(state, slope, strict=False))
    return state


def _add(y: Tensor, k: Tensor, factor: Time) -> Tensor:
    return y + factor * k if isinstance(factor, Tensor) else torch.add(y, k, alpha=factor)


class _Recomputed(torch.autograd.Function):
    """A solve that keeps the state of each step and differentiates step by step, last to first."""

    @staticmethod
    def forward(ctx: Any, grid: _Grid, nfe: Evaluations, size: int, *tensors: Tensor) -> State:
        state, (t0, t1) = tensors[:size], tensors[size : size + 2]
        kept: list[Tensor] = []
        for i in range(grid.steps):
            kept.extend(state)
            state = grid.step(i, t0, t1, state)
        ctx.grid, ctx.nfe, ctx.size, ctx.params = grid, nfe, size, tensors[size:]
        ctx.save_for_backward(*kept, *tensors[size:])  # the params, so that a change is noticed
        return state

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        if torch.is_grad_enabled():  # the gradients below carry no graph
            raise Incompatible(f"recompute: true {ONLY_FIRST}")
        grid, size, saved = ctx.grid, ctx.size, ctx.saved_tensors
        t0, t1 = (t.detach().requires_grad_(t.requires_grad) for t in ctx.params[:2])
        wanted = [p for p in (t0, t1, *ctx.params[2:]) if p.requires_grad]
        totals: list[Tensor | None] = [None] * len(wanted)
        for i in reversed(range(grid.steps)):
            with torch.enable_grad():
                kept = saved[i * size : (i + 1) * size]
                state = tuple(y.detach().requires_grad_() for y in kept)
                after = grid.step(i, t0, t1, state)
            ends = [(y, g) for y, g in zip(after, grads, strict=True) if y.requires_grad]
            outputs, seeds = zip(*ends, strict=True)
            out = torch.autograd.grad(outputs, (*state, *wanted), seeds, allow_unused=True)
            grads = tuple(
                torch.zeros_like(y) if g is None else g
                for y, g in zip(state, out[:size], strict=True)
            )
            totals = [
                b if a is None else a if b is None else a + b
                for a, b in zip(totals, out[size:], strict=True)
            ]
            ctx.nfe.backward += len(grid.tableau.b)
        found = iter(totals)
        rest = [next(found) if p.requires_grad else None for p in (t0, t1, *ctx.params[2:])]
        return (None, None, None, *grads, *rest)


ONLY_FIRST = (
    "gives first derivatives only, and this loss differentiates a gradient again: use a fixed grid "
    "without recompute, or dopri5"
)


@contextmanager
def failures(method: str = "the solver") -> Iterator[None]:
    """Name the ways in which torchdiffeq gives up.

    Raises:
        Diverged: The step size underflowed, a value is not finite, or too many steps were needed.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="An adjoint parameter was passed")
            yield
    except AssertionError as error:
        found = next((text for text in _CURES if text in str(error)), None)
        if found is None:
            raise
        raise Diverged(f"{method}: {found}; {_CURES[found]}") from error


_STIFF = "the field is too stiff for its tolerances: loosen rtol and atol, use smooth activations"
_CURES = {
    "underflow in dt": f"{_STIFF}, or a fixed grid",
    "max_num_steps exceeded": f"{_STIFF}, allow more max_steps, or a fixed grid",
    "non-finite values": "the field, or the gradient sent back through it, is no longer finite: "
    "lower the learning rate, or clip the gradient",
}
