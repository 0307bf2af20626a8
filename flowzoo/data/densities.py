"""Exact densities of noisy rings, curves, spirals and pinwheels in the plane."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_ROWS = 2048  # rows handled at once: bounds the memory of (rows, nodes) tables


def in_blocks(density: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a density (n, 2) -> (n,) to blocks of rows."""
    return torch.cat([density(rows) for rows in x.split(_ROWS)])


def gauss_legendre(low: float, high: float, nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights (m,) of Gauss-Legendre quadrature on [low, high], float64."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    half = (high - low) / 2
    return low + half * (torch.from_numpy(places) + 1), half * torch.from_numpy(weights)


def rings_log_prob(x: Tensor, radii: tuple[float, ...], noise: float) -> Tensor:
    r"""Log-density (n,) of circles of equal weight, uniform in angle, plus N(0, noise^2 I).

    One circle gives exp(-(r - R)^2 / (2 s^2)) I0e(r R / s^2) / (2 pi s^2), with r = |x| and the
    exponentially scaled Bessel function I0e.
    """
    r = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    circle = torch.tensor(radii, dtype=x.dtype, device=x.device)
    height = torch.special.i0e(r * circle / noise**2).log() - ((r - circle) / noise).square() / 2
    return height.logsumexp(-1) - math.log(2 * math.pi * noise**2 * len(radii))


def curve_log_prob(x: Tensor, points: Tensor, weights: Tensor, noise: float) -> Tensor:
    """Log-density (n,) of a curve plus N(0, noise^2 I), by quadrature along the curve.

    Arguments:
        x: Places (n, 2).
        points: The curve at the quadrature nodes (m, 2).
        weights: Quadrature weight times density of the curve's parameter, summing to 1 (m,).
        noise: Standard deviation of the noise; neighbouring nodes must lie closer than this.
    """
    points, heights = points.to(x), weights.to(x).log() - math.log(2 * math.pi * noise**2)

    def block(rows: Tensor) -> Tensor:
        squares = (rows[:, None] - points).square().sum(-1)
        return (heights - squares / (2 * noise**2)).logsumexp(-1)

    return in_blocks(block, x)


def smeared_curve_log_prob(
    x: Tensor, points: Tensor, weights: Tensor, side: float, noise: float
) -> Tensor:
    """Log-density (n,) of a curve plus U(0, side) in each coordinate plus N(0, noise^2 I).

    Arguments and method are those of `curve_log_prob`.
    """
    points, heights = points.to(x), weights.to(x).log()

    def block(rows: Tensor) -> Tensor:
        offsets = rows[:, None] - points
        return (heights + _smeared_box(offsets, side, noise).sum(-1)).logsumexp(-1)

    return in_blocks(block, x)


def _smeared_box(y: Tensor, side: float, noise: float) -> Tensor:
    """Log-density of U(0, side) + N(0, noise^2), a difference of Phi, accurate in both tails.

    The density is symmetric about side / 2; the lower half keeps the difference away from 1 - 1.
    """
    below = torch.minimum(y, side - y)
    upper = torch.special.log_ndtr(below / noise)
    lower = torch.special.log_ndtr((below - side) / noise)
    return upper + torch.log(-torch.expm1(lower - upper)) - math.log(side)


def pinwheel_log_prob(
    x: Tensor, arms: int, rate: float, radial: float, tangential: float, scale: float
) -> Tensor:
    r"""Log-density (n,) of x = scale R(-a) f, f = (1 + radial N, tangential N'), by its preimages.

    The angle is a = 2 pi k / arms + rate exp(f_0). In polar coordinates f = r (cos psi, sin psi)
    and x has the angle psi - a, so a preimage in some arm is a root of
    psi - rate exp(r cos psi) = angle(x) mod 2 pi / arms. The Jacobian determinant of a preimage
    is scale^2 (1 + rate exp(f_0) f_1). Not differentiable: roots are found without a graph.
    """
    with torch.no_grad():
        return in_blocks(
            lambda rows: _pinwheel_block(rows, arms, rate, radial, tangential, scale), x
        )


def _pinwheel_block(
    x: Tensor, arms: int, rate: float, radial: float, tangential: float, scale: float
) -> Tensor:
    r = torch.linalg.vector_norm(x, dim=-1) / scale
    row, psi = _pinwheel_preimages(r, torch.atan2(x[:, 1], x[:, 0]), arms, rate)
    f0, f1 = r[row] * psi.cos(), r[row] * psi.sin()
    energy = ((f0 - 1) / radial).square() / 2 + (f1 / tangential).square() / 2
    density = torch.exp(-energy) / (2 * math.pi * radial * tangential * arms)
    volume = scale**2 * (1 + rate * f0.exp() * f1).abs()
    return torch.zeros_like(r).index_add(0, row, density / volume).log()


def _pinwheel_preimages(r: Tensor, angle: Tensor, arms: int, rate: float) -> tuple[Tensor, Tensor]:
    """Find every root psi of every row: pairs of row number and psi, by a scan and bisection."""
    grid = torch.linspace(-math.pi, math.pi, 1025, dtype=r.dtype, device=r.device)

    def turns(psi: Tensor, r: Tensor, angle: Tensor) -> Tensor:
        return (psi - rate * torch.exp(r * psi.cos()) - angle) * (arms / (2 * math.pi))

    steps = turns(grid, r[:, None], angle[:, None]).floor()
    row, cell = (steps[:, 1:] != steps[:, :-1]).nonzero(as_tuple=True)
    before, after = steps[row, cell], steps[row, cell + 1]
    target, rising = torch.maximum(before, after), after > before
    low, high = grid[cell], grid[cell + 1]
    for _ in range(48):  # the last bit of float64, from a cell of 2 pi / 1024
        middle = (low + high) / 2
        short = (turns(middle, r[row], angle[row]) < target) == rising
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return row, (low + high) / 2
