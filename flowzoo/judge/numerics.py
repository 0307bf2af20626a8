"""The judge's numerics: what every flow is solved by, whatever it was trained with."""

from __future__ import annotations

import torch
from torch import Tensor

from flowzoo.logdet import SLQ, Rule
from flowzoo.maps import LinearMap
from flowzoo.traces import Exact, Spectral, TraceEstimator

TOLERANCE = 1e-5  # relative and absolute, of the judge's solver
FINER = 100.0  # the finer solve's tolerance is that of the judge divided by this
DENSE = 1024  # largest dimension in which a log-determinant is taken from the whole Hessian


class JudgeTrace(TraceEstimator):
    """Divergences exactly; log-determinants exactly up to a dimension, beyond it by SLQ.

    tr A is the map's closed form, or the sum over all its rows. tr log A = log det A of a convex
    flow's Hessian is exact, by Cholesky, for d <= `dense`. Beyond, it is estimated by stochastic
    Lanczos quadrature; the judge then measures the noise by independent probes, and the truncation
    by the rule that errs to the other side.

    Arguments:
        dense: Largest dimension of an exact log-determinant.
        samples: Probes of SLQ.
        steps: Lanczos steps of SLQ.
        rule: Quadrature of SLQ: `gauss` over-estimates a log-determinant, `radau` under-estimates.
    """

    def __init__(
        self, dense: int = DENSE, samples: int = 8, steps: int = 32, rule: Rule = "gauss"
    ) -> None:
        self.dense, self.exact, self.slq = dense, Exact(), SLQ(samples, steps, rule=rule)

    def probes(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        """Draw probes (k, n, d) where SLQ may need them."""
        return None if x.shape[-1] <= self.dense else self.slq.probes(x, generator)

    def __call__(self, a: LinearMap, probes: Tensor | None, fn: Spectral | None = None) -> Tensor:
        """Return tr fn(A) as (n,)."""
        estimator = self.exact if fn is None or probes is None else self.slq
        return estimator(a, probes, fn)

    def below(self) -> JudgeTrace:
        """Return the same with the rule that under-estimates log-determinants."""
        return JudgeTrace(self.dense, self.slq.samples, self.slq.steps, "radau")


def piece(dim: int) -> int:
    """Return how many points to solve at once: an exact trace sends dim rows for each of them.

    2^14 rows through layers of 860 units take 0.4 GB, or 0.7 GB where v is a gradient.
    """
    return max(16, min(4096, 2**14 // dim))
