"""The solvers of torchdiffeq as integrators, differentiated in either way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from flowzoo.errors import Incompatible
from flowzoo.integrators import (
    ONLY_FIRST,
    Evaluations,
    Field,
    Integrator,
    Solution,
    State,
    Time,
    failures,
)

Method: TypeAlias = Literal[
    "dopri5", "dopri8", "bosh3", "adaptive_heun",
    "euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams",
]  # fmt: skip
ORDERS = {"dopri5": 5, "dopri8": 8, "bosh3": 3, "adaptive_heun": 2}
Norm: TypeAlias = Literal["joint", "state"]


class TorchDiffEq(Integrator):
    """The solvers of torchdiffeq, differentiated through their steps (discretize-then-optimize).

    The last step lands on t1 instead of passing it and interpolating back, and no gradient flows
    through the choice of the first step size (torchdiffeq issues 78 and 284). Its `fehlberg2` is
    left out, as it misses its tolerance a hundredfold (0.2.5).

    Arguments:
        method: torchdiffeq's name; its `rk4` is the 3/8 rule.
        rtol: Relative tolerance of the adaptive methods.
        atol: Absolute tolerance, likewise.
        steps: Number of steps of the fixed-grid methods; the adaptive ones refuse it.
        max_steps: Most steps that an adaptive method may take.
        norm: What error control looks at: `joint` is places and ladj, `state` is places alone.

    References:
        torchdiffeq (Chen, 2018), https://github.com/rtqichen/torchdiffeq
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"method": "rk4", "steps": 8},
        {"method": "bosh3"},
    )

    def __init__(
        self,
        method: Method = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        steps: int | None = None,
        max_steps: int = 10_000,
        norm: Norm = "joint",
    ) -> None:
        self.options = _Options(method, rtol, atol, steps, max_steps, norm)

    def solve(
        self, field: Field, state: State, t0: Time, t1: Time, params: Sequence[Tensor] = ()
    ) -> Solution:
        """Return the state at t1."""
        from torchdiffeq import odeint

        if not len(state[0]):
            return Solution(state, Evaluations())
        o, counted, times = self.options, _counted(field, self.options), _times(t0, t1, state[0])
        options = o.for_solve(times[-1].detach())
        if o.adaptive and torch.is_grad_enabled():
            with torch.no_grad():
                options["first_step"] = _first_step(counted, state, times, o)
        with failures(o.method):
            ends: Any = odeint(
                counted, state, times, rtol=o.rtol, atol=o.atol, method=o.method, options=options
            )
        return counted.solution(ends)


class Dopri5(Integrator):
    """Dormand and Prince's adaptive method of order 5, differentiated through its steps.

    Arguments:
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        max_steps: Most steps that it may take.
        norm: What error control looks at: `joint` is places and ladj, `state` is places alone.

    References:
        A family of embedded Runge-Kutta formulae (Dormand & Prince, J. Comput. Appl. Math. 1980)
    """

    def __init__(
        self, rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 10_000, norm: Norm = "joint"
    ) -> None:
        self.inner = TorchDiffEq("dopri5", rtol, atol, None, max_steps, norm)

    def solve(
        self, field: Field, state: State, t0: Time, t1: Time, params: Sequence[Tensor] = ()
    ) -> Solution:
        """Return the state at t1."""
        return self.inner.solve(field, state, t0, t1, params)


class Adjoint(Integrator):
    """The adjoint method, optimize-then-discretize: gradients from an ODE solved backwards.

    Memory does not depend on the number of steps; the gradient is that of the continuous problem,
    up to the tolerance.

    Arguments:
        method: Any of torchdiffeq's; its `rk4` is the 3/8 rule.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        adjoint_rtol: Relative tolerance of the backward solve; None is `rtol`.
        adjoint_atol: Absolute tolerance of the backward solve; None is `atol`.
        seminorm: True leaves the gradients of the weights out of the backward solve's error control
            (Kidger, Chen & Lyons, ICML 2021, https://arxiv.org/abs/2009.09457).
        steps: Number of steps of the fixed-grid methods; the adaptive ones refuse it.
        max_steps: Most steps that an adaptive method may take.
        norm: What error control looks at: `joint` is places and ladj, `state` is places alone.

    References:
        Neural Ordinary Differential Equations (Chen, Rubanova, Bettencourt & Duvenaud, NeurIPS
        2018), https://arxiv.org/abs/1806.07366
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"seminorm": True},
        {"method": "rk4", "steps": 8},
    )

    def __init__(
        self,
        method: Method = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        adjoint_rtol: float | None = None,
        adjoint_atol: float | None = None,
        seminorm: bool = False,
        steps: int | None = None,
        max_steps: int = 10_000,
        norm: Norm = "joint",
    ) -> None:
        self.options = _Options(method, rtol, atol, steps, max_steps, norm)
        self.adjoint_rtol = rtol if adjoint_rtol is None else adjoint_rtol
        self.adjoint_atol = atol if adjoint_atol is None else adjoint_atol
        self.seminorm = seminorm

    def solve(
        self, field: Field, state: State, t0: Time, t1: Time, params: Sequence[Tensor] = ()
    ) -> Solution:
        """Return the state at t1."""
        from torchdiffeq import odeint_adjoint

        if not len(state[0]):
            return Solution(state, Evaluations())
        o, counted, times = self.options, _counted(field, self.options), _times(t0, t1, state[0])
        # torchdiffeq runs a solve with t1 < t0 in negated time, and forgets this option there.
        back = o.for_solve(times[0].detach() if t1 > t0 else -times[0].detach())
        del back["norm"]
        if self.seminorm:
            back["norm"] = "seminorm"
        with failures(o.method):
            ends: Any = odeint_adjoint(
                counted, state, times, rtol=o.rtol, atol=o.atol, method=o.method,
                options=o.for_solve(times[-1].detach()), adjoint_options=back,
                adjoint_rtol=self.adjoint_rtol, adjoint_atol=self.adjoint_atol,
                adjoint_params=tuple(p for p in params if p.requires_grad),
            )  # fmt: skip
        counted.turn_back()
        return counted.solution([_FirstOrder.apply(y) for y in ends])  # pyright: ignore


class _FirstOrder(torch.autograd.Function):
    """The identity behind a solve whose gradients carry no graph; refuses to be asked for one.

    torchdiffeq's adjoint returns such gradients without a word, and a penalty on them would vanish.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise Incompatible(f"adjoint {ONLY_FIRST}")
        return grads[0]


@dataclass(frozen=True)
class _Options:
    """What torchdiffeq is told, in either mode of differentiation."""

    method: Method
    rtol: float
    atol: float
    steps: int | None
    max_steps: int
    norm: Norm
    adaptive: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "adaptive", self.method in ORDERS)
        if self.adaptive and self.steps is not None:
            raise Incompatible(
                f"{self.method} chooses its steps by rtol and atol; leave out steps={self.steps}"
            )
        if not self.adaptive and (self.steps is None or self.steps < 1):
            raise Incompatible(
                f"{self.method} has a fixed grid: give the number of steps, e.g. steps: 8"
            )

    def for_solve(self, land_on: Tensor) -> dict[str, Any]:
        if self.adaptive:
            return {"norm": self.size, "step_t": land_on[None], "max_num_steps": self.max_steps}
        steps = self.steps or 1

        def grid(func: object, y0: object, t: Tensor) -> Tensor:
            fraction = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=t.device)
            # Both ends to the bit, which torchdiffeq insists on.
            return torch.lerp(t[0].double(), t[-1].double(), fraction).to(t.dtype)

        return {"norm": self.size, "grid_constructor": grid}

    def size(self, state: State) -> Tensor:
        controlled = state[: 1 if self.norm == "state" else 2]
        return torch.stack([y.square().mean().sqrt() for y in controlled]).max()


class _Counted:
    """A field that counts its evaluations; after `turn_back` they count as backward ones."""

    def __init__(self, field: Field) -> None:
        self.field, self.nfe, self.forward = field, Evaluations(), True

    def __call__(self, t: Tensor, state: State) -> State:
        if self.forward:
            self.nfe.forward += 1
        else:
            self.nfe.backward += 1
        return self.field(t, state)

    def turn_back(self) -> None:
        self.forward = False

    def solution(self, ends: Sequence[Tensor]) -> Solution:
        return Solution(tuple(y[-1] for y in ends), self.nfe)


class _CountedAdaptive(_Counted):
    """Counts steps too: torchdiffeq calls back on adaptive solvers only."""

    def __init__(self, field: Field) -> None:
        super().__init__(field)
        self.accepted = self.rejected = 0

    def callback_accept_step(self, t: Tensor, state: State, dt: Tensor) -> None:
        self.accepted += 1

    def callback_reject_step(self, t: Tensor, state: State, dt: Tensor) -> None:
        self.rejected += 1

    def solution(self, ends: Sequence[Tensor]) -> Solution:
        return Solution(tuple(y[-1] for y in ends), self.nfe, self.accepted, self.rejected)


def _counted(field: Field, options: _Options) -> _Counted:
    return _CountedAdaptive(field) if options.adaptive else _Counted(field)


def _times(t0: Time, t1: Time, like: Tensor) -> Tensor:
    # Both ends in the dtype of the state: a float64 end would promote float32 states.
    ends = [torch.as_tensor(t, dtype=like.dtype, device=like.device) for t in (t0, t1)]
    return torch.stack(ends)


def _first_step(field: _Counted, state: State, times: Tensor, o: _Options) -> Tensor:
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
