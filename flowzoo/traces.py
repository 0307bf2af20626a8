"""Trace estimators: tr f(A) of a linear map seen through products.

f = identity is the divergence of a velocity; f = log of a positive definite Hessian is a
log-determinant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from flowzoo.errors import Incompatible
from flowzoo.field import Point, Velocity
from flowzoo.maps import LinearMap

Spectral = Callable[[Tensor], Tensor]
Noise = Literal["rademacher", "gaussian"]
Redraw = Literal["solve", "stage"]


class TraceEstimator(ABC):
    """Estimates tr f(A) for n maps at once.

    `needs` names what the map must provide (`symmetric`), `redraw` says whether probes are kept for
    a whole solve or drawn anew for every stage of a fixed grid. `differentiates` is False where a
    divergence takes no product with the Jacobian.
    """

    kind: ClassVar[str] = "trace"
    needs: frozenset[str] = frozenset()
    redraw: Redraw = "solve"
    differentiates: bool = True

    @abstractmethod
    def probes(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        """Draw probes (k, n, d) for places x (n, d); None where the estimator uses none."""

    @abstractmethod
    def __call__(self, a: LinearMap, probes: Tensor | None, fn: Spectral | None = None) -> Tensor:
        """Return tr fn(A) as (n,); fn acts on eigenvalues, None is the identity."""

    def divergence(
        self, velocity: Velocity, at: Point, probes: Tensor | None, context: Tensor | None = None
    ) -> Tensor:
        """Return div v as (n,): the trace of the Jacobian, unless it can be had without.

        Arguments:
            velocity: The velocity v.
            at: What it says at the time and the places; where the estimator does not
                differentiate, t, x and v alone.
            probes: What `probes` drew for these places.
            context: What the velocity is conditioned on, (n, c).
        """
        return self(at.jacobian, probes)


class Exact(TraceEstimator):
    """The trace itself: the map's closed form where it has one, else from all its rows.

    A spectral function needs a symmetric map and costs an eigenvalue decomposition. The logarithm,
    whose trace is the log-determinant, costs a Cholesky factor, and its gradient A^-1 an inverse by
    that factor; value and gradient are nan for a map that is not positive definite.
    """

    def probes(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Return None: nothing is random."""
        return

    def __call__(self, a: LinearMap, probes: Tensor | None, fn: Spectral | None = None) -> Tensor:
        """Return tr fn(A) as (n,)."""
        if fn is not None:
            require_symmetric(a, "exact")
        if fn is torch.log:
            return _log_det(a.dense())
        if fn is not None:
            return fn(torch.linalg.eigvalsh(a.dense())).sum(-1)
        trace = a.trace()
        return a.dense().diagonal(dim1=-2, dim2=-1).sum(-1) if trace is None else trace


class Hutchinson(TraceEstimator):
    """Hutchinson's estimator: tr A is the mean of p^T A p over probes with E[p p^T] = I.

    With as many probes as dimensions it uses the scaled basis vectors sqrt(d) e_i instead, and is
    exact.

    Arguments:
        noise: Law of the probes. Rademacher has the least variance; Gaussian is what FFJORD and
            RNODE published with.
        samples: Number of probes.
        redraw: `solve` keeps the probes along a trajectory, as adaptive and adjoint solvers need.
            `stage` draws new ones for every stage of a fixed grid, so that their errors average out
            along the trajectory.

    References:
        A Stochastic Estimator of the Trace of the Influence Matrix (Hutchinson, 1989); FFJORD
        (Grathwohl, Chen, Bettencourt, Sutskever & Duvenaud, ICLR 2019),
        https://arxiv.org/abs/1810.01367
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"noise": "gaussian"},
        {"samples": 3},
        {"redraw": "stage"},
    )

    def __init__(
        self, noise: Noise = "rademacher", samples: int = 1, redraw: Redraw = "solve"
    ) -> None:
        require_least("hutchinson", "samples", samples)
        self.noise: Noise = noise
        self.samples, self.redraw = samples, redraw

    def probes(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw (k, n, d) probes."""
        if self.samples >= x.shape[1]:
            return _basis(x)
        return draw(self.noise, (self.samples, *x.shape), x, generator)

    def __call__(self, a: LinearMap, probes: Tensor | None, fn: Spectral | None = None) -> Tensor:
        """Return the mean over probes of p^T A p, as (n,)."""
        _require_identity("hutchinson", fn)
        assert probes is not None
        return form(a, probes).mean(0)


class HutchPlusPlus(TraceEstimator):
    r"""Hutch++: exact on a sketch of the map's range, Hutchinson's estimate on the rest.

    Of m products with B = A^T, s = floor(m / 3) find its range and s more use it: with sketch
    probes S (d, s), the others G (d, m - 2 s), and an orthonormal basis Q of B S,

        tr A ~ tr(Q^T B Q) + tr(G'^T B G') / (m - 2 s),    G' = (I - Q Q^T) G.

    Exact for ranks up to s (signs may by chance sketch less), and from m = d on, where it takes a
    basis as Hutchinson does. Where the spectrum does not decay, m probes of Hutchinson do better.

    The gradient takes Q as constant: whatever Q is, the mean over G is tr A, so that this gradient
    is unbiased. How Q moves with A would add noise of mean zero, and the inverse of a matrix that
    is singular below rank s. So it is not the slope of the value for given probes, and it has the
    noise of m - 2 s probes, even where the value has almost none. A Jacobian penalty on these
    probes takes products of its own.

    Arguments:
        noise: Law of the probes.
        samples: Number m of products with the map, at least 3.
        redraw: `solve` keeps the probes along a trajectory, `stage` draws new ones at each stage.

    Raises:
        Incompatible: Fewer than 3 products.

    References:
        Hutch++: Optimal Stochastic Trace Estimation (Meyer, Musco, Musco & Woodruff, SOSA 2021),
        algorithm 1, https://arxiv.org/abs/2010.09649
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"noise": "gaussian", "samples": 7})

    def __init__(
        self, noise: Noise = "rademacher", samples: int = 3, redraw: Redraw = "solve"
    ) -> None:
        require_least("hutch++", "samples", samples, 3)
        self.noise: Noise = noise
        self.samples, self.redraw = samples, redraw

    def probes(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw (m - s, n, d) probes, those of the sketch first; (d, n, d) where m >= d."""
        if self.samples >= x.shape[1]:
            return _basis(x)
        return draw(self.noise, (self.samples - self.samples // 3, *x.shape), x, generator)

    def __call__(self, a: LinearMap, probes: Tensor | None, fn: Spectral | None = None) -> Tensor:
        """Return the estimate of tr A as (n,)."""
        _require_identity("hutch++", fn)
        assert probes is not None
        if self.samples >= probes.shape[-1]:
            return form(a, probes).mean(0)
        s = self.samples // 3
        # Householder's Q is orthonormal to rounding, whatever the rank of the sketch.
        q = torch.linalg.qr(a.vjp(probes[:s]).detach().permute(1, 2, 0))[0]
        g = probes[s:].permute(1, 2, 0)
        rest = (g - q @ (q.mT @ g)).permute(2, 0, 1)
        return form(a, q.permute(2, 0, 1)).sum(0) + form(a, rest).mean(0)


def _log_det(h: Tensor) -> Tensor:
    """Return log det H (n,) of positive definite matrices (n, d, d), else nan."""
    if torch.is_grad_enabled() and h.requires_grad:
        return _LogDet.apply(h)[0]
    return _factor(h)[1]


def _factor(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return Cholesky factors, log-determinants, and which there are not (n,)."""
    factor, failed = torch.linalg.cholesky_ex(h)
    failed = failed != 0
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return factor, log_det.masked_fill(failed, torch.nan), failed


class _LogDet(torch.autograd.Function):
    """(log det H, H^-1): the gradient of the first is the second, which alone is saved.

    The second's own derivative is made of itself, so that there are derivatives of all orders.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor) -> tuple[Tensor, Tensor]:
        factor, log_det, failed = _factor(h)
        eye = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
        factor = torch.where(failed[..., None, None], eye, factor)
        if h.device.type == "cpu":
            inverse = torch.cholesky_inverse(factor)
        else:  # where the former goes matrix by matrix
            half = torch.linalg.solve_triangular(factor, eye, upper=False)
            inverse = half.mT @ half
        return log_det, inverse.masked_fill(failed[..., None, None], torch.nan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(output[1])
        ctx.save_for_forward(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Tensor | None:
        (inverse,), (slope, bend) = ctx.saved_tensors, grads
        first = None if slope is None else slope[..., None, None] * inverse
        if bend is None:
            return first
        second = inverse @ bend @ inverse
        return -second if first is None else first - second

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore
        (inverse,) = ctx.saved_tensors
        return (inverse * tangent).sum((-2, -1)), -inverse @ tangent @ inverse


def draw(
    noise: Noise, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Draw noise with identity covariance, with the dtype and device of `like`."""
    if noise == "gaussian":
        return torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)
    bits = torch.randint(0, 2, shape, device=like.device, generator=generator)
    return (2 * bits - 1).to(like.dtype)


def _basis(x: Tensor) -> Tensor:
    """Return the d probes sqrt(d) e_i, the same for all places: their mean of p p^T is I."""
    n, d = x.shape
    basis = torch.eye(d, dtype=x.dtype, device=x.device) * d**0.5
    return basis[:, None, :].expand(d, n, d)


def form(a: LinearMap, probes: Tensor) -> Tensor:
    """Return p^T A p for probes (k, n, d), as (k, n)."""
    return (a.vjp(probes) * probes).sum(-1)


def _require_identity(name: str, fn: Spectral | None) -> None:
    if fn is not None:
        raise Incompatible(
            f"{name} estimates tr A alone; for a spectral function of A use slq or exact"
        )


def require_symmetric(a: LinearMap, name: str) -> None:
    """Raise Incompatible, in the estimator's name, where a map is not symmetric."""
    if not a.symmetric:
        raise Incompatible(
            f"{name} needs a symmetric map; the Jacobian of a potential's gradient is one"
        )


def require_reverse(y: Tensor, name: str) -> None:
    """Raise Incompatible, in the name of what y comes from, where y has a forward derivative."""
    if forward_ad.unpack_dual(y).tangent is not None:
        raise Incompatible(
            f"{name} has derivatives in reverse mode only: use torch.autograd.grad, or for a "
            "log-determinant the exact trace"
        )


def require_least(name: str, option: str, value: int, least: int = 1) -> None:
    """Raise Incompatible where an estimator's option is below what it must be."""
    if value < least:
        raise Incompatible(f"{name}: {option} must be at least {least}, got {value}")
