"""Input-convex networks: the plain one, and the one whose layers see augmented inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from flowzoo.errors import Incompatible
from flowzoo_cp_flow.activations import Smoothing, Softplus
from flowzoo_cp_flow.layers import Normalisation, Positive, Positivity, Start, listed
from flowzoo_cp_flow.network import Layers, Network
from flowzoo_cp_flow.units import Unit, Weights


class ICNN(Network):
    r"""The input-convex network: z_{k+1} = s(P_k z_k + U_k x + c_k) with positive P_k.

    z_1 = s_0(W_0 x + b_0), F = P_K z_K + u x. With `normalise` every argument, the output too, is
    normalised by the first training batch: the published code's ICNN2; without, its ICNN, whose P_k
    have no bias.

    Arguments:
        dim: Dimension d of x.
        width: Units of a layer.
        layers: Hidden layers K.
        activation: The smoothing of the softplus.
        centred: Whether the activation of 0 is 0.
        symmetric: Whether the first layer's activation is an even function.
        normalise: Normalise the arguments.
        positivity: How positive weights come from free ones.
        start: How positive weights are drawn.

    Raises:
        Incompatible: A size is not positive.

    References:
        Input Convex Neural Networks (Amos, Xu & Kolter, ICML 2017),
        https://arxiv.org/abs/1609.07152; Convex Potential Flows (Huang et al., ICLR 2021),
        https://arxiv.org/abs/2012.05942
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"width": 8, "layers": 2},
        {"width": 8, "layers": 1, "normalise": False},
        {"width": 8, "layers": 3, "activation": "gaussian", "centred": True, "symmetric": True},
        {"width": 8, "layers": 2, "positivity": "exp", "start": "spread"},
    )

    def __init__(
        self,
        dim: int,
        width: int = 64,
        layers: int = 3,
        activation: Smoothing = "logistic",
        centred: bool = False,
        symmetric: bool = False,
        normalise: bool = True,
        positivity: Positivity = "softplus",
        start: Start = "uniform",
    ) -> None:
        super().__init__()
        require_sizes("icnn", dim=dim, width=width, layers=layers)
        self.dim = dim
        self.activation = Softplus(activation, centred)
        self.first = Softplus(activation, centred, symmetric)
        self.entry = nn.Linear(dim, width)
        inner = range(layers - 1)
        self.positive = listed(
            [Positive(width, width, normalise, positivity, start) for _ in inner]
            + [Positive(width, 1, False, positivity, start)]
        )
        self.skips = listed(
            [nn.Linear(dim, width) for _ in inner] + [nn.Linear(dim, 1, bias=False)]
        )
        widths = [width] * layers + [1]
        self.norms = listed([Normalisation(w) for w in widths] if normalise else [])

    def layers(self, context: Tensor | None) -> Layers:
        """Return the K hidden layers and the output."""
        norms = list(self.norms) or [None] * (len(self.positive) + 1)
        found = [(Unit(Weights(self.entry.weight), self.entry.bias, (), self.first), norms[0])]
        for k, (positive, skip) in enumerate(zip(self.positive, self.skips, strict=True)):
            last = k == len(self.positive) - 1
            bias = positive.offset() if last else positive.offset() + skip.bias
            links = ((k, Weights(positive.weight)),)
            activation = None if last else self.activation
            found.append((Unit(Weights(skip.weight), bias, links, activation), norms[k + 1]))
        return found


class InputAugmented(Network):
    r"""The input-augmented convex network: half of each layer sees x alone.

    z_{k+1} = [s(N(P_k z_k + U_k x + c_k)); s_0(V_k x + g_k)] with positive P_k, z_1 = s_0(W_0 x +
    b_0), F = N(P_K z_K + u x). The published code's ICNN3, its default.

    Arguments:
        dim: Dimension d of x.
        width: Units of a layer, an even number.
        layers: Hidden layers K.
        activation: The smoothing of the softplus.
        centred: Whether the activation of 0 is 0.
        symmetric: Whether s_0 is an even function.
        positivity: How positive weights come from free ones.
        start: How positive weights are drawn.

    Raises:
        Incompatible: A size is not positive, or the width is odd.

    References:
        Convex Potential Flows (Huang, Chen, Tsirigotis & Courville, ICLR 2021), equation 7,
        https://arxiv.org/abs/2012.05942
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"width": 8, "layers": 2},
        {"width": 8, "layers": 3, "activation": "gaussian", "centred": True, "symmetric": True},
        {"width": 8, "layers": 2, "activation": "cauchy", "start": "spread"},
    )

    def __init__(
        self,
        dim: int,
        width: int = 64,
        layers: int = 3,
        activation: Smoothing = "gaussian",
        centred: bool = True,
        symmetric: bool = True,
        positivity: Positivity = "softplus",
        start: Start = "uniform",
    ) -> None:
        super().__init__()
        require_sizes("input-augmented", dim=dim, width=width, layers=layers)
        if width % 2:
            raise Incompatible(f"input-augmented: half of width {width} sees x alone; make it even")
        self.dim = dim
        self.activation = Softplus(activation, centred)
        self.first = Softplus(activation, centred, symmetric)
        self.entry, half, inner = nn.Linear(dim, width), width // 2, range(layers - 1)
        self.positive = listed(
            [Positive(width, half, True, positivity, start) for _ in inner]
            + [Positive(width, 1, False, positivity, start)]
        )
        self.skips = listed([nn.Linear(dim, half) for _ in inner] + [nn.Linear(dim, 1, bias=False)])
        self.augments = listed([nn.Linear(dim, half) for _ in inner])
        # The potential's own shift is without effect on its gradient.
        self.norms = listed([*(Normalisation(half) for _ in inner), Normalisation(1, free=False)])

    def layers(self, context: Tensor | None) -> Layers:
        """Return the entry, two units for each further layer, and the output."""
        entry = Unit(Weights(self.entry.weight), self.entry.bias, (), self.first)
        found: list[tuple[Unit, Normalisation | None]] = [(entry, None)]
        for k, (positive, skip) in enumerate(zip(self.positive, self.skips, strict=True)):
            last, weight = k == len(self.positive) - 1, positive.weight
            half = weight.shape[1] // 2
            links = ((2 * k - 1, Weights(weight[:, :half])), (2 * k, Weights(weight[:, half:])))
            links = links if k else ((0, Weights(weight)),)
            bias = positive.offset() if last else positive.offset() + skip.bias
            activation = None if last else self.activation
            unit = Unit(Weights(skip.weight), bias, links, activation)
            found.append((unit, self.norms[k]))
            if not last:
                aside = self.augments[k]
                found.append((Unit(Weights(aside.weight), aside.bias, (), self.first), None))
        return found


def require_sizes(name: str, **sizes: int) -> None:
    """Raise Incompatible unless all sizes are positive."""
    for what, size in sizes.items():
        if size < 1:
            raise Incompatible(f"{name}: {what} must be at least 1, got {size}")
