"""One call of torchdiffeq: what it is told, and what is counted and named while it solves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from flowzoo.errors import Diverged, Incompatible, UserError
from flowzoo.integrators import Evaluations, Field, Solution, State, Time, failures

Method: TypeAlias = Literal[
    "dopri5", "dopri8", "bosh3", "adaptive_heun",
    "euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams",
]  # fmt: skip
ORDERS = {"dopri5": 5, "dopri8": 8, "bosh3": 3, "adaptive_heun": 2}
Norm: TypeAlias = Literal["joint", "state"]


@dataclass(frozen=True)
class Options:
    """What torchdiffeq is told, in either mode of differentiation.

    Arguments:
        method: torchdiffeq's name.
        rtol: Relative tolerance of the adaptive methods.
        atol: Absolute tolerance, likewise.
        steps: Number of steps of the fixed-grid methods.
        max_steps: Most steps that an adaptive method may take.
        norm: What error control looks at.
        first_step: Size of the adaptive methods' first step; None lets them choose.
        prefix: What sentences put before these names: those of a backward solve have one.

    Raises:
        Incompatible: An option does not fit the method.
        UserError: A number is out of its range.
    """

    method: Method
    rtol: float
    atol: float
    steps: int | None
    max_steps: int
    norm: Norm
    first_step: float | None = None
    prefix: str = ""
    adaptive: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "adaptive", self.method in ORDERS)
        name = self.prefix
        if self.adaptive and self.steps is not None:
            raise Incompatible(
                f"{self.method} chooses its steps by rtol and atol; "
                f"leave out {name}steps={self.steps}"
            )
        if not self.adaptive and (self.steps is None or self.steps < 1):
            raise Incompatible(
                f"{self.method} has a fixed grid: give the number of steps, e.g. {name}steps: 8"
            )
        if not self.adaptive and self.first_step is not None:
            raise Incompatible(
                f"{self.method} has a fixed grid; leave out first_step={self.first_step}"
            )
        if self.first_step is not None and not self.first_step > 0:
            raise UserError(f"first_step must be positive, got {self.first_step}")
        if not (self.rtol >= 0 and self.atol >= 0 and self.rtol + self.atol > 0):
            raise UserError(
                f"{name}rtol and {name}atol must not be negative nor both zero, "
                f"got {self.rtol} and {self.atol}"
            )
        if self.max_steps < 1:
            raise UserError(f"max_steps must be at least 1, got {self.max_steps}")

    def for_solve(self, land_on: Tensor) -> dict[str, Any]:
        """Return torchdiffeq's options for a solve that ends at the time `land_on`."""
        if self.adaptive:
            chosen = {} if self.first_step is None else {"first_step": self.first_step}
            landing = {"step_t": land_on[None], "max_num_steps": self.max_steps}
            return {"norm": self.size, **landing, **chosen}
        steps = self.steps or 1

        def grid(func: object, y0: object, t: Tensor) -> Tensor:
            fraction = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=t.device)
            # Both ends to the bit, which torchdiffeq insists on.
            return torch.lerp(t[0].double(), t[-1].double(), fraction).to(t.dtype)

        return {"norm": self.size, "grid_constructor": grid}

    def size(self, state: State) -> Tensor:
        """Return the largest root-mean-square of what error control looks at."""
        controlled = state[: 1 if self.norm == "state" else 2]
        return torch.stack([y.square().mean().sqrt() for y in controlled]).max()


class Counted:
    """A field that counts its evaluations; after `turn_back` they count as backward ones.

    Arguments:
        field: The field.
        timed: Whether gradients of the end times are wanted. torchdiffeq's adjoint takes them in
            any case, and its error control looks at them: in a small FFJORD, 32 evaluations for 20.
    """

    def __init__(self, field: Field, timed: bool) -> None:
        self.field, self.timed, self.nfe, self.forward = field, timed, Evaluations(), True
        self.last: State = ()

    def __call__(self, t: Tensor, state: State) -> State:
        """Return the field's value and count it."""
        slopes = self.field(t if self.timed else t.detach(), state)
        if self.forward:
            self.nfe.forward += 1
            self.last = tuple(k.detach() for k in slopes)
        else:
            self.nfe.backward += 1
        return slopes

    @contextmanager
    def failures(self, method: str) -> Iterator[None]:
        """Name the ways of giving up; torchdiffeq calls a field that is not a number an underflow.

        Raises:
            Diverged: The field or a state is not finite, the step size underflowed, or too many
                steps were needed.
        """
        try:
            with failures(method):
                yield
        except Diverged as error:
            if all(k.isfinite().all() for k in self.last):
                raise
            raise Diverged(
                f"{method}: non-finite values of the field, whose weights or places are too large "
                "or not numbers; lower the rate, clip gradients, or loosen rtol and atol"
            ) from error

    def turn_back(self) -> None:
        """Count what follows as backward."""
        self.forward, self.last = False, ()

    def solution(self, ends: Sequence[Tensor]) -> Solution:
        """Return the last of torchdiffeq's states, with the counts."""
        return Solution(tuple(y[-1] for y in ends), self.nfe)


class CountedAdaptive(Counted):
    """Counts steps too: torchdiffeq calls back on adaptive solvers only."""

    def __init__(self, field: Field, timed: bool) -> None:
        super().__init__(field, timed)
        self.accepted = self.rejected = 0

    def callback_accept_step(self, t: Tensor, state: State, dt: Tensor) -> None:
        """Count a step."""
        self.accepted += 1

    def callback_reject_step(self, t: Tensor, state: State, dt: Tensor) -> None:
        """Count a step that is repeated."""
        self.rejected += 1

    def solution(self, ends: Sequence[Tensor]) -> Solution:
        """Return the last of torchdiffeq's states, with the counts."""
        return Solution(tuple(y[-1] for y in ends), self.nfe, self.accepted, self.rejected)


def counted_field(field: Field, options: Options, times: Tensor) -> Counted:
    """Return the field as torchdiffeq is to see it."""
    return (CountedAdaptive if options.adaptive else Counted)(field, times.requires_grad)


def both_ends(t0: Time, t1: Time, like: Tensor) -> Tensor:
    """Return both ends in the dtype of the state: a float64 end would promote float32 states."""
    ends = [torch.as_tensor(t, dtype=like.dtype, device=like.device) for t in (t0, t1)]
    return torch.stack(ends)


def choose_first_step(field: Counted, state: State, times: Tensor, o: Options) -> Tensor:
    """Choose a first step size from the field and its change over a small step.

    References:
        Solving Ordinary Differential Equations I (Hairer, Norsett & Wanner, 1993), section II.4
    """
    t0, direction = times[0], torch.sign(times[1] - times[0])
    scale = tuple(o.atol + y.abs() * o.rtol for y in state)

    def size(change: State) -> Tensor:
        return o.size(tuple(y / s for y, s in zip(change, scale, strict=True)))

    f0 = field(t0, state)
    d0, d1 = size(state), size(f0)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.full_like(d0, 1e-6), 0.01 * d0 / d1)
    there = tuple(y + direction * h0 * k for y, k in zip(state, f0, strict=True))
    f1 = field(t0 + direction * h0, there)
    d2 = size(tuple(b - a for a, b in zip(f0, f1, strict=True))) / h0
    largest = torch.maximum(d1, d2)
    h1 = torch.where(
        largest <= 1e-15,
        torch.maximum(torch.full_like(h0, 1e-6), h0 * 1e-3),
        (0.01 / largest) ** (1 / ORDERS[o.method]),
    )
    return torch.minimum(torch.minimum(100 * h0, h1), (times[1] - times[0]).abs())
