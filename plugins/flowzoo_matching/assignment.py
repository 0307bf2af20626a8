"""Pairs of least cost: the exact assignment of a batch, and of a batch that is a pool of more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from flowzoo.errors import Diverged, Incompatible
from flowzoo_matching.conditional_coupling import require_weight, with_conditions
from flowzoo_matching.coupling import Coupling, Pairs

_SMALL = 96  # rows below which scipy's search is faster than the potentials that shorten it
# Temperatures of the potentials relative to the mean cost, and rounds at each.
_TEMPERATURES, _ROUNDS = (0.25, 0.05, 0.01, 0.002), 8
_DEEPEST = -60.0  # of exponents: what lies below is slow (subnormal) and decides nothing


class ExactOT(Coupling):
    """The permutation of the batch's noise that makes sum_i |x_i - z_i|^2 least.

    It is computed on the host in float64: 2 ms for 256 rows, 50 ms for 1024. In one dimension
    `sorted` gives the same pairs for less, in a few dimensions `near-ot` nearly the same.

    Arguments:
        condition_weight: Weight w of the conditions in the cost |x - z|^2 + w |c_x - c_z|^2, where
            data come with a context. At 0 the noise depends on the condition, which a conditional
            flow's samples then suffer from; take w so large that w |c_x - c_z|^2 outweighs the
            distances for conditions that differ.

    Raises:
        Incompatible: The weight is negative or not finite.

    References:
        Multisample Flow Matching (Pooladian et al., ICML 2023), https://arxiv.org/abs/2304.14772;
        Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport
        (Tong et al., TMLR 2024), https://arxiv.org/abs/2302.00482
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"condition_weight": 10.0})

    def __init__(self, condition_weight: float = 0.0) -> None:
        self.condition_weight = require_weight(condition_weight)

    def pair(
        self,
        x: Tensor,
        z: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Pairs:
        """Return the data as they come, each with its noise.

        Raises:
            Diverged: A point is not finite.
        """
        x, z = with_conditions(x, z, context, self.condition_weight, generator)
        data, noise = on_host(x, z)
        return Pairs(noise=torch.from_numpy(least_cost(-(data @ noise.T))).to(x.device))


class Pooled(Coupling):
    """Pairs the whole batch, and keeps some of the pairs, drawn at random.

    Pairs of least cost are the straighter, the more rows they are chosen from. With a batch of
    4096 and `pairs: 256` they come from 4096, and the velocity is asked for 256 only.

    Arguments:
        coupling: What pairs the whole batch; `exact-ot` when left out.
        pairs: How many pairs are kept; all of a batch that has no more.

    Raises:
        Incompatible: No pair is to be kept.
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"pairs": 4})

    def __init__(self, coupling: Coupling | None = None, pairs: int = 256) -> None:
        if pairs < 1:
            raise Incompatible(f"pooled must keep at least one of the pairs, got pairs: {pairs}")
        self.coupling = ExactOT() if coupling is None else coupling
        self.pairs = pairs

    def pair(
        self,
        x: Tensor,
        z: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Pairs:
        """Return the pairs that are kept."""
        whole = self.coupling.pair(x, z, context, generator)
        rows = torch.arange(len(x), device=x.device)
        data, noise = whole.of_data(rows), whole.of_noise(rows)
        if len(data) <= self.pairs:
            return whole
        kept = torch.randperm(len(data), generator=generator, device=x.device)[: self.pairs]
        return Pairs(data[kept], noise[kept])


def on_host(x: Tensor, z: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both sides of a batch as arrays, each less its mean, which changes no assignment.

    Raises:
        Diverged: A point is not finite, or too large for a square.
    """
    sides = [side.detach().double().cpu().numpy() for side in (x, z)]
    with np.errstate(over="ignore", invalid="ignore"):
        data, noise = (side - side.mean(0) for side in sides)
        finite = np.isfinite(np.vdot(data, data) + np.vdot(noise, noise))
    if not finite:
        raise Diverged(
            f"a batch of {len(sides[0])} points that are to be paired has distances that are not "
            "finite: look for missing or huge values in the data"
        )
    return data, noise


def least_cost(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the column of each row, a permutation that makes the sum of costs (n, n) least.

    scipy's shortest augmenting paths. A path is short where the entries of the optimum stand out,
    so the columns' dual potentials of the entropic problem are taken off first, and each row's
    least entry. Both change the cost of all permutations alike: the result is exact whatever the
    potentials are.

    References:
        On implementing 2D rectangular assignment algorithms (Crouse, IEEE TAES 2016),
        https://doi.org/10.1109/TAES.2016.140952
    """
    if len(cost) >= _SMALL:
        cost = cost - _potentials(cost)
        cost -= cost.min(1, keepdims=True)
    return linear_sum_assignment(cost)[1]


def _potentials(cost: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return nearly optimal dual potentials of the columns (n,), by cooling in float32."""
    scaled = torch.from_numpy(cost - cost.min())
    mean = float(scaled.mean())
    scaled = (scaled / mean).float()
    potentials = torch.zeros(len(cost))
    for temperature in _TEMPERATURES:
        kernel = potentials - scaled
        kernel -= kernel.max(1, keepdim=True).values
        kernel.div_(temperature).clamp_(min=_DEEPEST).exp_()
        columns = torch.ones_like(potentials)
        for _ in range(_ROUNDS):
            rows = (kernel @ columns).reciprocal_()
            columns = (rows @ kernel).reciprocal_()
        potentials += temperature * columns.log_()
    # Poor potentials make the search slow, not wrong, but NaN (of equal costs) would end it.
    return mean * potentials.nan_to_num_(0.0, 0.0, 0.0).double().numpy()
