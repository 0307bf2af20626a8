"""The Hessian of units as one function of slopes, bends and weights, with its derivative by hand.

With tangents A_k (d, w_k) of each sample, sample-major,

    H = sum_k A_k diag(D_k) A_k^T,    A_k = U_k^T + sum_j Z_j P_kj^T,    Z_j = A_j diag(s_j'),

and for a symmetric cotangent G of H,

    dD_k = diag(A_k^T G A_k),    dA_k = 2 G A_k diag(D_k) + what later units add,

so that the derivative of each Gram matrix is one more product of its size. Tangents are formed
again in the backward pass, in chunks of samples that stay in cache: between the passes nothing of
(samples, dimensions, width) is kept. Units that see x alone have the same tangents U^T for all
samples: their Gram matrices are one product of bends with the pairs U_i U_j, i <= j.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import Function, forward_ad

CHUNK = 512 * 1024  # bytes of one (samples, dimensions, width) tensor on a CPU
ACCELERATED = 256 * 1024 * 1024  # and elsewhere
PAIRS = 64  # dimensions up to which units that see x alone are one product over pairs
Row: TypeAlias = list[Tensor]


@dataclass(frozen=True)
class Wiring:
    """Which units a unit takes; the output is left out.

    Arguments:
        links: For each unit the indices of its sources.
    """

    links: tuple[tuple[int, ...], ...]

    def split(self, given: Sequence[Tensor]) -> tuple[Row, Row, Row, list[Row]]:
        """Return slopes, bends, U and P of a flat sequence of all."""
        n, rest = len(self.links), list(given)
        slopes, bends, skips, rest = rest[:n], rest[n : 2 * n], rest[2 * n : 3 * n], rest[3 * n :]
        every = [[rest.pop(0) for _ in sources] for sources in self.links]
        return slopes, bends, skips, every

    @property
    def fixed(self) -> list[int]:
        """Units that see x alone."""
        return [k for k, sources in enumerate(self.links) if not sources]

    @property
    def passed(self) -> set[int]:
        """Units that others take."""
        return {source for sources in self.links for source in sources}


def dense(wiring: Wiring, given: Sequence[Tensor]) -> Tensor:
    """Return H (n, d, d) of slopes, bends (n, w_k each), skips U (w_k, d) and links P, in a row."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return plain(wiring, given)
    if torch.is_grad_enabled() and any(each.requires_grad for each in given):
        return _Dense.apply(wiring, *given)  # pyright: ignore
    return whole(wiring, given)


class _Dense(Function):
    @staticmethod
    def forward(ctx: Any, wiring: Wiring, *given: Tensor) -> Tensor:
        ctx.wiring = wiring
        ctx.save_for_backward(*given)
        return whole(wiring, given)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        again = torch.is_grad_enabled()
        if again or is_legacy_batchedtensor(grads[0]):  # is_grads_batched
            with torch.enable_grad():
                # Bends are functions of slopes: of each only what H itself takes of it counts.
                own = [each.view_as(each) for each in given]
                wanted = [each for each in own if each.requires_grad]
                h = plain(ctx.wiring, own)
                found = torch.autograd.grad(
                    h, wanted, grads[0], create_graph=again, allow_unused=True
                )
            each = iter(found)
            return None, *(next(each) if one.requires_grad else None for one in own)
        return None, *derivative(ctx.wiring, given, grads[0])


def plain(wiring: Wiring, given: Sequence[Tensor]) -> Tensor:
    """Return H by operations that are differentiable to any order."""
    slopes, bends, skips, links = wiring.split(given)
    tangents: Row = []
    h = slopes[0].new_zeros(slopes[0].shape[0], skips[0].shape[1], skips[0].shape[1])
    for k, sources in enumerate(wiring.links):
        a = skips[k].t().expand(len(h), -1, -1)
        for source, p in zip(sources, links[k], strict=True):
            a = a + (tangents[source] * slopes[source][:, None, :]) @ p.t()
        tangents.append(a)
        h = torch.baddbmm(h, a * bends[k][:, None, :], a.mT)
    return h


def whole(wiring: Wiring, given: Sequence[Tensor]) -> Tensor:
    """Return H (n, d, d)."""
    slopes, bends, skips, links = wiring.split(given)
    h = _fixed_part(wiring, bends, skips)
    sweep = _Sweep(wiring, skips, links)
    chunks = _chunks(slopes, skips)
    for rows in chunks:
        near = slopes if len(chunks) == 1 else [s[rows] for s in slopes]
        for k, (a, _) in enumerate(sweep.forward(near)):
            if wiring.links[k]:
                h[rows].baddbmm_(a * bends[k][rows][:, None, :], a.mT)
    return h


def derivative(wiring: Wiring, given: Sequence[Tensor], cotangent: Tensor) -> Row:
    """Return the cotangents of slopes, bends, skips and links, for one of H."""
    slopes, bends, skips, links = wiring.split(given)
    g = (0.5 * (cotangent + cotangent.mT)).contiguous()
    of_slopes = [torch.zeros_like(s) for s in slopes]
    of_bends = [torch.empty_like(b) for b in bends]
    of_skips = [torch.zeros_like(u) for u in skips]
    _fixed_derivative(wiring, bends, skips, g, of_bends, of_skips)
    sweep = _Sweep(wiring, skips, links)
    of_links = [None if p is None else torch.zeros_like(p) for p in sweep.links]
    for rows in _chunks(slopes, skips):
        near = [s[rows] for s in slopes]
        back: list[Tensor | None] = [None] * len(near)  # cotangents of the outputs Z
        for k, (a, z) in reversed(list(enumerate(sweep.forward(near)))):
            of_a = back[k]
            if of_a is not None:
                torch.sum(of_a * a, 1, out=of_slopes[k][rows])
                of_a = of_a * near[k][:, None, :]
            p, of_p = sweep.links[k], of_links[k]
            if p is not None and of_p is not None:
                ga = torch.bmm(g[rows], a)
                torch.sum(ga * a, 1, out=of_bends[k][rows])
                twice = 2 * bends[k][rows][:, None, :]
                of_a = ga.mul_(twice) if of_a is None else of_a.addcmul_(ga, twice)
                flat = of_a.view(-1, of_a.shape[-1])
                of_p.addmm_(flat.t(), z.view(-1, z.shape[-1]))
                sweep.send(k, (flat @ p).view(z.shape), back)
            if of_a is not None:
                of_skips[k] += of_a.sum(0).t()
    rest = [
        each
        for k, p in enumerate(of_links)
        if p is not None
        for each in p.split(sweep.widths[k], -1)
    ]
    return [*of_slopes, *of_bends, *of_skips, *rest]


class _Sweep:
    """Tangents of a chunk of samples; a unit takes its sources side by side, by one matrix."""

    def __init__(self, wiring: Wiring, skips: Row, links: list[Row]) -> None:
        self.wiring = wiring
        entries = torch.cat(skips).t().contiguous()[None]
        self.entries = entries.split([len(u) for u in skips], -1)  # (1, d, w)
        self.links = [torch.cat(row, -1) if row else None for row in links]
        self.widths = [[p.shape[-1] for p in row] for row in links]

    def forward(self, slopes: Row) -> list[tuple[Tensor, Tensor]]:
        """Return A_k (n, d, w_k), 1 for n where it sees x alone, and what it takes (n, d, v)."""
        found: list[tuple[Tensor, Tensor]] = []
        for k, sources in enumerate(self.wiring.links):
            entry, p = self.entries[k], self.links[k]
            if p is None:
                found.append((entry, entry))
                continue
            z = entry.new_empty(len(slopes[0]), entry.shape[1], p.shape[1])
            for source, part in zip(sources, z.split(self.widths[k], -1), strict=True):
                torch.mul(found[source][0], slopes[source][:, None, :], out=part)
            a = z.view(-1, z.shape[-1]) @ p.t()
            found.append((a.view(*z.shape[:2], -1).add_(entry), z))
        return found

    def send(self, k: int, cotangent: Tensor, back: list[Tensor | None]) -> None:
        """Add the cotangent of what unit k takes to those of its sources' outputs."""
        sources = self.wiring.links[k]
        for source, part in zip(sources, cotangent.split(self.widths[k], -1), strict=True):
            before = back[source]
            back[source] = part if before is None else before + part


def _chunks(slopes: Row, skips: Row) -> list[slice]:
    n, d = slopes[0].shape[0], skips[0].shape[1]
    room = CHUNK if slopes[0].device.type == "cpu" else ACCELERATED
    size = max(1, room // (d * max(s.shape[1] for s in slopes) * slopes[0].element_size()))
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def _fixed_part(wiring: Wiring, bends: Row, skips: Row) -> Tensor:
    """Return the part of H of the units that see x alone."""
    u = torch.cat([skips[k] for k in wiring.fixed])
    bend = torch.cat([bends[k] for k in wiring.fixed], -1)
    d = u.shape[1]
    if d > PAIRS:
        return (u.t() * bend[:, None, :]) @ u
    return (bend @ (u[:, :, None] * u[:, None, :]).view(-1, d * d)).view(-1, d, d)


def _fixed_derivative(
    wiring: Wiring, bends: Row, skips: Row, g: Tensor, of_bends: Row, of_skips: Row
) -> None:
    """Set the cotangents of the bends of units that see x alone, and add to those of their U."""
    fixed = wiring.fixed
    u = torch.cat([skips[k] for k in fixed])
    bend = torch.cat([bends[k] for k in fixed], -1)
    d = u.shape[1]
    if d > PAIRS:
        gu = g @ u.t()  # (n, d, M)
        of_bend = torch.einsum("ndm,md->nm", gu, u)
        of_u = 2 * torch.einsum("ndm,nm->md", gu, bend)
    else:
        flat = g.view(-1, d * d)
        of_bend = flat @ (u[:, :, None] * u[:, None, :]).view(-1, d * d).t()
        of_u = 2 * ((bend.t() @ flat).view(-1, d, d) @ u[..., None])[..., 0]
    widths = [skips[k].shape[0] for k in fixed]
    for k, b, s in zip(fixed, of_bend.split(widths, -1), of_u.split(widths), strict=True):
        of_bends[k] = b
        of_skips[k] += s
