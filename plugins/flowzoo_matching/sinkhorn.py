"""The entropic coupling of a batch, on the device that the batch is on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowzoo.errors import Diverged, Incompatible
from flowzoo_matching.coupling import Coupling, Pairs

_AT_ONCE = 10  # iterations between two looks at the error, each of which waits for the device
_DEEPEST = -60.0  # of exponents: entries below are no more than rounding, and slow (subnormal)


class Sinkhorn(Coupling):
    """Pairs from the plan P that makes <P, |x - z|^2> - e H(P) least, e relative to the mean cost.

    Each data point is taken once, and its noise drawn from its row of the plan; a noise point may
    be taken several times or not at all, once on average. A small e comes close to `exact-ot` and
    takes many iterations, a large one is `independent`.

    Arguments:
        epsilon: e in units of the mean cost of the batch's n^2 possible pairs.
        iterations: How many iterations are made at most.
        tolerance: How far the expected number of times that a noise point is drawn may be off 1.

    Raises:
        Incompatible: An option is not positive.

    References:
        Sinkhorn Distances (Cuturi, NeurIPS 2013), https://arxiv.org/abs/1306.0895; Multisample Flow
        Matching (Pooladian et al., ICML 2023), https://arxiv.org/abs/2304.14772
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"epsilon": 1.0})

    def __init__(
        self, epsilon: float = 0.05, iterations: int = 1000, tolerance: float = 0.01
    ) -> None:
        if not min(epsilon, iterations, tolerance) > 0:
            raise Incompatible(
                "sinkhorn needs epsilon, iterations and tolerance above 0, got "
                f"{epsilon}, {iterations} and {tolerance}"
            )
        self.epsilon, self.iterations, self.tolerance = epsilon, iterations, tolerance

    def pair(
        self,
        x: Tensor,
        z: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Pairs:
        """Return the data as they come, each with a noise point drawn for it.

        Raises:
            Diverged: A point is not finite, or the iterations were too few.
        """
        # Squares of one point change no plan; less the means, products keep their digits.
        x, z = (side.detach() - side.detach().mean(0) for side in (x, z))
        mean = (x.square().sum() + z.square().sum()) / len(x)
        epsilon = (self.epsilon * mean).clamp(min=torch.finfo(x.dtype).tiny)
        # Where squares overflow, products over them are 0, and would pass for costs.
        cost = torch.where(epsilon.isfinite(), -2 * (x @ z.T) / epsilon, torch.nan)
        rows = conditionals(cost, self.iterations, self.tolerance)
        return Pairs(noise=torch.multinomial(rows, 1, generator=generator)[:, 0])


def conditionals(cost: Tensor, iterations: int, tolerance: float) -> Tensor:
    """Return the law of the column given the row (n, n) under the entropic plan, n times the plan.

    The potentials are kept as logarithms. Ten iterations at a time multiply the plan that they
    make by factors, which costs no exponential; the plan is then made anew, so that no factor
    grows beyond what its precision holds. The rows sum to 1, the columns up to the tolerance.

    Arguments:
        cost: Costs (n, n) over the entropy's weight.
        iterations: How many are made at most.
        tolerance: How far the sum of a column may be from 1.

    Raises:
        Diverged: The columns are not within the tolerance, or not finite.
    """
    potentials, done = cost.new_zeros(cost.shape[1]), 0
    while True:
        kernel = (potentials - cost).log_softmax(1).clamp_(min=_DEEPEST).exp_()
        sums = kernel.sum(0)
        error = float((sums - 1).abs().amax())  # waits for the device
        if error <= tolerance:
            return kernel
        if not math.isfinite(error):
            raise Diverged(
                f"sinkhorn met costs that are not finite in a batch of {len(cost)} points: "
                "look for missing or huge values in the data"
            )
        if done >= iterations:
            raise Diverged(
                f"sinkhorn's plan is off its marginal by {error:.2g} after {done} iterations, "
                f"tolerance {tolerance:g}: raise epsilon or iterations"
            )
        columns = sums.reciprocal()
        for _ in range(_AT_ONCE - 1):
            rows = (kernel @ columns).reciprocal_()
            columns = (rows @ kernel).reciprocal_()
        potentials, done = potentials + columns.log(), done + _AT_ONCE
