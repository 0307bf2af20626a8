"""Krylov spaces of symmetric maps, all samples at once: Lanczos, conjugate gradients, quadrature.

From a probe p, m products with A give a tridiagonal matrix T, whose eigenvalues are the nodes of
quadratures for p^T f(A) p. Nothing here is differentiated.

References:
    Matrices, Moments and Quadrature with Applications (Golub & Meurant, Princeton 2010), chapters
    3, 4 and 6
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowzoo.maps import LinearMap

Spectral = Callable[[Tensor], Tensor]

_LOOKS = 4  # steps of an accelerator between two looks at what has converged
_WORTH = 0.75  # share of the samples left at which the others are taken out


@dataclass(frozen=True)
class Tridiagonal:
    """The matrices T of k probes for each of n maps.

    Arguments:
        diagonal: (k, n, m).
        coupling: What links an entry of the diagonal to the next (k, n, m); the last links to the
            step that was not taken, and is 0 where the Krylov space is exhausted.
        size: Rows of each T (k, n), at most m; what is stored beyond them has no meaning.
    """

    diagonal: Tensor
    coupling: Tensor
    size: Tensor

    def gauss(self) -> tuple[Tensor, Tensor]:
        """Return nodes (k, n, m) and eigenvectors (k, n, m, m); squared first rows are weights.

        Exact for polynomials up to degree 2 m - 1; above for f = log, as for any f whose even
        derivatives are negative.
        """
        return _eigen(self.diagonal, self.coupling, self.size)

    def radau(self, floor: Tensor) -> tuple[Tensor, Tensor]:
        """Return nodes and eigenvectors of the rule with one node at `floor`, of size m + 1.

        Exact for polynomials up to degree 2 m. Where no eigenvalue lies below the node, below for
        f = log, as for any f whose odd derivatives are positive.

        Arguments:
            floor: The node ().
        """
        tiny = torch.finfo(self.diagonal.dtype).eps * self.diagonal.abs().amax(-1)
        pivot, last = self.diagonal[..., 0] - floor, self.coupling[..., 0]
        for j in range(1, self.diagonal.shape[-1]):
            inside, inner = j < self.size, self.coupling[..., j - 1].square() / pivot
            pivot = torch.where(inside, self.diagonal[..., j] - floor - inner, pivot)
            last = torch.where(inside, self.coupling[..., j], last)
        # Positive but for rounding, as T exceeds the node.
        fixed = floor + last.square() / torch.maximum(pivot, tiny)
        more = self.diagonal[..., :1]
        position = torch.arange(self.diagonal.shape[-1] + 1, device=more.device)
        diagonal = torch.where(
            position == self.size[..., None], fixed[..., None], torch.cat([self.diagonal, more], -1)
        )
        coupling = torch.cat([self.coupling, torch.zeros_like(more)], -1)
        theta, vectors = _eigen(diagonal, coupling, self.size + 1)
        return torch.maximum(theta, floor), vectors


def quadrature(fn: Spectral, nodes: Tensor, vectors: Tensor) -> Tensor:
    """Return sum_j w_j fn(theta_j) as (k, n), from nodes and eigenvectors of T."""
    return (vectors[..., 0, :].square() * fn(nodes)).sum(-1)


def first_column(fn: Spectral, nodes: Tensor, vectors: Tensor) -> Tensor:
    """Return f'(T) e_1 as (k, n, m), from nodes and eigenvectors of T."""
    with torch.enable_grad():
        at = nodes.detach().requires_grad_()
        (slope,) = torch.autograd.grad(fn(at).sum(), at)
    return (vectors @ (slope * vectors[..., 0, :])[..., None])[..., 0]


def _eigen(diagonal: Tensor, coupling: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    # What lies beyond T is decoupled and gets weight zero; its diagonal must still be a number
    # where f is finite, so it repeats the first entry.
    position = torch.arange(diagonal.shape[-1], device=diagonal.device)
    size = size[..., None]
    t = torch.diag_embed(torch.where(position < size, diagonal, diagonal[..., :1]))
    links = torch.where(position + 1 < size, coupling, torch.zeros_like(coupling))[..., :-1]
    t = t + torch.diag_embed(links, 1) + torch.diag_embed(links, -1)
    sound = t.isfinite().flatten(-2).all(-1)[..., None]
    theta, vectors = torch.linalg.eigh(torch.where(sound[..., None], t, torch.zeros_like(t)))
    return torch.where(sound, theta, torch.full_like(theta, torch.nan)), vectors


@torch.no_grad()
def lanczos(
    a: LinearMap, probes: Tensor, steps: int, product: Tensor | None = None
) -> tuple[Tridiagonal, Tensor]:
    """Return T and the orthonormal basis (k, n, m, d) of each probe's Krylov space.

    Vectors are reorthogonalised fully, twice, which keeps them orthogonal in float32. A probe whose
    space is exhausted stops by itself, the others go on.

    Arguments:
        a: Symmetric maps.
        probes: (k, n, d).
        steps: Products to take, at most d are.
        product: A p, where it is known.
    """
    m = min(steps, probes.shape[-1])
    norm = probes.norm(dim=-1, keepdim=True)
    alive, scale = norm > 0, torch.zeros_like(norm)
    q = _over(probes, norm, alive)
    basis = probes.new_zeros(*probes.shape[:-1], m, probes.shape[-1])
    diagonal, coupling = probes.new_zeros(2, *probes.shape[:-1], m)
    size = alive[..., 0].long()
    for j in range(m):
        basis[..., j, :] = q
        w = a.vjp(q) if j or product is None else _over(product, norm, alive)
        diagonal[..., j] = (w * q).sum(-1)
        scale = torch.maximum(scale, w.norm(dim=-1, keepdim=True))
        known = basis[..., : j + 1, :]
        for _ in range(2):  # twice is enough (Parlett, The Symmetric Eigenvalue Problem, 6.9)
            w = w - (known.mT @ (known @ w[..., None]))[..., 0]
        beta = w.norm(dim=-1, keepdim=True)
        alive = alive & (beta > 10 * torch.finfo(w.dtype).eps * scale)
        coupling[..., j] = torch.where(alive, beta, torch.zeros_like(beta))[..., 0]
        q = _over(w, beta, alive)
        if j < m - 1:
            size = size + alive[..., 0]
    return Tridiagonal(diagonal, coupling, size), basis


def _over(p: Tensor, norm: Tensor, alive: Tensor) -> Tensor:
    """Return p / norm where it is alive, else zero."""
    return torch.where(alive, p / norm, torch.zeros_like(p))


@dataclass(frozen=True)
class Solution:
    """What came of solving A x = b.

    Arguments:
        x: (k, n, d).
        residual: The largest entry of abs(b - A x) (k, n), by the recursion that updates it.
        steps: Products taken by each (k, n).
        converged: Which residuals are within the tolerance (k, n).
        tridiagonal: T of the Krylov spaces of b.
    """

    x: Tensor
    residual: Tensor
    steps: Tensor
    converged: Tensor
    tridiagonal: Tridiagonal


@torch.no_grad()
def solve(
    a: LinearMap,
    b: Tensor,
    atol: float = 1e-3,
    rtol: float = 0.0,
    cap: int | None = None,
    product: Tensor | None = None,
) -> Solution:
    """Solve A x = b for positive definite maps by conjugate gradients from x = 0.

    Each right-hand side stops by itself, after at least one step, when no entry of its residual
    exceeds atol + rtol max abs(b); samples that are done are taken out of the batch where the map
    gives the `rows` that are left. One that meets a direction of negative curvature stops too, with
    a T that is not positive definite. Memory is that of a few vectors and of T.

    Arguments:
        a: Symmetric maps.
        b: (k, n, d).
        atol: Absolute tolerance.
        rtol: Tolerance relative to the largest entry of b.
        cap: Most steps to take; d when left out.
        product: A b, where it is known.

    References:
        Methods of Conjugate Gradients for Solving Linear Systems (Hestenes & Stiefel, Journal of
        Research of the National Bureau of Standards 1952)
    """
    run = _Descent(a, b, atol + rtol * b.abs().amax(-1))
    looks = 1 if b.device.type == "cpu" else _LOOKS
    cap = b.shape[-1] if cap is None else cap
    for step in range(cap):
        run.advance(product if step == 0 else None)
        if (step + 1) % looks == 0 and step + 1 < cap and not run.goes_on():
            break
    return run.solution()


class _Descent:
    """Conjugate gradients under way, for the samples that are not done.

    Arguments:
        a: The maps.
        b: Right-hand sides (k, n, d).
        allowed: Residuals that pass (k, n).
    """

    def __init__(self, a: LinearMap, b: Tensor, allowed: Tensor) -> None:
        self.a, self.allowed, self.limit = a, allowed, allowed
        self.x, self.r, self.q = torch.zeros_like(b), b, b
        self.square = b.square().sum(-1)
        self.active = self.square > 0
        self.carry = torch.zeros_like(self.square)
        self.steps = torch.zeros_like(self.active, dtype=torch.long)
        self.kept: Tensor | None = None  # which samples these are; None for all
        self.whole = (self.x, self.r, self.steps)  # of all samples
        self.diagonal: list[Tensor] = []
        self.coupling: list[Tensor] = []

    def advance(self, product: Tensor | None) -> None:
        """Take a step of those that are active; the others stay as they are."""
        w = self.a.vjp(self.q) if product is None else product
        bend = (self.q * w).sum(-1)
        going, zero = self.active & (bend > 0), torch.zeros_like(bend)
        inverse = bend / self.square  # of the step's length
        length = torch.where(going, 1 / inverse, zero)[..., None]
        self.x, self.r = torch.addcmul(self.x, length, self.q), torch.addcmul(self.r, -length, w)
        square = self.r.square().sum(-1)
        ratio = torch.where(going, square / self.square, zero)
        self.diagonal.append(self._spread(inverse + self.carry))
        self.coupling.append(self._spread(ratio.sqrt() * inverse))
        self.steps = self.steps + self.active
        self.carry, self.square = ratio * inverse, square
        self.q = torch.addcmul(self.r, ratio[..., None], self.q)
        self.active = going & (self.r.abs().amax(-1) > self.allowed) & (square > 0)

    def goes_on(self) -> bool:
        """Return whether samples are left; those that are done may leave the batch."""
        left = self.active.any(0)
        count = int(left.sum())  # the one wait for an accelerator
        if 0 < count <= _WORTH * len(left):
            index = left.nonzero()[:, 0]
            some = self.a.rows(index)
            if some is not None:
                self._keep(some, index)
        return count > 0

    def solution(self) -> Solution:
        """Return what is known of all samples."""
        self._store()
        x, r, steps = self.whole
        t = Tridiagonal(torch.stack(self.diagonal, -1), torch.stack(self.coupling, -1), steps)
        residual = r.abs().amax(-1)
        return Solution(x, residual, steps, residual <= self.limit, t)

    def _keep(self, some: LinearMap, index: Tensor) -> None:
        self._store()
        self.kept = index if self.kept is None else self.kept[index]
        self.a = some
        for name in ("x", "r", "q", "square", "active", "carry", "steps", "allowed"):
            setattr(self, name, getattr(self, name)[:, index])

    def _store(self) -> None:
        now = (self.x, self.r, self.steps)
        if self.kept is None:
            self.whole = now
            return
        for whole, part in zip(self.whole, now, strict=True):
            whole[:, self.kept] = part

    def _spread(self, part: Tensor) -> Tensor:
        """Return (k, n) of all samples from those here, zero for the others."""
        if self.kept is None:
            return part
        whole = part.new_zeros(part.shape[0], self.whole[0].shape[1])
        whole[:, self.kept] = part
        return whole
