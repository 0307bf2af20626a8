"""FFJORD's velocity: a fully connected network in which every layer sees time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowzoo.errors import Incompatible, UserError
from flowzoo.field import Point, Velocity
from flowzoo.registry import suggest
from flowzoo_ffjord.activations import ACTIVATIONS, Activation, ActivationName
from flowzoo_ffjord.jacobian import LayeredJacobian, MinusIdentity
from flowzoo_ffjord.layers import LAYERS, LayerName, TimeLinear


class ODENet(Velocity):
    """v(t, x) = A_L(t) s(... s(A_1(t) [x; context])): a network whose layers depend on time.

    The Jacobian is in closed form. With up to two hidden layers the exact trace costs no more than
    an evaluation of v, whatever d is, so that Hutchinson's estimate saves nothing; with more, it
    costs up to d evaluations, and memory for as many activations.

    Arguments:
        dim: Dimension d of the data.
        hidden: Widths of the hidden layers; empty for a velocity that is affine in x.
        times_dim: True reads `hidden` as multiples of `dim`, as FFJORD sizes its tabular networks.
        layer: How layers depend on time: `ignore` W x + b; `concat` W [t; x] + b; `squash`
            (W x + b) sigmoid(g t + c); `concatsquash` the same plus w t; `blend` interpolates two
            layers over t in [0, 1], so it wants end_time 1; `hyper` computes W and b from t.
        activation: What follows every layer but the last: smooth ones are tanh, softplus (and
            softplus20, with 20 h in place of h), swish.
        context_dim: Width of the context, which is appended to the first layer's input; 0 has none.
        zero_last: True starts with a last layer whose weights are zero, so that the flow starts as
            a shift (RNODE).
        residual: True subtracts x from the network's output, so that a network of zeros contracts.
            Of the identity that this takes from the Jacobian, Hutchinson's estimate sees |p|^2;
            FFJORD's code takes d, which with Gaussian probes is another number of the same mean.

    Raises:
        UserError: A width is not positive, or a layer or an activation is unknown.

    References:
        FFJORD (Grathwohl et al., ICLR 2019), https://arxiv.org/abs/1810.01367, appendix B;
        `zero_last` is of How to Train Your Neural ODE (Finlay et al., ICML 2020),
        https://arxiv.org/abs/2002.02798
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        *({"hidden": (8, 8), "layer": layer} for layer in LAYERS),
        {"hidden": (8, 8), "residual": True},
    )

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64, 64),
        times_dim: bool = False,
        layer: LayerName = "concatsquash",
        activation: ActivationName = "tanh",
        context_dim: int = 0,
        zero_last: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if any(width < 1 for width in hidden):
            raise UserError(f"every hidden width must be at least 1, got {list(hidden)}")
        make = _chosen("layer", layer, LAYERS)
        bend = _chosen("activation", activation, ACTIVATIONS)
        self.dim, self.context_dim, self.residual = dim, context_dim, residual
        widths = [width * dim if times_dim else width for width in hidden]
        sizes = [dim + context_dim, *widths, dim]
        layers = [make(a, b) for a, b in pairwise(sizes)]
        if zero_last:
            layers[-1].zero()
        self.layers = nn.ModuleList(layers)
        self.activations = nn.ModuleList(bend() for _ in widths)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return v(t, x) as (n, d), for t () or (n,), x (n, d) and context (n, c) or None."""
        layers, activations = self._parts()
        h = self._input(x, context)
        for layer, activation in zip(layers[:-1], activations, strict=True):
            h = activation(layer.at(t)(h))
        v = layers[-1].at(t)(h)
        return v - x if self.residual else v

    def at(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Point:
        """Return the velocity and its closed-form Jacobian, from one set of activations."""
        layers, activations = self._parts()
        maps = [layer.at(t) for layer in layers]
        y, slopes = self._input(x, context), []
        for affine, activation in zip(maps[:-1], activations, strict=True):
            h = affine(y)
            y = activation(h)
            slopes.append(activation.slope(h, y))
        v = maps[-1](y)
        on_x = [maps[0].restricted(self.dim), *maps[1:]] if self.context_dim else maps
        jacobian = LayeredJacobian(on_x, slopes, x.shape[0])
        if self.residual:
            return Point(t, x, v - x, MinusIdentity(jacobian, self.dim))
        return Point(t, x, v, jacobian)

    def _parts(self) -> tuple[list[TimeLinear], list[Activation]]:
        return list(self.layers), list(self.activations)  # pyright: ignore[reportReturnType]

    def _input(self, x: Tensor, context: Tensor | None) -> Tensor:
        width = 0 if context is None else context.shape[-1]
        if width != self.context_dim:
            raise Incompatible(
                f"odenet was built for a context of width {self.context_dim}, got {width}: "
                f"set its context_dim to {width}, or give the context it expects"
            )
        return x if context is None else torch.cat([x, context], -1)


def _chosen(option: str, name: str, known: dict) -> type:
    if name not in known:
        raise UserError(f"unknown {option} '{name}'{suggest(name, known)}")
    return known[name]
