"""Optimal couplings of two samples for the squared distance, and their dual potentials."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ELEMENTS = 2**20  # of one array of projected samples: 8 MB
_TOLERANCE = 1e-12  # of dual potentials, relative to the largest cost


@dataclass(frozen=True)
class Coupled:
    """Squared distances between two samples, and what each point adds to their mean.

    Arguments:
        squared: W2^2 (k,), one for each projection; (1,) without projections.
        phi: Dual potential at the points of the first sample (n,), mean over projections.
        psi: Dual potential at the points of the second sample (m,), mean over projections.
    """

    squared: Tensor
    phi: Tensor
    psi: Tensor


def exact_w2(x: Tensor, y: Tensor) -> Coupled:
    r"""Return W2^2 between two samples of equal size, exactly, by the assignment problem.

    W2^2 = min over permutations s of 1/n sum_i |x_i - y_s(i)|^2, in squared units. The means are
    taken apart first, W2^2(X, Y) = |mean X - mean Y|^2 + W2^2(X - mean X, Y - mean Y), since the
    solver takes long over a shift. The potentials solve phi_i + psi_j <= |x_i - y_j|^2 with
    equality for pairs: psi is the shortest way over a graph in which a step from pair i to pair j
    costs |x_i - y_s(j)|^2 - |x_i - y_s(i)|^2.

    Arguments:
        x: Points (n, d), float64.
        y: Points (n, d), float64.

    References:
        Computational Optimal Transport (Peyre & Cuturi, 2019), sections 2.2 and 2.5,
        arXiv:1803.00567
    """
    from scipy.optimize import linear_sum_assignment

    x_mean, y_mean = x.mean(0), y.mean(0)
    shift, x, y = x_mean - y_mean, x - x_mean, y - y_mean
    cost = torch.cdist(x, y).square()
    columns = torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1]).to(x.device)
    cost = cost[:, columns]  # now pairs lie on the diagonal
    pairs = cost.diagonal()
    psi = _shortest(cost - pairs[:, None])
    phi, psi = pairs - psi, torch.empty_like(psi).index_copy_(0, columns, psi)
    # Back to |x - y|^2 = |shift|^2 + 2 <shift, x' - y'> + |x' - y'|^2, with primes for centred.
    apart = shift.square().sum()
    phi, psi = phi + apart + 2 * x @ shift, psi - 2 * y @ shift
    return Coupled((pairs.mean() + apart)[None], phi, psi)


def _shortest(step: Tensor) -> Tensor:
    """Return lengths (n,) of the shortest ways to each node, from any node, by steps (n, n)."""
    length, tolerance = step.new_zeros(len(step)), _TOLERANCE * float(step.abs().max())
    for _ in range(len(step)):
        shorter = (step + length[:, None]).amin(0)
        if bool((shorter >= length - tolerance).all()):
            break
        length = torch.minimum(shorter, length)
    return length


def sliced_w2(x: Tensor, y: Tensor, directions: Tensor) -> Coupled:
    r"""Return W2^2 between two samples projected onto each of some directions, by sorting.

    W2^2 = int_0^1 |F^-1(u) - G^-1(u)|^2 du in squared units, exact for unequal sizes too, where
    both quantile functions are steps. Its mean over directions is SW2^2. Along a direction the
    potential is the integral of 2 (x - T(x)), by the trapezoid rule: exact, as T is constant
    between points, and half-way where it jumps.

    Arguments:
        x: Points (n, d), float64.
        y: Points (m, d), float64.
        directions: Unit vectors (k, d), float64.

    References:
        Sliced and Radon Wasserstein Barycenters of Measures (Bonneel et al., JMIV 2015)
    """
    phi, psi = x.new_zeros(len(x)), y.new_zeros(len(y))
    squared = []
    for part in directions.split(max(1, _ELEMENTS // (len(x) + len(y)))):
        (xs, x_order), (ys, y_order) = (part @ x.mT).sort(), (part @ y.mT).sort()
        mass, i, j = _steps(len(x), len(y), x.device)
        squared.append((xs[:, i] - ys[:, j]).square() @ mass)
        phi.index_add_(0, x_order.flatten(), _potential(xs, ys).flatten())
        psi.index_add_(0, y_order.flatten(), _potential(ys, xs).flatten())
    return Coupled(torch.cat(squared), phi / len(directions), psi / len(directions))


def _steps(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the intervals of [0, 1] on which both quantile functions are constant.

    Their lengths, and on each the index of the point of the first and of the second sample (k,).
    """
    # In whole numbers of 1 / (n m), so that ends that fall together are one.
    ends = torch.cat((torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n)).unique().to(device)
    mass = ends.diff(prepend=ends.new_zeros(1)).double() / (n * m)
    return mass, (ends - 1) // m, (ends - 1) // n


def _potential(xs: Tensor, ys: Tensor) -> Tensor:
    """Return the potential (k, n) at sorted points (k, n) of transport to sorted points (k, m)."""
    n, m = xs.shape[1], ys.shape[1]
    level = torch.arange(1, n, device=xs.device) * m  # between neighbours, in units of 1 / (n m)
    targets = ys[:, (level - 1) // n] + ys[:, level // n]
    steps = xs.diff() * (xs[:, 1:] + xs[:, :-1] - targets)
    return torch.cat((torch.zeros_like(xs[:, :1]), steps.cumsum(1)), 1)
