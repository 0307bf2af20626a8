"""Gradient and Laplacian of the residual potential as one function with a hand-written derivative.

One set of activations serves the gradient in space and time, the Laplacian and the derivatives of
both. What the backward pass needs of the Laplacian is formed in the forward one (`laplacian`), so
between the two only tensors of (samples, width) are kept. All is done in chunks of samples that
stay in cache.

For that the cotangent of the Laplacian must be known, up to a factor: it is the same for all
samples where the loss is a mean. Where it is not, or where looking would stall an accelerator, the
derivative of the Laplacian is formed in the backward pass.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor  # pyright: ignore

from flowzoo.errors import UserError
from flowzoo_ot_flow.backwards import downwards, quadratic, upwards
from flowzoo_ot_flow.hessian import Hessian
from flowzoo_ot_flow.laplacian import ACCELERATED, Method, sweep
from flowzoo_ot_flow.network import Weights, activations, bends, gradient, sensitivities

CHUNK = 512 * 1024  # bytes of one (samples, width) tensor; a dozen are in use at a time
Row: TypeAlias = list[Tensor]


@dataclass(frozen=True)
class Plan:
    """How an evaluation is done.

    Arguments:
        dim: Dimension d of x.
        method: How the Laplacian is swept.
        derive: Whether gradients will be taken.
        ahead: Whether the Laplacian's derivative is formed in the forward pass.
        compiled: Whether torch.compile makes the chunks' code.
    """

    dim: int
    method: Method
    derive: bool
    ahead: bool
    compiled: bool = False

    def rows(self, w: Tensor) -> int:
        """Return how many samples are done at once, for weights w (m,)."""
        room = CHUNK if w.device.type == "cpu" else ACCELERATED
        return max(64, room // (len(w) * w.element_size()))

    def run(self, code: Callable[..., Any], *given: Any) -> Any:
        """Return what `forward_rows` or `backward_rows` does, or what they are compiled to."""
        return (_compiled(code) if self.compiled else code)(self, *given)


@functools.cache
def _compiled(code: Callable[..., Any]) -> Callable[..., Any]:
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise UserError(
            "compile: true needs a C++ compiler, and none is on the path: install g++ or clang++, "
            "or leave the option out"
        )
    return torch.compile(code)


def evaluate(plan: Plan, p: Weights, s: Tensor, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return grad_x Phi (n, d), dPhi/dt (n,) and the Laplacian in x (n,).

    Arguments:
        plan: How it is done.
        p: The weights.
        s: Inputs (n, width of s).
        frame: (K_0 E)^T (d, m), or its triangular factor.
    """
    if plan.derive:
        return _Evaluation.apply(plan, s, frame, *p.row())  # pyright: ignore
    chunks = s.split(plan.rows(p.w))
    return _joined(plan, [plan.run(forward_rows, p.row(), chunk, frame) for chunk in chunks])


def _joined(plan: Plan, parts: Sequence[Sequence[Any]]) -> tuple[Tensor, Tensor, Tensor]:
    # One tensor each: autograd would pay for slices of one gradient with copies of it.
    space = torch.cat([part[0][:, : plan.dim] for part in parts])
    time = torch.cat([part[0][:, plan.dim] for part in parts])
    return space, time, torch.cat([part[1] for part in parts])


def forward_rows(
    plan: Plan, row: Sequence[Tensor], s: Tensor, frame: Tensor
) -> tuple[Tensor, Tensor, Row, Row]:
    """Return gradient and Laplacian of a chunk, what is kept of it, and what is summed over all.

    Kept are tanh(q_0), ..., tanh(q_M), u_0, ..., u_{M-1}, z_1, ..., z_M, l_1, ..., l_M and, ahead,
    the derivative of the Laplacian with respect to tanh(q_0), ..., tanh(q_{M-1}), each (n, m).
    Summed are its derivatives with respect to the frame and K_1, ..., K_M.
    """
    p = Weights.of(row)
    slopes, outputs = activations(p, s)
    pulled, z = sensitivities(p, slopes)
    first = gradient(p, s, pulled[0], plan.dim + 1)
    bent = bends(slopes, pulled, z)
    lengths, found = sweep(
        plan.method, frame, p.matrices[1:], slopes, bent, derive=plan.derive and plan.ahead
    )
    laplacian = bent[0] @ frame.square().sum(0)
    for bend, length in zip(bent[1:], lengths, strict=True):
        laplacian = torch.add(laplacian, (bend * length).sum(-1), alpha=p.step)
    laplacian = laplacian + p.A[:, : plan.dim].square().sum()
    kept = [*slopes, *outputs, *z[:-1], *lengths]
    if found is None:
        return first, laplacian, kept, []
    return first, laplacian, [*kept, *found.slopes], [found.frame, *found.hidden]


def backward_rows(
    plan: Plan,
    row: Sequence[Tensor],
    s: Tensor,
    frame: Tensor,
    kept: Sequence[Tensor],
    first: Tensor,
    laplacian: Tensor,
) -> Row:
    """Return the gradients of a chunk, with respect to s, the frame and `row`.

    What `forward_rows` summed is left out.

    Arguments:
        plan: How it is done.
        row: The weights.
        s: The chunk's inputs.
        frame: As in `evaluate`.
        kept: As `forward_rows` returned it; without the last part, that is made here.
        first: Cotangent of the gradient (n, d + 1).
        laplacian: Cotangent of the Laplacian, (n,), or (1,) where it is the same for all.
    """
    p = Weights.of(row)
    slopes, outputs, z, lengths, turned = _split(kept, len(p.matrices) - 1)
    z = [*z, p.w]
    curves = [torch.addcmul(torch.ones_like(p.w), y, y, value=-1) for y in slopes]  # sig''
    found = None
    if turned:
        turned = [part * laplacian[:, None] for part in turned]
    else:
        bent = [after * curve for after, curve in zip(z, curves, strict=True)]
        _, found = sweep(plan.method, frame, p.matrices[1:], slopes, bent, laplacian)
        assert found is not None
        turned = found.slopes
    heights = [laplacian[:, None] * frame.square().sum(0)]  # with respect to the bends
    heights += [(p.step * laplacian)[:, None] * length for length in lengths]
    forces, matrices, w = upwards(p, slopes, z, curves, heights, first)
    for force, part in zip(forces, turned, strict=False):
        force.add_(part)
    into, biases = downwards(p, s, slopes, outputs, curves, forces, matrices)
    a, through = quadratic(p, s, first)
    a[:, : plan.dim] += (2 * laplacian.expand(len(s)).sum()) * p.A[:, : plan.dim]
    b = torch.cat([first.sum(0), p.b.new_zeros(len(p.b) - first.shape[1])])
    wide = 2 * frame * (z[0] * curves[0] * laplacian[:, None]).sum(0)
    if found is not None:
        wide = wide + found.frame
        matrices = [matrices[0], *map(torch.add, matrices[1:], found.hidden)]
    return [into + through, wide, a, b, w, *matrices, *biases]


def _split(kept: Sequence[Tensor], layers: int) -> list[Sequence[Tensor]]:
    """Return slopes, outputs, z, lengths and turned, as `forward_rows` laid them out."""
    ends = [0, layers + 1, 2 * layers + 1, 3 * layers + 1, 4 * layers + 1, len(kept)]
    return [kept[a:b] for a, b in pairwise(ends)]


def _detached(*tensors: Tensor) -> list[Tensor]:
    # So that one compiled code serves tensors with gradients and without.
    return [y.detach() for y in tensors]


class _Evaluation(torch.autograd.Function):
    """`evaluate`, with its derivative."""

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, s: Tensor, frame: Tensor, *row: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, edge, *flat = _detached(s, frame, *row)
        parts = [plan.run(forward_rows, flat, chunk, edge) for chunk in y.split(plan.rows(row[2]))]
        sums = [torch.stack(each).sum(0) for each in zip(*(part[3] for part in parts), strict=True)]
        ctx.plan, ctx.counts = plan, (len(row), len(sums), len(parts[0][2]))
        ctx.save_for_backward(s, frame, *row, *sums, *(t for part in parts for t in part[2]))
        return _joined(plan, parts)

    @staticmethod
    def backward(ctx: Any, space: Tensor, time: Tensor, laplacian: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        first = torch.cat([space, time[:, None]], 1)
        s, frame, *rest = ctx.saved_tensors
        weights, summed, size = ctx.counts
        row, sums, kept = rest[:weights], rest[weights : weights + summed], rest[weights + summed :]
        again = torch.is_grad_enabled()
        if again or any(map(is_legacy_batchedtensor, (first, laplacian))):  # is_grads_batched
            with torch.enable_grad():
                return (None, *_slowly(ctx.plan, again, s, frame, row, first, laplacian))
        s, frame, *row = _detached(s, frame, *row)
        scale, layers = laplacian[:1].sum(), len(Weights.of(row).matrices) - 1
        equal = bool(sums) and bool((laplacian == scale).all())
        rows, used = ctx.plan.rows(row[2]), size if equal else 4 * layers + 1
        into, totals = [], None
        for i, part in enumerate(s.split(rows)):
            mine, each = kept[i * size : i * size + used], slice(i * rows, (i + 1) * rows)
            weights = laplacian[:1] if equal else laplacian[each]  # broadcasts over the samples
            found = ctx.plan.run(backward_rows, row, part, frame, mine, first[each], weights)
            into.append(found[0])
            totals = found[1:] if totals is None else list(map(torch.add, totals, found[1:]))
        assert totals is not None
        if equal:
            totals[0] = totals[0] + scale * sums[0]
            for i, part in enumerate(sums[1:], start=5):  # after the frame, A, b, w and K_0
                totals[i] = totals[i] + scale * part
        return (None, torch.cat(into), *totals)


def _slowly(
    plan: Plan, graph: bool, s: Tensor, frame: Tensor, row: Sequence[Tensor], *cotangents: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients by automatic differentiation; with `graph` they carry one."""
    # Of aliases: the frame is made of K_0, whose gradient would otherwise include the frame's.
    s, frame, *row = inputs = [y.view_as(y) for y in (s, frame, *row)]
    p = Weights.of(row)
    slopes, _ = activations(p, s)
    pulled, z = sensitivities(p, slopes)
    first = gradient(p, s, pulled[0], plan.dim + 1)
    bent = bends(slopes, pulled, z)
    hessian = Hessian(frame.T, p.matrices[1:], p.A[:, : plan.dim], slopes, bent)
    pairs = zip((first, hessian.trace()), cotangents, strict=True)
    outputs, seeds = zip(*((y, c) for y, c in pairs if y.requires_grad), strict=True)
    wanted = [y for y in inputs if y.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, seeds, create_graph=graph, allow_unused=True))
    return tuple(next(found) if y.requires_grad else None for y in inputs)
