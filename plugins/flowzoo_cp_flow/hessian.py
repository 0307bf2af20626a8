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
    def linked(self) -> list[int]:
        """Units that take others."""
        return [k for k, sources in enumerate(self.links) if sources]


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
    if wiring.linked:
        sweep, bend = _Sweep(wiring, skips, links), torch.cat([bends[k] for k in wiring.linked], -1)
        for rows in _chunks(slopes, skips):
            a, _, _ = sweep.forward([s[rows] for s in slopes])
            h[rows].baddbmm_(a * bend[rows][:, None, :], a.mT)
    return h


def derivative(wiring: Wiring, given: Sequence[Tensor], cotangent: Tensor) -> Row:
    """Return the cotangents of slopes, bends, skips and links, for one of H."""
    slopes, bends, skips, links = wiring.split(given)
    g = (0.5 * (cotangent + cotangent.mT)).contiguous()
    of_slopes = [torch.zeros_like(s) for s in slopes]
    of_bends, of_skips = [*bends], [torch.zeros_like(u) for u in skips]
    _fixed_derivative(wiring, bends, skips, g, of_bends, of_skips)
    if not wiring.linked:
        return [*of_slopes, *of_bends, *of_skips]
    sweep, bend = _Sweep(wiring, skips, links), torch.cat([bends[k] for k in wiring.linked], -1)
    of_bend, of_entry = torch.empty_like(bend), 0.0
    of_links = [None if p is None else torch.zeros_like(p) for p in sweep.links]
    for rows in _chunks(slopes, skips):
        near = [s[rows] for s in slopes]
        a, tangents, inputs = sweep.forward(near)
        of_a = torch.bmm(g[rows], a)
        torch.sum(of_a * a, 1, out=of_bend[rows])
        of_a.mul_(2 * bend[rows][:, None, :])
        sweep.backward(
            of_a, near, tangents, inputs, [s[rows] for s in of_slopes], of_skips, of_links
        )
        of_entry = of_entry + of_a.sum(0)
    for k, part in zip(wiring.linked, of_bend.split(sweep.heights, -1), strict=True):
        of_bends[k] = part
    assert isinstance(of_entry, Tensor)
    for k, part in zip(wiring.linked, of_entry.split(sweep.heights, -1), strict=True):
        of_skips[k] = part.t()
    rest = [p.split(w, -1) for p, w in zip(of_links, sweep.widths, strict=True) if p is not None]
    return [*of_slopes, *of_bends, *of_skips, *(each for row in rest for each in row)]


class _Sweep:
    """Tangents of chunks of samples; a unit takes its sources side by side, by one matrix."""

    def __init__(self, wiring: Wiring, skips: Row, links: list[Row]) -> None:
        self.wiring = wiring
        entries = torch.cat(skips).t().contiguous()[None]
        self.entries = entries.split([len(u) for u in skips], -1)  # (1, d, w)
        self.links = [torch.cat(row, -1) if row else None for row in links]
        self.widths = [[p.shape[-1] for p in row] for row in links]
        self.heights = [len(skips[k]) for k in wiring.linked]

    def forward(self, slopes: Row) -> tuple[Tensor, Row, Row]:
        """Return A of all units with sources side by side (n, d, W), and unit by unit.

        Also what each of these units takes (n, d, v). Of units that see x alone A is (1, d, w), and
        the last entry theirs again.
        """
        n, d = len(slopes[0]), self.entries[0].shape[1]
        whole = slopes[0].new_empty(n, d, sum(self.heights))
        places = iter(whole.split(self.heights, -1))
        tangents: Row = []
        inputs: Row = []
        for sources, entry, p, widths in zip(
            self.wiring.links, self.entries, self.links, self.widths, strict=True
        ):
            if p is None:
                tangents.append(entry)
                inputs.append(entry)
                continue
            z = entry.new_empty(n, d, p.shape[1])
            for source, part in zip(sources, z.split(widths, -1), strict=True):
                torch.mul(tangents[source], slopes[source][:, None, :], out=part)
            a = next(places)
            torch.add((z.view(-1, z.shape[-1]) @ p.t()).view(n, d, -1), entry, out=a)
            tangents.append(a)
            inputs.append(z)
        return whole, tangents, inputs

    def backward(
        self,
        of_a: Tensor,
        slopes: Row,
        tangents: Row,
        inputs: Row,
        of_slopes: Row,
        of_skips: Row,
        of_links: Sequence[Tensor | None],
    ) -> None:
        """Complete the cotangents `of_a` of A, later units first, and add to those of the rest."""
        places = dict(zip(self.wiring.linked, of_a.split(self.heights, -1), strict=True))
        back: list[Tensor | None] = [None] * len(tangents)  # of the outputs Z
        for k in range(len(tangents) - 1, -1, -1):
            through, mine, p, of_p = back[k], places.get(k), self.links[k], of_links[k]
            if through is not None:
                torch.sum(through * tangents[k], 1, out=of_slopes[k])
                if mine is None:
                    of_skips[k] += (through * slopes[k][:, None, :]).sum(0).t()
                else:
                    mine.addcmul_(through, slopes[k][:, None, :])
            if mine is None or p is None or of_p is None:
                continue
            z, flat = inputs[k], mine.view(-1, mine.shape[-1])
            of_p.addmm_(flat.t(), z.view(-1, z.shape[-1]))
            parts = (flat @ p).view(z.shape).split(self.widths[k], -1)
            for source, part in zip(self.wiring.links[k], parts, strict=True):
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
