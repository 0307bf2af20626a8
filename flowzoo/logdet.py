"""Log-determinants and other spectral functions from Krylov spaces: SLQ, CG, and their pairs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from flowzoo.errors import Incompatible
from flowzoo.krylov import first_column, lanczos, quadrature, solve
from flowzoo.maps import LinearMap
from flowzoo.precondition import preconditioned
from flowzoo.traces import (
    Exact,
    Noise,
    Redraw,
    Spectral,
    TraceEstimator,
    draw,
    form,
    require_least,
    require_reverse,
    require_symmetric,
)

Rule = Literal["gauss", "radau"]
ONLY_FIRST = (
    "slq and cg give first derivatives of log-determinants only, and this loss differentiates a "
    "gradient again: use the exact trace"
)


class Krylov(TraceEstimator):
    r"""Estimates whose value and gradient come from one Krylov space of each probe.

    The value is the mean over probes of a quadrature for p^T f(A) p. The gradient is that of

        d tr f(A) = tr f'(A) dA = E[z^T dA p],    z = f'(A) p,

    with z from the same space and held constant: of all products only A p is differentiated, and
    memory does not grow with their number. First derivatives only.

    With `precondition` = m, the log-determinant is that of L^-1 A L^-T, plus 2 log det L, where
    L L^T is the mean of A over m samples of the batch. That changes no mean, neither of the value
    nor of the gradient, as L is constant. It cuts the number of products, and the noise where maps
    are far from diagonal in like ways. A sample's noise then depends on the others in its batch.
    """

    needs = frozenset({"symmetric"})
    name: ClassVar[str]

    def __init__(self, samples: int, noise: Noise, precondition: int) -> None:
        require_least(self.name, "samples", samples)
        require_least(self.name, "precondition", precondition, 0)
        self.samples, self.precondition = samples, precondition
        self.noise: Noise = noise

    @abstractmethod
    def of(
        self, a: LinearMap, probes: Tensor, product: Tensor, fn: Spectral
    ) -> tuple[Tensor, Tensor]:
        """Return quadratures (k, n) for p^T fn(A) p, and z = fn'(A) p (k, n, d), from A p."""

    def probes(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw (k, n, d) probes."""
        return draw(self.noise, (self.samples, *x.shape), x, generator)

    def __call__(self, a: LinearMap, probes: Tensor | None, fn: Spectral | None = None) -> Tensor:
        """Return the mean over probes of the quadrature, as (n,)."""
        assert probes is not None
        require_symmetric(a, self.name)
        if fn is None:
            return form(a, probes).mean(0)
        shift: float | Tensor = 0.0
        if self.precondition and fn is torch.log:
            a, shift = preconditioned(a, probes.shape[1], self.precondition)
        product = a.vjp(probes)
        require_reverse(product, self.name)
        values, z = self.of(a, probes, product.detach(), fn)
        value = values.mean(0) + shift
        return _Slope.apply(value, product, z / len(probes)) if product.requires_grad else value


class SLQ(Krylov):
    """Stochastic Lanczos quadrature: Gauss quadrature of f on the spectral measure of each probe.

    Each probe p gives |p|^2 sum_j w_j f(theta_j), with theta_j the eigenvalues of the Lanczos
    matrix T and w_j the squared first entries of its eigenvectors; the gradient has
    z = |p| Q f'(T) e_1 with the Lanczos vectors Q. Exact for polynomials f up to degree
    2 `steps` - 1, and for any f from d steps on. With fewer, log-determinants come out too large.
    The identity is left to Hutchinson's estimator, which needs no quadrature.

    Arguments:
        samples: Number of probes.
        steps: Lanczos steps, at most d are taken.
        noise: Law of the probes.
        rule: `radau` fixes a node of the quadrature at the map's lower bound `floor`, so that
            log-determinants come out too small.
        precondition: Samples whose mean preconditions a log-determinant; 0 for none.

    Raises:
        Incompatible: A number is too small.

    References:
        Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature (Ubaru, Chen & Saad, SIAM J.
        Matrix Anal. 2017)
    """

    name = "slq"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"samples": 2}, {"rule": "radau"})

    def __init__(
        self,
        samples: int = 1,
        steps: int = 10,
        noise: Noise = "rademacher",
        rule: Rule = "gauss",
        precondition: int = 0,
    ) -> None:
        super().__init__(samples, noise, precondition)
        require_least("slq", "steps", steps)
        self.steps = steps
        self.rule: Rule = rule

    def of(
        self, a: LinearMap, probes: Tensor, product: Tensor, fn: Spectral
    ) -> tuple[Tensor, Tensor]:
        """Return quadratures (k, n), and z = |p| Q fn'(T) e_1 (k, n, d)."""
        t, basis = lanczos(a, probes, self.steps, product)
        nodes, vectors = t.gauss()
        norm = probes.norm(dim=-1)
        z = norm[..., None] * (first_column(fn, nodes, vectors)[..., None, :] @ basis)[..., 0, :]
        if self.rule == "radau":
            nodes, vectors = t.radau(positive_floor(a, probes))
        return _weighed(probes, quadrature(fn, nodes, vectors)), z


class CG(Krylov):
    """Log-determinants by conjugate gradients: z = A^-1 p, and the value from the same steps.

    The lengths of the steps are the entries of the Lanczos matrix T, whose Gauss quadrature gives
    p^T log(A) p. Nothing is stored but a few vectors. Each sample stops by itself.

    Arguments:
        samples: Number of probes.
        atol: The steps end when no entry of p - A z exceeds this,
        rtol: and this times the largest entry of p.
        cap: Most steps; d when left out.
        noise: Law of the probes.
        precondition: Samples whose mean preconditions; 0 for none.

    Raises:
        Incompatible: A number is too small.

    References:
        Convex Potential Flows (Huang, Chen, Tsirigotis & Courville, ICLR 2021), algorithms 1 and 2,
        https://arxiv.org/abs/2012.05942; GPyTorch (Gardner, Pleiss, Bindel, Weinberger & Wilson,
        NeurIPS 2018), https://arxiv.org/abs/1809.11165, for T from conjugate gradients
    """

    name = "cg"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"noise": "gaussian", "samples": 2})

    def __init__(
        self,
        samples: int = 1,
        atol: float = 1e-3,
        rtol: float = 0.0,
        cap: int | None = None,
        noise: Noise = "rademacher",
        precondition: int = 0,
    ) -> None:
        super().__init__(samples, noise, precondition)
        if cap is not None:
            require_least("cg", "cap", cap)
        if not (atol >= 0 and rtol >= 0):
            raise Incompatible(f"cg: tolerances must not be negative, got {atol:g} and {rtol:g}")
        self.atol, self.rtol, self.cap = atol, rtol, cap

    def of(
        self, a: LinearMap, probes: Tensor, product: Tensor, fn: Spectral
    ) -> tuple[Tensor, Tensor]:
        """Return quadratures (k, n), and z = A^-1 p (k, n, d); fn must be the logarithm."""
        if fn is not torch.log:
            raise Incompatible("cg knows the logarithm alone; for other functions use slq or exact")
        found = solve(a, probes, self.atol, self.rtol, self.cap, product)
        return _weighed(probes, quadrature(fn, *found.tridiagonal.gauss())), found.x


class Surrogate(TraceEstimator):
    """The value of one estimator with the gradient of another, each with probes of its own.

    Arguments:
        value: Gives the value, and is not differentiated; exact when left out.
        gradient: Gives the gradient; cg when left out.

    References:
        Convex Potential Flows (Huang, Chen, Tsirigotis & Courville, ICLR 2021), algorithm 2,
        https://arxiv.org/abs/2012.05942: the gradient of cg
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"value": {"name": "slq", "samples": 2}, "gradient": "cg"},
    )

    def __init__(
        self, value: TraceEstimator | None = None, gradient: TraceEstimator | None = None
    ) -> None:
        self.value, self.gradient = value or Exact(), gradient or CG()
        self.needs = self.value.needs | self.gradient.needs
        stage = "stage" in (self.value.redraw, self.gradient.redraw)
        self.redraw: Redraw = "stage" if stage else "solve"

    def probes(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        """Draw the probes of the value, then those of the gradient."""
        drawn = [part.probes(x, generator) for part in (self.value, self.gradient)]
        some = [p for p in drawn if p is not None]
        return torch.cat(some) if some else None

    def __call__(self, a: LinearMap, probes: Tensor | None, fn: Spectral | None = None) -> Tensor:
        """Return tr fn(A) as (n,)."""
        first = second = None
        if probes is not None:
            # Probes for no places tell how many the value draws.
            none = self.value.probes(probes[0, :0])
            count = 0 if none is None else len(none)
            first, second = (p if len(p) else None for p in (probes[:count], probes[count:]))
        with torch.no_grad():
            value = self.value(a, first, fn)
        if not torch.is_grad_enabled():
            return value
        gradient = self.gradient(a, second, fn)
        return value + (gradient - gradient.detach())


@torch.no_grad()
def brackets(
    a: LinearMap, probes: Tensor, steps: int, fn: Spectral = torch.log
) -> tuple[Tensor, Tensor]:
    """Return bounds (k, n) of p^T fn(A) p, from below and above, by one Lanczos run for each probe.

    Those of Gauss-Radau and Gauss, for a function like the logarithm: odd derivatives positive,
    even ones negative.

    Arguments:
        a: Symmetric maps with a positive `floor`.
        probes: (k, n, d).
        steps: Lanczos steps.
        fn: The function.

    Raises:
        Incompatible: The maps are not symmetric, or have no positive lower bound.
    """
    require_symmetric(a, "a bracket")
    t, _ = lanczos(a, probes, steps)
    lower, upper = t.radau(positive_floor(a, probes)), t.gauss()
    return _weighed(probes, quadrature(fn, *lower)), _weighed(probes, quadrature(fn, *upper))


def positive_floor(a: LinearMap, like: Tensor) -> Tensor:
    """Return the lower bound () of a map's spectrum.

    Raises:
        Incompatible: There is none, or it is not positive.
    """
    given = 0.0 if a.floor is None else a.floor
    floor = torch.as_tensor(given, dtype=like.dtype, device=like.device).detach()
    if not bool(floor > 0):
        raise Incompatible(
            "the radau rule needs a positive lower bound of the spectrum, as the Hessian of a "
            "strongly convex potential has one; use the gauss rule"
        )
    return floor


def _weighed(probes: Tensor, values: Tensor) -> Tensor:
    """Return |p|^2 times the values (k, n); 0 for a probe of zeros."""
    square = probes.square().sum(-1)
    return torch.where(square > 0, square * values, torch.zeros_like(values))


class _Slope(torch.autograd.Function):
    """A value, with sum_k z_k . A p_k for z constant as its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, product: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        if torch.is_grad_enabled():  # z depends on A, and the gradient below does not know how
            raise Incompatible(ONLY_FIRST)
        (z,) = ctx.saved_tensors
        return None, grads[0][:, None] * z, None
