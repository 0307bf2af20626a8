"""How a convex network depends on a context: features of it gate what the network computes of x.

F(x; c) is convex in x for every c as long as the gates of what was activated are positive; what is
linear in x may be multiplied by any number, and shifts are free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, softplus

from flowzoo_cp_flow.layers import Normalisation, Positive, listed
from flowzoo_cp_flow.network import Layers, Network
from flowzoo_cp_flow.units import Unit

Gate: TypeAlias = Literal["one", "published"]

_ONE = math.log(math.expm1(1))  # softplus^-1(1)
_PUBLISHED = math.exp(-1)


class Features(nn.Module):
    """h = ELU(N(W c + b)) of a context c, N a normalisation set by the first training batch.

    Arguments:
        context_dim: Width of the context.
        width: Number of features.
    """

    def __init__(self, context_dim: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(context_dim, width)
        self.norm = Normalisation(width)

    def forward(self, context: Tensor) -> Tensor:
        """Return h (n, width) for contexts (n, c)."""
        return elu((self.linear(context) + self.norm.shift) * self.norm.scale)

    @torch.no_grad()
    def settle(self, context: Tensor) -> None:
        """Set the normalisation from a batch of at least two contexts."""
        self.norm.set(self.linear(context))


class Conditioned(Network):
    r"""A network whose layers but the first are gated and shifted by features h of the context.

    A layer's a = P z + U x + c becomes P (z * g(h)) + U (x * (1 + G h)) + c + C h, with
    g = softplus(W h + w) > 0; the output is not shifted. Gates start at one and shifts small,
    whatever the context.

    Arguments:
        plain: The network without a context, an entry and further layers.
        positive: Its positive weights, of all layers but the entry, whose inputs are as wide as one
            another where there are several.
        context_dim: Width of the context; 0 leaves the plain network.
        width: Number of features.
        gate: Where the gates g of hidden layers start: at `one`, or at the `published` 0.894.
    """

    def __init__(
        self, plain: Network, positive: Sequence[Positive], context_dim: int, width: int, gate: Gate
    ) -> None:
        super().__init__()
        self.plain, self.dim, self.context_dim = plain, plain.dim, context_dim
        self.gate: Gate = gate
        if not context_dim:
            return
        sizes = [layer.raw.shape for layer in positive]
        self.features = Features(context_dim, width)
        self.output_gates = listed(blank(width, inputs) for _, inputs in sizes)
        self.input_gates = listed(blank(width, plain.dim) for _ in sizes)
        self.shifts = listed(nn.Linear(width, outputs) for outputs, _ in sizes[:-1])

    def layers(self, context: Tensor | None) -> Layers:
        """Return the plain network's layers, gated by the context."""
        layers = self.plain.layers(None)
        if context is None:
            return layers
        h = self.features(context)
        gated = [(self._gated(k, unit, h), norm) for k, (unit, norm) in enumerate(layers[1:])]
        return [layers[0], *gated]

    def settle_context(self, context: Tensor | None) -> None:
        """Set the normalisation of the features."""
        if context is not None:
            self.features.settle(context)

    def _gated(self, k: int, unit: Unit, h: Tensor) -> Unit:
        last = k == len(self.shifts)
        assert unit.skip is not None
        gates = positive_gate(self.output_gates[k](h), self.gate, last)
        each = zip(unit.links, gates.chunk(len(unit.links), -1), strict=True)
        return unit._replace(
            skip=unit.skip._replace(before=1 + self.input_gates[k](h)),
            bias=unit.bias if last else unit.bias + self.shifts[k](h),
            links=tuple((source, weights._replace(before=g)) for (source, weights), g in each),
        )


def blank(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer that gives zeros until it is trained."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def positive_gate(free: Tensor, gate: Gate, last: bool) -> Tensor:
    """Return softplus(free + w), w such that the gate starts at one; lower ones where published.

    The published code has exp(log(1) - 1) for log(exp(1) - 1), except in the last layer.
    """
    return softplus(free + (_PUBLISHED if gate == "published" and not last else _ONE))
