"""Newton's method for grad F(x) = z: each sample takes its own steps and stops by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from flowzoo.errors import UserError
from flowzoo.krylov import solve
from flowzoo.maps import LinearMap
from flowzoo.precondition import Congruent, preconditioned
from flowzoo_cp_flow.implicit import factored
from flowzoo_cp_flow.inversion import At, Inversion, Inverted, OnFailure

Solver: TypeAlias = Literal["auto", "cholesky", "cg"]

_FEW = 32  # dimensions up to which Cholesky factors are fastest, on a CPU
_MEAN = 32  # points whose mean Hessian starts and scales the search
_BLOCK = 2**23  # entries of the Hessians that are in memory at once
_DECREASE = 1e-4  # share of the predicted decrease that a step must reach (Armijo)
_GROWTH = 4.0  # of the first step tried, over the last one taken
_FORCING = 0.1  # the largest residual of a linear solve, relative to its right-hand side
_ROUNDING = 4.0  # residuals that rounding may leave, in units of eps (|z| + |H| |x|)


class Newton(Inversion):
    r"""Damped Newton: x moves by t p with H p = z - grad F(x), t halved until the residual falls.

    The residual that has to fall is r^T M^-1 r with the mean Hessian M of some points, which does
    not depend on the coordinates of x. The first step, from 0, is p = -M^-1 r. All samples are
    evaluated together, once per iteration: a sample whose step was refused tries a shorter one
    while others take their next. Those that are done leave the batch.

    H p is solved for by Cholesky factors, or by conjugate gradients in the coordinates that make M
    the identity, as exactly as the present residual deserves.

    Arguments:
        tolerance: Residual that passes; when left out 1e-10 in float64 and 1e-5 in float32. Where
            rounding does not let a residual fall that far, it passes where it ceases to fall.
        iterations: Most evaluations of grad F after that at 0.
        solver: `cholesky`, `cg`, or by the dimension.
        failed: What becomes of samples that do not converge: `raise`, `nan` or `keep`.

    Raises:
        UserError: A number is not positive.

    References:
        Numerical Optimization (Nocedal & Wright, 2nd edition, Springer 2006), chapters 7 and 11;
        Choosing the Forcing Terms in an Inexact Newton Method (Eisenstat & Walker, SIAM J. Sci.
        Comput. 1996)
    """

    name = "newton"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"solver": "cg"}, {"tolerance": 1e-6})

    def __init__(
        self,
        tolerance: float | None = None,
        iterations: int = 500,
        solver: Solver = "auto",
        failed: OnFailure = "raise",
    ) -> None:
        super().__init__(tolerance, failed)
        if iterations < 1:
            raise UserError(f"newton: iterations must be at least 1, got {iterations}")
        self.iterations = iterations
        self.solver: Solver = solver

    def search(self, at: At, z: Tensor, context: Tensor | None) -> Inverted:
        """Solve for finite z (n, d), n > 0, without gradients."""
        direct = self.solver == "cholesky" or (self.solver == "auto" and z.shape[-1] <= _FEW)
        run = _Search(at, z, context, self.allowed(z.dtype), direct)
        for k in range(self.iterations):
            if not run.goes_on(k):
                break
            run.advance()
        return run.report(self.iterations)


class _Search:
    """A search under way, for the samples that are not done.

    Arguments:
        at: F.
        z: What grad F should be (n, d).
        context: (n, c) or None.
        tolerance: Residual that passes.
        direct: Whether linear systems are solved by Cholesky factors.
    """

    def __init__(
        self, at: At, z: Tensor, context: Tensor | None, tolerance: float, direct: bool
    ) -> None:
        self.at, self.context, self.tolerance, self.direct = at, context, tolerance, direct
        self.metric, scale = _mean_hessian(at, z, context)
        self.x, self.z = torch.zeros_like(z), z
        # Without contexts, what is known at 0 is the same for all.
        self.point = at(self.x if context is not None else self.x[:1], context)
        self.r = self.point.gradient - z
        self.norm, self.merit = self.r.norm(dim=-1), self._merit(self.r)
        zero, no = torch.zeros_like(self.norm), torch.zeros_like(self.norm, dtype=torch.bool)
        self.index = torch.arange(len(z), device=z.device)
        self.p, self.step = -self.r @ self.metric.mT @ self.metric, torch.ones_like(zero)
        self.size = scale.expand_as(zero).clone()  # of the Hessian
        self.forcing = zero if direct else torch.full_like(zero, _FORCING)
        self.moved, self.indefinite = no, no.clone()
        self.found = Inverted(
            x=self.x.clone(),
            residual=self.norm.clone(),
            iterations=torch.zeros_like(self.index),
            converged=no.clone(),
            indefinite=no.clone(),
            floor=self.point.hessian.floor,
        )

    def goes_on(self, k: int) -> bool:
        """Return whether samples are left after k iterations; they get their next direction."""
        converged = self._converged()
        eps = torch.finfo(self.norm.dtype).eps
        length, reach = self.p.norm(dim=-1), self.x.norm(dim=-1)
        stuck = ~self.moved & (self.step * length <= eps * torch.maximum(length, reach))
        done = converged | stuck | ~self.norm.isfinite()
        # The one wait for an accelerator.
        over, moved = torch.stack([done, self.moved]).cpu()
        if over.any():
            self._store(done, converged, k)
        left = (~over).nonzero()[:, 0].to(done.device)
        fresh = (moved & ~over).nonzero()[:, 0].to(done.device)
        if len(fresh):
            self._direct(fresh)
        if len(left) < len(over):
            self._keep(left)
        return len(left) > 0

    def advance(self) -> None:
        """Try the steps, and take those that bring the residual down."""
        trial = torch.addcmul(self.x, self.step[:, None], self.p)
        self.point = self.at(trial, self.context)
        r = self.point.gradient - self.z
        norm, merit = r.norm(dim=-1), self._merit(r)
        predicted = 1 - _DECREASE * self.step * (1 - self.forcing)
        self.moved = merit < predicted * self.merit
        if not self.direct:
            self.forcing = torch.where(self.moved, self._forced(merit, norm), self.forcing)
        self.step = torch.where(self.moved, (_GROWTH * self.step).clamp(max=1), 0.5 * self.step)
        self.x = torch.where(self.moved[:, None], trial, self.x)
        self.r = torch.where(self.moved[:, None], r, self.r)
        self.norm = torch.where(self.moved, norm, self.norm)
        self.merit = torch.where(self.moved, merit, self.merit)

    def report(self, k: int) -> Inverted:
        """Return what became of all samples, those still under way after k iterations included."""
        if len(self.index):
            everyone = torch.ones_like(self.moved)
            self._store(everyone, self._converged(), k)
        return self.found

    def _converged(self) -> Tensor:
        eps = torch.finfo(self.norm.dtype).eps
        reach = self.z.norm(dim=-1) + self.size * self.x.norm(dim=-1)
        rounded = ~self.moved & (self.norm <= _ROUNDING * eps * reach)
        return (self.norm <= self.tolerance) | rounded

    def _merit(self, r: Tensor) -> Tensor:
        return (r @ self.metric.mT).norm(dim=-1)

    def _forced(self, merit: Tensor, norm: Tensor) -> Tensor:
        """Return how exactly the next systems are to be solved (Eisenstat & Walker's choice 2)."""
        eta = 0.9 * (merit / self.merit).square()
        return torch.maximum(eta, 0.5 * self.tolerance / norm).clamp(max=_FORCING)

    def _direct(self, fresh: Tensor) -> None:
        """Set the directions of some samples."""
        hessian, asked = self.point.hessian, fresh
        if len(fresh) < len(self.index):
            some = hessian.rows(fresh)
            if some is None:  # of all, then, also where no direction is needed
                asked = torch.arange(len(self.index), device=fresh.device)
            hessian = hessian if some is None else some
        r = self.r[asked]
        if self.direct:
            p, bad, size = _exact(hessian, r)
        else:
            within = Congruent(hessian, self.metric)
            p, bad = _inexact(within, r @ self.metric.mT, self.forcing[asked])
            p, size = p @ self.metric, self.size[asked]
        p = torch.where(bad[:, None], torch.zeros_like(p), -p)
        pick = slice(None) if len(asked) == len(fresh) else fresh
        self.p[fresh], self.indefinite[fresh], self.size[fresh] = p[pick], bad[pick], size[pick]

    def _keep(self, left: Tensor) -> None:
        for name in (
            "index", "x", "z", "r", "p", "norm", "merit", "step", "size", "forcing", "moved",
            "indefinite",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name)[left])
        if self.context is not None:
            self.context = self.context[left]

    def _store(self, done: Tensor, converged: Tensor, k: int) -> None:
        index, found = self.index[done], self.found
        found.x[index], found.residual[index] = self.x[done], self.norm[done]
        found.converged[index], found.iterations[index] = converged[done], k
        if found.indefinite is not None:
            found.indefinite[index] = self.indefinite[done]


def _mean_hessian(at: At, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return W (d, d) with W^T W = M^-1 for the mean Hessian M of some points, and the size of M.

    The points are normal, as standardised data are.
    """
    m = min(_MEAN, len(z))
    draws = torch.Generator().manual_seed(0)
    points = torch.randn(m, z.shape[-1], generator=draws, dtype=torch.float64).to(z)
    hessian = at(points, None if context is None else context[:m]).hessian
    w = preconditioned(hessian, m, m)[0].w
    eye = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)
    return w, torch.linalg.solve_triangular(w, eye, upper=False).norm().square()


def _exact(hessian: LinearMap, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return H^-1 r (n, d), where H is not positive definite, and |H| (n,)."""
    n, d = r.shape
    blocks = torch.arange(n, device=r.device).split(max(1, _BLOCK // d**2))
    parts = [hessian.rows(index) for index in blocks] if len(blocks) > 1 else []
    found = []
    for index, part in zip(blocks, parts, strict=False):
        if part is None:
            break
        found.append(_exact(part, r[index]))
    else:
        if found:
            p, bad, size = (torch.cat(every) for every in zip(*found, strict=True))
            return p, bad, size
    factor, bad, size = factored(hessian.dense())
    return torch.cholesky_solve(r[..., None], factor)[..., 0], bad, size


def _inexact(hessian: LinearMap, r: Tensor, forcing: Tensor) -> tuple[Tensor, Tensor]:
    """Return p (n, d) with |H p - r| <= forcing |r|, and where H is not positive definite."""
    d = r.shape[-1]
    # Each sample in units of what it may be off by: the solver's tolerance is one for all, and of
    # the largest entry.
    unit = (forcing * r.norm(dim=-1) / math.sqrt(d)).clamp_min(torch.finfo(r.dtype).tiny)[:, None]
    cap = 2 * d
    found = solve(hessian, (r / unit)[None], atol=1.0, cap=cap)
    bad = ~found.converged & (found.steps < cap)
    return found.x[0] * unit, bad[0]
