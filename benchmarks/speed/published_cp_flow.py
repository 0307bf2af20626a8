"""CP-Flow as published: a plain transcription of its algorithms, on the weights of a flow of ours.

F(x) = softplus(w1) G(x) + softplus(w0) |x|^2 / 2 with the input-augmented network G:

    z_1 = s_0(W_0 x + b_0),  z_{k+1} = [s(N_k((P_k z_k + p_k) / v + U_k x + c_k)); s_0(V_k x + g_k)]
    G = N(P_K z_K / v + u x),  N(a) = (a + b) (e^l + 0.001),  P = softplus(W)
    s(a) = (c a erf(a / sqrt 2) + e^(-a^2 / 2) + c a) / (2 c),  c = sqrt(pi / 2)
    s_0(a) = s(a) - a / 2

  training      H z = v by conjugate gradients for one probe, then (H z) . v, whose gradient stands
                in for that of log det H; or brute force
  evaluation    Lanczos quadrature with one probe, or brute force
  brute force   d backward passes for the rows of H, then slogdet
  inversion     one L-BFGS on sum_b F(x_b) - x_b . y_b, all samples together

What the published code does at a cost is done here at that cost: everything comes from automatic
differentiation; F's gradient is recorded even where none is asked for; s is computed at 0 each time
to subtract it; in training all products with H are recorded, those of the iteration in vain; each
product takes two norms, of which one number goes to the host, and looks for nan; conjugate
gradients start from v, divide by p H p + 1e-8, and stop when the slowest sample has converged; all
Lanczos vectors are stacked and tested anew at every step, and a vector that is not yet orthogonal
is corrected up to ten times, from the second time on by its inner products times its norm, once too
often. Left out is what is not the algorithm: the inversion's last evaluation, whose result is
thrown away, and the drawing of probes, which are given. `symeig`, which is no more, is `eigh`.

References:
    Convex Potential Flows (Huang, Chen, Tsirigotis & Courville, ICLR 2021),
    https://arxiv.org/abs/2012.05942, and its code, https://github.com/CW-Huang/CP-Flow
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize, softplus

from flowzoo_cp_flow.flow import ConvexFlow

Product: TypeAlias = Callable[[Tensor], Tensor]

C = math.sqrt(math.pi / 2)
TINY = 1e-7  # below which a Lanczos vector has no direction
RETRIES = 10


class PublishedCPFlow:
    """The published algorithm, on the weights of a `ConvexFlow`.

    Arguments:
        flow: What has the weights: an `InputAugmented` network with Gaussian activations, centred
            and symmetric, and no `least`. Nothing of it is called but its linear layers.
    """

    def __init__(self, flow: ConvexFlow) -> None:
        network: Any = flow.potential
        s = network.first
        assert (s.smoothing, s.centred, s.symmetric, flow.least) == ("gaussian", True, True, 0)
        self.flow, self.entry = flow, network.entry
        self.inner = list(
            zip(network.positive, network.skips, network.augments, network.norms, strict=False)
        )
        self.last = network.positive[-1], network.skips[-1], network.norms[-1]

    def potential(self, x: Tensor) -> Tensor:
        """Return F(x) (n, 1)."""
        z = even(self.entry(x))
        for positive, skip, aside, norm in self.inner:
            seen = gaussian(normalised(norm, mean(positive, z) + skip(x)))
            z = torch.cat((seen, even(aside(x))), 1)
        positive, skip, norm = self.last
        network = normalised(norm, mean(positive, z) + skip(x))
        square = x.square().sum(1, keepdim=True)
        weight, quadratic = softplus(self.flow.raw_weight), softplus(self.flow.raw_quadratic)
        return weight * network + quadratic * square / 2

    def recorded(self, x: Tensor, training: bool) -> tuple[Tensor, Product]:
        """Return f = grad F(x) and v -> H v, which is recorded in training."""
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            (f,) = torch.autograd.grad(self.potential(x).sum(), x, create_graph=True)

        def product(v: Tensor) -> Tensor:
            (hv,) = torch.autograd.grad(f, x, v, create_graph=training, retain_graph=True)
            (hv.norm() / v.norm()).detach().cpu()
            if not v.isnan().any() and hv.isnan().any():
                raise ArithmeticError("a product of the Hessian is not a number")
            return hv

        return f, product

    def surrogate(
        self, x: Tensor, v: Tensor, atol: float = 1e-3, cap: int | None = None
    ) -> tuple[Tensor, Tensor, int]:
        """Return f, what has the gradient of log det H (n,), and the iterations that took.

        Arguments:
            x: Places (n, d).
            v: A probe for each (n, d).
            atol: Where an entry of the residual is small.
            cap: The most iterations, d when left out.
        """
        f, product = self.recorded(x, training=True)
        with torch.no_grad():
            z, iterations = conjugate_gradients(product, v, cap or x.shape[1], atol)
        return f, (product(z) * v).sum(1), iterations

    def lanczos(
        self, x: Tensor, v: Tensor, steps: int = 10, training: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return f and the estimate of log det H (n,) for probes v of length one."""
        f, product = self.recorded(x, training)
        return f, quadrature(tridiagonal(product, v, min(steps, x.shape[1])), x.shape[1])

    def brute(self, x: Tensor, training: bool = False) -> tuple[Tensor, Tensor]:
        """Return f and log det H (n,)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (f,) = torch.autograd.grad(self.potential(x).sum(), x, create_graph=True)
            rows = []
            for i in range(x.shape[1]):
                keep = training or i < x.shape[1] - 1
                (row,) = torch.autograd.grad(
                    f[:, i].sum(), x, create_graph=training, retain_graph=keep
                )
                rows.append(row)
            hessian = torch.stack(rows, 1)
        return f, torch.linalg.slogdet(hessian).logabsdet

    def invert(self, y: Tensor, tolerance: float = 1e-12) -> tuple[Tensor, int]:
        """Return x (n, d) with f(x) near y, and how often F was evaluated."""
        x, evaluations = y.detach().clone().requires_grad_(), 0

        def closure() -> Tensor:
            nonlocal evaluations
            evaluations += 1
            loss = self.potential(x).sum() - (x * y).sum()
            x.grad = torch.autograd.grad(loss, x)[0]
            return loss

        search = {"line_search_fn": "strong_wolfe", "max_iter": 1_000_000}
        torch.optim.LBFGS(
            [x], lr=1.0, tolerance_grad=tolerance, tolerance_change=tolerance, **search
        ).step(closure)  # pyright: ignore[reportArgumentType]
        return x.detach(), evaluations


def gaussian(a: Tensor) -> Tensor:
    """Return s(a) - s(0)."""
    return _gaussian(a) - _gaussian(torch.zeros_like(a))


def _gaussian(a: Tensor) -> Tensor:
    ca = C * a
    return (ca * torch.erf(a / math.sqrt(2)) + torch.exp(-(a**2) / 2) + ca) / (2 * C)


def even(a: Tensor) -> Tensor:
    """Return s_0(a)."""
    return gaussian(a) - 0.5 * a


def mean(positive: Any, z: Tensor) -> Tensor:
    """Return (P z + p) / v for z (n, v)."""
    return linear(z, softplus(positive.raw), positive.bias) * (1 / z.shape[1])


def normalised(norm: Any, a: Tensor) -> Tensor:
    """Return N(a)."""
    return (a + norm.shift) * (norm.log_scale.exp() + 1e-3)


def conjugate_gradients(
    product: Product, v: Tensor, cap: int, atol: float, rtol: float = 0.0
) -> tuple[Tensor, int]:
    """Return x with H x near v (n, d), and the number of iterations, the same for all samples."""
    x = v.clone()
    r = v - product(x)
    if converged(r, x, atol, rtol):
        return x, 0
    p, square = r, dot(r, r)
    for iteration in range(1, cap + 1):
        hp = product(p)
        step = square / (dot(p, hp) + 1e-8)
        x, r = x + step * p, r - step * hp
        if converged(r, x, atol, rtol):
            return x, iteration
        before, square = square, dot(r, r)
        p = r + square / before * p
    return x, cap


def converged(r: Tensor, x: Tensor, atol: float, rtol: float) -> bool:
    """Return whether every entry of every residual is small."""
    return bool((r.abs() < atol + rtol * x.abs()).all())


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return a . b (n, 1)."""
    return (a[:, None, :] @ b[:, :, None])[:, :, 0]


def tridiagonal(product: Product, v: Tensor, steps: int) -> Tensor:
    """Return the Lanczos matrix (n, m, m) of m >= 2 steps from v (n, d) of length one."""
    vectors, alphas, betas = [v], [], []
    while True:
        q = torch.stack(vectors, 1)
        w = product(vectors[-1])
        alphas.append((w * vectors[-1]).sum(-1))
        w = orthogonal(q, w)
        if len(vectors) == steps:
            break
        betas.append(w.norm(dim=-1))
        while (w.norm(dim=-1) < TINY).any():
            fresh = orthogonal(q, normalize(torch.randn_like(w), dim=-1))
            w = torch.where((betas[-1] < TINY)[:, None], fresh, w)
        vectors.append(normalize(w, dim=-1))
    off = torch.stack(betas, -1)
    diagonal = torch.diag_embed(torch.stack(alphas, -1))
    return diagonal + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)


def orthogonal(q: Tensor, w: Tensor, tolerance: float = 1e-5) -> Tensor:
    """Return w (n, d) without its parts along the rows of q (n, m, d)."""
    with torch.no_grad():
        gram = torch.einsum("nid,njd->nij", q, q)
        (gram.tril(-1) > tolerance).any().item()  # whereupon the published code prints a warning
    w = w - torch.einsum("nm,nmd->nd", torch.einsum("nmd,nd->nm", q, w), q)
    size = w.norm(dim=-1, keepdim=True).detach() + TINY
    inner = torch.einsum("nmd,nd->nm", q, w / size)
    for _ in range(RETRIES):
        if not (inner.abs() > tolerance).any():
            break
        w = w - torch.einsum("nm,nmd->nd", inner * size, q)
        inner = torch.einsum("nmd,nd->nm", q, w)  # published so: not divided by the norm again
    return w


def quadrature(t: Tensor, dim: int) -> Tensor:
    """Return d times e_1 . log(T) e_1 (n,); negative eigenvalues count as zero, zero as 1e-8."""
    values, vectors = torch.linalg.eigh(t)
    values = values.clamp(min=0).detach() + (values - values.detach())
    return dim * (vectors[..., 0, :].square() * torch.log(values + 1e-8)).sum(-1)
