"""Convex networks: what all architectures share, in closed form through their units."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from flowzoo.errors import Incompatible
from flowzoo_cp_flow.convex import Convex, ConvexPoint
from flowzoo_cp_flow.curvature import expand
from flowzoo_cp_flow.layers import Normalisation
from flowzoo_cp_flow.units import Unit, Units

Layers: TypeAlias = Sequence[tuple[Unit, Normalisation | None]]


class Network(Convex):
    """A convex network, said layer by layer: `layers` gives each unit and its normalisation.

    Value, gradient, Hessian and products with it come in closed form from the units.
    """

    @abstractmethod
    def layers(self, context: Tensor | None) -> Layers:
        """Return the units, each with the normalisation of its argument or None."""

    def units(self, context: Tensor | None = None) -> Units:
        """Return the units with their normalisations folded into the weights.

        Raises:
            Incompatible: The context is missing, needless or of another width.
        """
        self._require_width(context)
        return Units([_folded(*layer) for layer in self.layers(context)], self.dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return F(x) as (n,)."""
        return self.units(context).value(x)

    def at(self, x: Tensor, context: Tensor | None = None) -> ConvexPoint:
        """Return value, gradient and Hessian at x, in closed form."""
        return ConvexPoint(*expand(self.units(context), x))

    @property
    def waits(self) -> bool:
        """Whether the normalisations wait for the first training batch."""
        return any(m.waits for m in self.modules() if isinstance(m, Normalisation))

    @torch.no_grad()
    def settle(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set the normalisations, layer after layer, from a batch of at least two points."""
        self._require_width(context)
        self.settle_context(context)
        outputs: list[Tensor] = []
        for unit, normalisation in self.layers(context):
            a = Units.argument(unit, x, outputs)
            if normalisation is not None:
                normalisation.set(a)
                a = (a + normalisation.shift) * normalisation.scale
            outputs.append(a if unit.activation is None else unit.activation(a))

    def settle_context(self, context: Tensor | None) -> None:
        """Set the normalisations that see the context alone; `layers` may use them afterwards."""

    def _require_width(self, context: Tensor | None) -> None:
        width = 0 if context is None else context.shape[-1]
        if width != self.context_dim:
            raise Incompatible(
                f"{type(self).__name__} was built for a context of width {self.context_dim}, got "
                f"{width}: set its context_dim to {width}, or give the context it expects"
            )


def _folded(unit: Unit, normalisation: Normalisation | None) -> Unit:
    """Return a unit whose weights contain the normalisation of its argument."""
    if normalisation is None:
        return unit
    scale = normalisation.scale
    return unit._replace(
        skip=None if unit.skip is None else unit.skip.scaled(scale),
        bias=(unit.bias + normalisation.shift) * scale,
        links=tuple((source, weights.scaled(scale)) for source, weights in unit.links),
    )
