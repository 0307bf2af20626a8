"""Inversions: how grad F(x) = z is solved for x, and what became of each sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from flowzoo.errors import Diverged, Incompatible, UserError
from flowzoo_cp_flow.convex import ConvexPoint
from flowzoo_cp_flow.implicit import differentiable

At: TypeAlias = Callable[[Tensor, Tensor | None], ConvexPoint]
OnFailure: TypeAlias = Literal["raise", "nan", "keep"]


@dataclass(frozen=True)
class Inverted:
    """What came of an inversion.

    Arguments:
        x: Points (n, d); the last ones reached where it failed.
        residual: |grad F(x) - z| (n,).
        iterations: Evaluations of grad F after the first one, of each sample (n,).
        converged: Where the residual is within the tolerance, or as small as rounding lets it be
            (n,).
        indefinite: Where it stopped at a Hessian that is not positive definite (n,).
        floor: A lower bound of the eigenvalues of all Hessians, where one is known.
    """

    x: Tensor
    residual: Tensor
    iterations: Tensor
    converged: Tensor
    indefinite: Tensor | None = None
    floor: float | Tensor | None = None

    @property
    def distance(self) -> Tensor:
        """A bound (n,) of the distance of x to the solution: residual / floor, for a convex F."""
        floor = torch.as_tensor(0.0 if self.floor is None else self.floor).to(self.residual)
        return torch.where(floor > 0, self.residual / floor, torch.inf)


class Inversion(ABC):
    """Solves grad F(x) = z for x, each sample to a tolerance of |grad F(x) - z|.

    A subclass implements `search`. F comes as a function `at` of places x (n, d) and a context
    (n, c) or None, that gives value, gradient and Hessian.

    Arguments:
        tolerance: Residual that passes; when left out 1e-10 in float64 and 1e-5 in float32.
        failed: What a sample that did not converge makes of an inversion: `raise` an error, a `nan`
            in its place, or `keep` where it got to.

    Raises:
        UserError: The tolerance is not positive.
    """

    kind: ClassVar[str] = "inversion"
    checks: ClassVar[str] = "flowzoo_cp_flow.conformance.inversion"
    name: ClassVar[str] = "inversion"

    def __init__(self, tolerance: float | None = None, failed: OnFailure = "raise") -> None:
        if tolerance is not None and not tolerance > 0:
            raise UserError(f"{self.name}: tolerance must be positive, got {tolerance}")
        self.tolerance = tolerance
        self.failed: OnFailure = failed

    @abstractmethod
    def search(self, at: At, z: Tensor, context: Tensor | None) -> Inverted:
        """Solve for finite z (n, d), n > 0, without gradients."""

    def allowed(self, dtype: torch.dtype) -> float:
        """Return the residual that passes in a precision."""
        if self.tolerance is not None:
            return self.tolerance
        return 1e-10 if dtype == torch.float64 else 1e-5

    def solve(self, at: At, z: Tensor, context: Tensor | None = None) -> Inverted:
        """Return the solutions, without gradients, and what became of each sample.

        What did not converge is flagged; nothing is raised for it.

        Arguments:
            at: F.
            z: What grad F should be (n, d); a sample with nan or inf fails, the others are solved.
            context: (n, c) or None.

        Raises:
            Incompatible: There are not as many contexts as z.
        """
        if context is not None and len(context) != len(z):
            raise Incompatible(
                f"{self.name}: every z needs a context of its own, got {len(context)} for {len(z)}"
            )
        with torch.inference_mode(False), torch.no_grad():
            if not len(z):
                none = z.new_zeros(0)
                return Inverted(z.clone(), none, none.long(), none.bool(), none.bool())
            known = z.isfinite().all(-1)
            if context is not None:
                known = known & context.isfinite().all(-1)
                context = torch.where(known[:, None], context, torch.zeros_like(context))
            found = self.search(at, torch.where(known[:, None], z, torch.zeros_like(z)), context)
            return replace(
                found,
                x=found.x.masked_fill(~known[:, None], torch.nan),
                residual=found.residual.masked_fill(~known, torch.nan),
                converged=found.converged & known,
            )

    def __call__(self, at: At, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return x (n, d) with grad F(x) = z, differentiable in z, the context and the weights.

        First derivatives only, by the implicit function theorem.

        Arguments:
            at: F.
            z: (n, d).
            context: (n, c) or None.

        Raises:
            Diverged: A sample did not converge, and `failed` is `raise`.
        """
        found = self.solve(at, z, context)
        if self.failed == "raise" and not bool(found.converged.all()):
            raise Diverged(self._complaint(found, z, context))
        x = differentiable(at, found.x, z, context)
        return x if self.failed != "nan" else x.masked_fill(~found.converged[:, None], torch.nan)

    def _complaint(self, found: Inverted, z: Tensor, context: Tensor | None) -> str:
        bad = ~found.converged
        start = f"{self.name}: {int(bad.sum())} of {len(z)} samples were not inverted"
        advice = "set failed: keep or nan to go on without them"
        for what, y in (("z", z), ("contexts", context)):
            which = [] if y is None else (~y.detach().isfinite().all(-1)).nonzero()[:, 0].tolist()
            if which:
                return (
                    f"{start}: {len(which)} of the {what} hold nan or inf, the first is number "
                    f"{which[0]}; {advice}"
                )
        if found.indefinite is not None and bool(found.indefinite.any()):
            many = int(found.indefinite.sum())
            return (
                f"{start}: {many} met a Hessian that is not positive definite, so the potential is "
                f"not strictly convex there; {advice}"
            )
        worst = float(found.residual[bad].max())
        return (
            f"{start}: the worst residual is {worst:.2g} after {int(found.iterations.max())} "
            f"iterations, allowed {self.allowed(z.dtype):.2g}; allow more iterations or a larger "
            f"tolerance, use float64, bound the Hessian from below (least), or {advice}"
        )
