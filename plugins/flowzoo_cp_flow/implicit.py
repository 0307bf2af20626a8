"""The derivative of x where grad F(x) = z, by the implicit function theorem.

With f = grad F and H its Hessian at x,

    dx = H^-1 (dz - df),    df the change of f, at this x, with the weights and the context,

so that nothing of the way to x is recorded, and it may be of any length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from flowzoo.errors import Incompatible
from flowzoo.krylov import solve
from flowzoo.maps import Jacobian
from flowzoo.traces import require_reverse
from flowzoo_cp_flow.convex import ConvexPoint

DENSE = 256  # dimensions up to which a Cholesky factor is cheaper than conjugate gradients


def differentiable(
    at: Callable[[Tensor, Tensor | None], ConvexPoint],
    x: Tensor,
    z: Tensor,
    context: Tensor | None,
) -> Tensor:
    """Return x, differentiable in z, the context and the weights of F.

    First derivatives only. It is x itself where nothing of these requires a gradient.

    Arguments:
        at: F, with its gradient and Hessian, at places and a context.
        x: Solutions of grad F(x) = z (n, d), without a graph.
        z: (n, d).
        context: (n, c) or None.
    """
    if forward_ad._current_level >= 0:
        require_reverse(at(x, context).gradient - z, "an inversion")
    if not torch.is_grad_enabled():
        return x
    x = x.detach()
    # A sample that failed with nan has gradients of zero, not nan times zero in all weights.
    sound = x.isfinite().all(-1, keepdim=True)
    near = torch.where(sound, x, 0.0)
    context = None if context is None else torch.where(sound, context, 0.0)
    point = at(near, context)
    if not (point.gradient.requires_grad or z.requires_grad):
        return x
    if x.shape[-1] <= DENSE:  # now: by the time of the backward pass the weights may be others
        with torch.no_grad():
            factor = factored(point.hessian.dense())[0]
        return _Implicit.apply(x, z, point.gradient, None, factor)
    place = near.clone().requires_grad_()
    return _Implicit.apply(x, z, at(place, context).gradient, place, None)


def factored(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Cholesky factors of h (n, d, d), which rows have none, and the norms of h (n,).

    Rounding is added to the diagonal, lest it make a stiff one indefinite. Rows that have no factor
    get that of I.
    """
    size = h.norm(dim=(-2, -1))
    eye = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
    shift = (torch.finfo(h.dtype).eps * size)[:, None, None]
    factor, failed = torch.linalg.cholesky_ex(torch.addcmul(h, shift, eye))
    failed = failed != 0
    return torch.where(failed[:, None, None], eye, factor), failed, size


class _Implicit(Function):
    """x as a function of z and of f, what grad F is there: its gradient solves with the Hessian.

    Either its factor is given, or the place that f was computed from.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, z: Tensor, f: Tensor, place: Tensor | None, factor: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(f, place, factor)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        if torch.is_grad_enabled():  # the gradients below carry no graph
            raise Incompatible(
                "an inversion gives first derivatives only, and this loss differentiates a "
                "gradient again: take gradients of encode, which has second derivatives"
            )
        f, place, factor = ctx.saved_tensors
        if factor is not None:
            u = torch.cholesky_solve(grad[..., None], factor)[..., 0]
        else:
            hessian = Jacobian(f, place, symmetric=True, create_graph=False)
            close = 100 * torch.finfo(grad.dtype).eps
            cap = 10 * grad.shape[-1]
            u = solve(hessian, grad[None], atol=0.0, rtol=close, cap=cap).x[0]
        return None, u, -u, None, None
