"""Units that a convex network is made of: what goes forward through them, and what backward.

Everything but the activations is affine. Unit k computes z_k = s_k(a_k) from

    a_k = U_k x + sum_j P_kj z_j + c_k,    P_kj >= 0,

and the last unit's a is the potential F.

References:
    Convex Potential Flows (Huang, Chen, Tsirigotis & Courville, ICLR 2021), equation 7,
    https://arxiv.org/abs/2012.05942, for the networks
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from flowzoo_cp_flow.activations import Softplus


class Weights(NamedTuple):
    """A matrix, with gates of each sample before or after it where it is conditioned.

    Arguments:
        matrix: W (w, v); None is the identity.
        before: Factors (n, v) of the inputs, or None.
        after: Factors (n, w) of the outputs, or None.
    """

    matrix: Tensor | None
    before: Tensor | None = None
    after: Tensor | None = None

    def __call__(self, p: Tensor, plus: Tensor | None = None) -> Tensor:
        """Return W p (..., n, w) for p (..., n, v), and `plus` added."""
        p = p if self.before is None else p * self.before
        if self.after is None and self.matrix is not None and plus is not None:
            flat = plus
            if plus.dim() > 1:
                flat = plus.expand(*p.shape[:-1], plus.shape[-1]).reshape(-1, plus.shape[-1])
            product = torch.addmm(flat, p.reshape(-1, p.shape[-1]), self.matrix.t())
            return product.view(*p.shape[:-1], len(self.matrix))
        p = p if self.matrix is None else p @ self.matrix.t()
        p = p if self.after is None else p * self.after
        return p if plus is None else p + plus

    def transposed(self, q: Tensor) -> Tensor:
        """Return W^T q (..., n, v) for q (..., n, w)."""
        q = q if self.after is None else q * self.after
        q = q if self.matrix is None else q @ self.matrix
        return q if self.before is None else q * self.before

    @property
    def plain(self) -> Tensor | None:
        """The matrix where there is nothing else, or None."""
        return self.matrix if self.before is None and self.after is None else None

    def scaled(self, factor: Tensor) -> Weights:
        """Return diag(factor) W for factors (w,)."""
        if self.matrix is None:
            raise ValueError("the identity cannot be scaled by rows")
        return Weights(self.matrix * factor[:, None], self.before, self.after)

    def of(self, index: Tensor) -> Weights:
        """Return those of some samples."""
        return Weights(self.matrix, _some(self.before, index), _some(self.after, index))


class Unit(NamedTuple):
    """One layer of units that are activated alike.

    Arguments:
        skip: U, from x; None where x does not enter.
        bias: c, (w,) or (n, w).
        links: P by the index of the unit whose z it takes.
        activation: s; None for the last unit, which is the potential.
    """

    skip: Weights | None
    bias: Tensor
    links: tuple[tuple[int, Weights], ...] = ()
    activation: Softplus | None = None

    def of(self, index: Tensor) -> Unit:
        """Return that of some samples."""
        skip = None if self.skip is None else self.skip.of(index)
        bias = self.bias if self.bias.dim() == 1 else self.bias[index]
        links = tuple((source, weights.of(index)) for source, weights in self.links)
        return Unit(skip, bias, links, self.activation)


def _some(gate: Tensor | None, index: Tensor) -> Tensor | None:
    return None if gate is None else gate[index]


class Units:
    """Units with given weights, the potential last.

    Arguments:
        units: The units, each linked to earlier ones, and each but the last to a later one.
        dim: Dimension d of x.
    """

    def __init__(self, units: Sequence[Unit], dim: int) -> None:
        self.units, self.dim = tuple(units), dim

    @cached_property
    def _stacked(self) -> tuple[Tensor, list[int]] | None:
        """All U as one matrix (M, d) and their heights; None where one is gated or missing."""
        rows = [unit.skip and unit.skip.plain for unit in self.units]
        if any(row is None for row in rows):
            return None
        return torch.cat(rows), [len(row) for row in rows]  # pyright: ignore

    def enter(self, p: Tensor) -> list[Tensor | None]:
        """Return U_k p of all units, for p (..., n, d)."""
        if self._stacked is None:
            return [None if unit.skip is None else unit.skip(p) for unit in self.units]
        matrix, heights = self._stacked
        return list((p @ matrix.t()).split(heights, -1))

    def leave(self, q: Sequence[Tensor]) -> Tensor:
        """Return sum_k U_k^T q_k for q_k (..., n, w_k)."""
        if self._stacked is not None:
            every = torch.cat(list(q), -1)
            return every @ self._stacked[0][: every.shape[-1]]
        total = None
        for unit, each in zip(self.units, q, strict=False):  # without the last in a product
            if unit.skip is not None:
                part = unit.skip.transposed(each)
                total = part if total is None else total + part
        assert total is not None
        return total

    def value(self, x: Tensor) -> Tensor:
        """Return F(x) as (n,)."""
        outputs: list[Tensor] = []
        for unit in self.units:
            a = self.argument(unit, x, outputs)
            outputs.append(a if unit.activation is None else unit.activation(a))
        return outputs[-1][:, 0]

    @staticmethod
    def argument(unit: Unit, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Return a unit's a (n, w) from x and the outputs of earlier units."""
        a = unit.bias if unit.skip is None else unit.skip(x, unit.bias)
        for source, weights in unit.links:
            a = weights(outputs[source], a)
        return a

    def pull(
        self, slopes: Sequence[Tensor], top: Tensor | None, own: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Send cotangents of the arguments backward; all but the last are returned twice.

        Arguments:
            slopes: s_k' (n, w_k).
            top: The cotangent (..., n, 1) of the last a, None for zero.
            own: What the other a_k have of their own, (..., n, w_k) each; None for nothing.

        Returns:
            The cotangents of the outputs z_k, and those of the arguments a_k, `top` included.
        """
        last = len(self.units) - 1
        outputs: list[Tensor | None] = [None] * last
        arguments: list[Tensor] = [] if top is None else [top]
        for k in range(last, -1, -1):
            if k < last:
                arguments.append(_through(outputs[k], slopes[k], own[k] if own else None))
            elif top is None:
                continue
            for source, weights in self.units[k].links:
                before, back = outputs[source], weights.transposed(arguments[-1])
                outputs[source] = back if before is None else before + back
        return [z for z in outputs if z is not None], arguments[::-1]

    @cached_property
    def plain(self) -> tuple[list[Tensor], list[list[tuple[int, Tensor]]]] | None:
        """U and, by source, P of all units but the last; None where a matrix has gates or none."""
        links = [[(j, w.plain) for j, w in unit.links] for unit in self.units[:-1]]
        skips = [unit.skip and unit.skip.plain for unit in self.units[:-1]]
        every = [*skips, *(p for row in links for _, p in row)]
        if any(p is None for p in every):
            return None
        return skips, links  # pyright: ignore[reportReturnType]

    def of(self, index: Tensor) -> Units:
        """Return the units of some samples; they differ where they are conditioned."""
        return self if self._shared else Units([unit.of(index) for unit in self.units], self.dim)

    @cached_property
    def _shared(self) -> bool:
        """Whether all samples have the same weights."""
        every = [w for unit in self.units for _, w in unit.links]
        every += [unit.skip for unit in self.units if unit.skip is not None]
        gated = any(w.before is not None or w.after is not None for w in every)
        return not gated and all(unit.bias.dim() == 1 for unit in self.units)


def _through(output: Tensor | None, slope: Tensor, own: Tensor | None) -> Tensor:
    """Return the cotangent of an argument: that of its output times the slope, plus its own."""
    if output is None:
        assert own is not None
        return own
    return output * slope if own is None else torch.addcmul(own, output, slope)
