"""Solving x + g(x) = y: by the fixed point where g contracts, else by damped Newton steps.

Newton's steps reduce |y - x - g(x)|, and can get stuck only where I + J is singular: they find the
solution of any bijection that is a smooth one at every place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from flowzoo.errors import Incompatible
from flowzoo_residual.layers import Perceptron

_DECREASE = 1e-4  # share of the predicted decrease that a step must reach (Armijo)
_HALVINGS = 20  # of a step, before a sample is given up
_ROWS = 1024  # samples whose matrices are in memory at once


@torch.no_grad()
def invert(g: Perceptron, y: Tensor, tolerance: float, iterations: int) -> tuple[Tensor, Tensor]:
    """Return x (n, d), and |y - x - g(x)| (n,) in units of the tolerance times 1 + |y|.

    Each sample stops by itself, so that it does not depend on the others.

    Arguments:
        g: g.
        y: What x + g(x) should be (n, d).
        tolerance: Residual at which a sample stops, relative to 1 + |y|.
        iterations: Most evaluations for the fixed point, and most of Newton's steps after that.

    References:
        Invertible Residual Networks (Behrmann et al., ICML 2019), algorithm 1,
        https://arxiv.org/abs/1811.00995; Numerical Optimization (Nocedal & Wright, 2nd edition,
        Springer 2006), chapter 11
    """
    unit = tolerance * (1 + y.norm(dim=-1))
    x, size = fixed_point(g, y, unit, iterations)
    left = (~(size <= 1)).nonzero()[:, 0]  # nan is left, too
    for rows in left.split(_ROWS):
        x[rows], size[rows] = newton(g.of(rows), y[rows], unit[rows], iterations)
    return x, size


def fixed_point(g: Perceptron, y: Tensor, unit: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Return x after some iterations of x <- y - g(x) from y, and its residual, in a unit (n,)."""
    x = y.clone()
    for _ in range(iterations):
        r = y - x - g(x)
        size = r.norm(dim=-1) / unit
        done = size <= 1
        if bool(done.all()):
            return x, size
        x = torch.where(done[:, None], x, x + r)
    return x, (y - x - g(x)).norm(dim=-1) / unit


def newton(g: Perceptron, y: Tensor, unit: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Return x after some steps of damped Newton from y, and its residual, in a unit (n,)."""
    x, size = y.clone(), torch.full_like(unit, torch.inf)
    moved = torch.ones_like(unit, dtype=torch.bool)
    for _ in range(iterations):
        value, jacobian = g.at(x)
        r = y - x - value
        size = torch.where(moved, r.norm(dim=-1) / unit, size)
        trial, moved = _searched(g, x, jacobian.solve(r), y, unit, size)
        if not bool(moved.any()):
            return x, size
        x = torch.where(moved[:, None], trial, x)
    return x, (y - x - g(x)).norm(dim=-1) / unit


def _searched(
    g: Perceptron, x: Tensor, step: Tensor, y: Tensor, unit: Tensor, size: Tensor
) -> tuple[Tensor, Tensor]:
    """Return places along a step with smaller residuals, and which samples have one and need it."""
    length, wanted, trial = torch.ones_like(size), size > 1, x
    better = torch.zeros_like(wanted)
    for _ in range(_HALVINGS):
        trial = torch.where(better[:, None], trial, x + length[:, None] * step)
        tried = (y - trial - g(trial)).norm(dim=-1) / unit
        better = tried < (1 - _DECREASE * length) * size
        if bool((better | ~wanted).all()):
            break
        length = 0.5 * length
    return trial, better & wanted


def differentiable(g: Perceptron, x: Tensor, y: Tensor) -> Tensor:
    """Return the solution x of x + g(x) = y, differentiable in y and in what g is made of.

    By the implicit function theorem dx = (I + J)^-1 (dy - dg), with dg the change of g at this x:
    nothing of the way to x is recorded. First derivatives only.

    Arguments:
        g: g, recorded.
        x: The solution (n, d), without a graph.
        y: (n, d).
    """
    residual = y - x - g(x)
    if not residual.requires_grad:
        return x
    with torch.no_grad():
        jacobian = g.detach().at(x)[1]
    move = jacobian.solve(residual - residual.detach())
    return _First.apply(x + move)


class _First(Function):
    """The identity, whose gradient cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore
        if torch.is_grad_enabled():
            raise Incompatible(
                "an inversion gives first derivatives only, and this loss differentiates a "
                "gradient again: take gradients of encode, which has second derivatives"
            )
        return grad
