"""L-BFGS on a whole batch, as CP-Flow was published with; its residuals are reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from flowzoo.errors import UserError
from flowzoo_cp_flow.inversion import At, Inversion, Inverted, OnFailure

_HISTORY = 100
_CHANGE = 1e-12  # of the gradient or the value, at which it stops


class LBFGS(Inversion):
    """min over x of F(x) - x . z, summed over the batch, by L-BFGS with strong Wolfe steps.

    All samples share one curvature memory and one step length, so that the answer for a sample
    depends on the others, and more samples need more iterations. It stops when the sum hardly
    changes, at an error in x of the square root of rounding. It is here to compare with: Newton's
    method is more exact.

    Arguments:
        tolerance: Residual that passes; when left out 1e-5 in float64 and 0.1 in float32.
        iterations: Most iterations; the published code allows a million.
        failed: What becomes of samples that do not converge: `raise`, `nan` or `keep`.

    Raises:
        UserError: A number is not positive.

    References:
        Convex Potential Flows (Huang, Chen, Tsirigotis & Courville, ICLR 2021),
        https://arxiv.org/abs/2012.05942, and its code; On the Limited Memory BFGS Method for Large
        Scale Optimization (Liu & Nocedal, Mathematical Programming 1989)
    """

    name = "l-bfgs"
    expected_failures: ClassVar[Mapping[str, str]] = {
        "failures": "samples share one step length, so one without a solution holds up the others"
    }

    def __init__(
        self,
        tolerance: float | None = None,
        iterations: int = 1000,
        failed: OnFailure = "raise",
    ) -> None:
        super().__init__(tolerance, failed)
        if iterations < 1:
            raise UserError(f"l-bfgs: iterations must be at least 1, got {iterations}")
        self.iterations = iterations

    def allowed(self, dtype: torch.dtype) -> float:
        """Return the residual that passes in a precision."""
        if self.tolerance is not None:
            return self.tolerance
        return 1e-5 if dtype == torch.float64 else 0.1

    def search(self, at: At, z: Tensor, context: Tensor | None) -> Inverted:
        """Solve for finite z (n, d), n > 0, without gradients."""
        x = z.clone()
        search = torch.optim.LBFGS(
            [x],
            max_iter=self.iterations,
            max_eval=25 * self.iterations,  # no less than its line searches may need
            tolerance_grad=_CHANGE,
            tolerance_change=_CHANGE,
            history_size=_HISTORY,
            line_search_fn="strong_wolfe",
        )

        @torch.no_grad()
        def value() -> Tensor:
            point = at(x, context)
            x.grad = point.gradient - z
            return (point.value - (x * z).sum(-1)).sum()

        search.step(value)  # pyright: ignore[reportArgumentType]
        point = at(x, context)
        residual = (point.gradient - z).norm(dim=-1)
        taken = search.state[x].get("n_iter", 0)
        return Inverted(
            x=x,
            residual=residual,
            iterations=torch.full_like(residual, taken, dtype=torch.long),
            converged=residual <= self.allowed(z.dtype),
            floor=point.hessian.floor,
        )
