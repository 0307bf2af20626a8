"""The solvers of torchdiffeq as integrators, differentiated in either way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowzoo.errors import Incompatible
from flowzoo.integrators import ONLY_FIRST, Evaluations, Field, Integrator, Solution, State, Time
from flowzoo.odeint.call import (
    ORDERS,
    Method,
    Norm,
    Options,
    both_ends,
    choose_first_step,
    counted_field,
)


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
        first_step: Size of the adaptive methods' first step; None lets them choose.

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
        first_step: float | None = None,
    ) -> None:
        self.options = Options(method, rtol, atol, steps, max_steps, norm, first_step)

    def solve(
        self, field: Field, state: State, t0: Time, t1: Time, params: Sequence[Tensor] = ()
    ) -> Solution:
        """Return the state at t1."""
        from torchdiffeq import odeint

        if not len(state[0]):
            return Solution(state, Evaluations())
        o, times = self.options, both_ends(t0, t1, state[0])
        counted = counted_field(field, o, times)
        options = o.for_solve(times[-1].detach())
        if o.adaptive and o.first_step is None and torch.is_grad_enabled():
            with torch.no_grad():
                options["first_step"] = choose_first_step(counted, state, times, o)
        with counted.failures(o.method):
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
        first_step: Size of the adaptive methods' first step; None lets them choose.

    References:
        A family of embedded Runge-Kutta formulae (Dormand & Prince, J. Comput. Appl. Math. 1980)
    """

    def __init__(
        self,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        max_steps: int = 10_000,
        norm: Norm = "joint",
        first_step: float | None = None,
    ) -> None:
        self.inner = TorchDiffEq("dopri5", rtol, atol, None, max_steps, norm, first_step)

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
        first_step: Size of the adaptive methods' first step, in both directions; None lets them
            choose. RNODE's code has 1/6.
        adjoint_method: Method of the backward solve; None is `method`.
        adjoint_steps: Number of steps of a backward solve on a fixed grid; None is `steps`.

    References:
        Neural Ordinary Differential Equations (Chen, Rubanova, Bettencourt & Duvenaud, NeurIPS
        2018), https://arxiv.org/abs/1806.07366
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"seminorm": True},
        {"method": "rk4", "steps": 8},
        {"adjoint_method": "rk4", "adjoint_steps": 16},
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
        first_step: float | None = None,
        adjoint_method: Method | None = None,
        adjoint_steps: int | None = None,
    ) -> None:
        self.options = Options(method, rtol, atol, steps, max_steps, norm, first_step)
        back = method if adjoint_method is None else adjoint_method
        if adjoint_steps is None and back not in ORDERS:
            adjoint_steps = steps
        self.back = Options(
            back,
            rtol if adjoint_rtol is None else adjoint_rtol,
            atol if adjoint_atol is None else adjoint_atol,
            adjoint_steps,
            max_steps,
            norm,
            first_step if back in ORDERS else None,
            prefix="adjoint_",
        )
        self.seminorm = seminorm

    def solve(
        self, field: Field, state: State, t0: Time, t1: Time, params: Sequence[Tensor] = ()
    ) -> Solution:
        """Return the state at t1."""
        from torchdiffeq import odeint_adjoint

        if not len(state[0]):
            return Solution(state, Evaluations())
        o, times = self.options, both_ends(t0, t1, state[0])
        counted = counted_field(field, o, times)
        # torchdiffeq runs a solve with t1 < t0 in negated time, and forgets this option there.
        back = self.back.for_solve(times[0].detach() if t1 > t0 else -times[0].detach())
        del back["norm"]
        if self.seminorm:
            back["norm"] = "seminorm"
        with counted.failures(o.method):
            ends: Any = odeint_adjoint(
                counted, state, times, rtol=o.rtol, atol=o.atol, method=o.method,
                options=o.for_solve(times[-1].detach()), adjoint_options=back,
                adjoint_rtol=self.back.rtol, adjoint_atol=self.back.atol,
                adjoint_method=self.back.method,
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
