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

from flowzoo.errors import Incompatible
from flowzoo.maps import LinearMap

Spectral = Callable[[Tensor], Tensor]
Noise = Literal["rademacher", "gaussian"]
Redraw = Literal["solve", "stage"]


class TraceEstimator(ABC):
    """Estimates tr f(A) for n maps at once.

    `needs` names what the map must provide (`symmetric`), `redraw` says whether probes are kept for
    a whole solve or drawn anew for every stage of a fixed grid.
    """

    kind: ClassVar[str] = "trace"
    needs: frozenset[str] = frozenset()
    redraw: Redraw = "solve"

    @abstractmethod
    def probes(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        """Draw probes (k, n, d) for places x (n, d); None where the estimator uses none."""

    @abstractmethod
    def __call__(self, a: LinearMap, probes: Tensor | None, fn: Spectral | None = None) -> Tensor:
        """Return tr fn(A) as (n,); fn acts on eigenvalues, None is the identity."""


class Exact(TraceEstimator):
    """The trace itself: the map's closed form where it has one, else from all its rows.

    A spectral function needs a symmetric map and costs an eigenvalue decomposition; the logarithm
    of a positive definite map, whose trace is the log-determinant, costs a Cholesky factor.
    """

    def probes(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Return None: nothing is random."""
        return

    def __call__(self, a: LinearMap, probes: Tensor | None, fn: Spectral | None = None) -> Tensor:
        """Return tr fn(A) as (n,); nan for the logarithm of a map that is not positive definite."""
        if fn is torch.log:
            _require_symmetric(a, "exact")
            factor, failed = torch.linalg.cholesky_ex(a.dense())
            log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            return log_det.masked_fill(failed != 0, torch.nan)
        if fn is not None:
            _require_symmetric(a, "exact")
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
        _require_least("hutchinson", "samples", samples)
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
        return _form(a, probes).mean(0)


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
        _require_least("hutch++", "samples", samples, 3)
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
            return _form(a, probes).mean(0)
        s = self.samples // 3
        # Householder's Q is orthonormal to rounding, whatever the rank of the sketch.
        q = torch.linalg.qr(a.vjp(probes[:s]).detach().permute(1, 2, 0))[0]
        g = probes[s:].permute(1, 2, 0)
        rest = (g - q @ (q.mT @ g)).permute(2, 0, 1)
        return _form(a, q.permute(2, 0, 1)).sum(0) + _form(a, rest).mean(0)


class SLQ(TraceEstimator):
    """Stochastic Lanczos quadrature: Gauss quadrature of f on the spectral measure of each probe.

    Each probe p gives |p|^2 sum_j w_j f(theta_j), with theta_j the eigenvalues of the Lanczos
    matrix T and w_j the squared first entries of its eigenvectors. Lanczos vectors are
    reorthogonalised fully, twice, which keeps them orthogonal in float32; a sample whose Krylov
    space is exhausted stops by itself, the rest of the batch goes on.

    For f = identity the quadrature is exact after one step, and is Hutchinson's estimator. For
    other f the value carries no gradient.

    Arguments:
        samples: Number of probes.
        steps: Lanczos steps, at most d are taken.
        noise: Law of the probes.

    References:
        Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature (Ubaru, Chen & Saad, SIAM J.
        Matrix Anal. 2017)
    """

    needs = frozenset({"symmetric"})
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"noise": "gaussian", "samples": 2})

    def __init__(self, samples: int = 1, steps: int = 10, noise: Noise = "rademacher") -> None:
        _require_least("slq", "samples", samples)
        _require_least("slq", "steps", steps)
        self.samples, self.steps = samples, steps
        self.noise: Noise = noise

    def probes(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw (k, n, d) probes."""
        return draw(self.noise, (self.samples, *x.shape), x, generator)

    def __call__(self, a: LinearMap, probes: Tensor | None, fn: Spectral | None = None) -> Tensor:
        """Return the mean over probes of the quadrature, as (n,)."""
        assert probes is not None
        _require_symmetric(a, "slq")
        if fn is None:
            return _form(a, probes).mean(0)
        with torch.no_grad():
            theta, weights = lanczos_quadrature(a, probes, self.steps)
            return ((weights * fn(theta)).sum(-1) * probes.square().sum(-1)).mean(0)


def lanczos_quadrature(a: LinearMap, probes: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights (k, n, m) of the Gauss quadrature by m Lanczos steps per probe."""
    m = min(steps, probes.shape[-1])
    q = probes / probes.norm(dim=-1, keepdim=True)
    basis, alphas, betas = [q], [], []
    alive = torch.ones_like(q[..., :1], dtype=torch.bool)
    scale = torch.zeros_like(q[..., :1])
    for step in range(m):
        w = a.vjp(q)
        alpha = (w * q).sum(-1, keepdim=True)
        alphas.append(alpha)
        scale = torch.maximum(scale, w.norm(dim=-1, keepdim=True))
        if step == m - 1:
            break
        stacked = torch.stack(basis, -1)  # (k, n, d, j)
        for _ in range(2):  # twice is enough (Parlett, The Symmetric Eigenvalue Problem, 6.9)
            w = w - (stacked @ (stacked.mT @ w[..., None]))[..., 0]
        beta = w.norm(dim=-1, keepdim=True)
        alive = alive & (beta > 10 * torch.finfo(w.dtype).eps * m * scale)
        beta = torch.where(alive, beta, torch.zeros_like(beta))
        q = torch.where(alive, w / beta, torch.zeros_like(w))
        basis.append(q)
        betas.append(beta)
    return _gauss_nodes(alphas, betas)


def _gauss_nodes(alphas: list[Tensor], betas: list[Tensor]) -> tuple[Tensor, Tensor]:
    # After a breakdown the remaining block is decoupled (beta = 0) and gets weight zero; its
    # diagonal must still be a number where f is finite, so it repeats the first Ritz value.
    diagonal, alive = [alphas[0]], torch.ones_like(alphas[0], dtype=torch.bool)
    for alpha, beta in zip(alphas[1:], betas, strict=True):
        alive = alive & (beta > 0)
        diagonal.append(torch.where(alive, alpha, alphas[0]))
    t = torch.diag_embed(torch.cat(diagonal, -1))
    if betas:
        off = torch.cat(betas, -1)
        t = t + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    theta, vectors = torch.linalg.eigh(t)
    return theta, vectors[..., 0, :].square()


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


def _form(a: LinearMap, probes: Tensor) -> Tensor:
    """Return p^T A p for probes (k, n, d), as (k, n)."""
    return (a.vjp(probes) * probes).sum(-1)


def _require_identity(name: str, fn: Spectral | None) -> None:
    if fn is not None:
        raise Incompatible(
            f"{name} estimates tr A alone; for a spectral function of A use slq or exact"
        )


def _require_symmetric(a: LinearMap, name: str) -> None:
    if not a.symmetric:
        raise Incompatible(
            f"{name} needs a symmetric map; the Jacobian of a potential's gradient is one"
        )


def _require_least(name: str, option: str, value: int, least: int = 1) -> None:
    if value < least:
        raise Incompatible(f"{name}: {option} must be at least {least}, got {value}")
