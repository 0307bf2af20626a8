"""Dense input-convex networks: each layer sees the outputs of all earlier ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from flowzoo_cp_flow.activations import Smoothing, Softplus
from flowzoo_cp_flow.conditioning import Conditioned, Gate
from flowzoo_cp_flow.icnn import require_sizes
from flowzoo_cp_flow.layers import Normalisation, Positive, Positivity, Start, listed
from flowzoo_cp_flow.network import Layers, Network
from flowzoo_cp_flow.units import Unit, Weights


class DenseICNN(Network):
    r"""The dense convex network: each layer takes all before it.

    z_{k+1} = s(N(P_k [z_1; ...; z_k] + U_k x)) with positive P_k, z_1 = s_0(N(W_0 x + b_0)), F =
    N(P_K [z_1; ...; z_K] + u x). The published code's DenseICNN2.

    Arguments:
        dim: Dimension d of x.
        width: Units of a layer.
        layers: Hidden layers K.
        activation: The smoothing of the softplus.
        centred: Whether the activation of 0 is 0.
        symmetric: Whether s_0 is an even function.
        bias: Whether P_k and U_k have biases beside the shift of the normalisation.
        positivity: How positive weights come from free ones.
        start: How positive weights are drawn.

    Raises:
        Incompatible: A size is not positive.

    References:
        Convex Potential Flows (Huang, Chen, Tsirigotis & Courville, ICLR 2021),
        https://arxiv.org/abs/2012.05942, and its code
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"width": 8, "layers": 2},
        {"width": 8, "layers": 3, "activation": "gaussian", "centred": True, "symmetric": True},
    )

    def __init__(
        self,
        dim: int,
        width: int = 64,
        layers: int = 3,
        activation: Smoothing = "logistic",
        centred: bool = False,
        symmetric: bool = False,
        bias: bool = False,
        positivity: Positivity = "softplus",
        start: Start = "uniform",
    ) -> None:
        super().__init__()
        require_sizes("dense-icnn", dim=dim, width=width, layers=layers)
        self.dim, self.width = dim, width
        self.activation = Softplus(activation, centred)
        self.first = Softplus(activation, centred, symmetric)
        self.entry, widths = nn.Linear(dim, width), [width] * (layers - 1) + [1]
        biased = [bias] * (layers - 1) + [False]
        self.positive = listed(
            Positive(k * width, w, b, positivity, start)
            for k, (w, b) in enumerate(zip(widths, biased, strict=True), 1)
        )
        self.skips = listed(nn.Linear(dim, w, bias=b) for w, b in zip(widths, biased, strict=True))
        self.norms = listed([Normalisation(w) for w in [width, *widths]])

    def layers(self, context: Tensor | None) -> Layers:
        """Return the K hidden layers and the output."""
        entry = Unit(Weights(self.entry.weight), self.entry.bias, (), self.first)
        found = [(entry, self.norms[0])]
        every = zip(self.positive, self.skips, self.norms[1:], strict=True)
        for positive, skip, norm in every:
            pieces = positive.weight.split(self.width, 1)
            links = tuple((source, Weights(piece)) for source, piece in enumerate(pieces))
            bias = positive.offset() if skip.bias is None else positive.offset() + skip.bias
            activation = None if skip is self.skips[-1] else self.activation
            found.append((Unit(Weights(skip.weight), bias, links, activation), norm))
        return found


class DensePICNN(Conditioned):
    r"""A `DenseICNN` whose layers are gated and shifted by features of the context, as in `PICNN`.

    Arguments:
        dim: Dimension d of x.
        width: Units of a layer, and features of the context.
        layers: Hidden layers K.
        activation: The smoothing of the softplus.
        centred: Whether the activation of 0 is 0.
        symmetric: Whether s_0 is an even function.
        context_dim: Width of the context; 0 leaves the `DenseICNN`.
        gate: Where the gates of hidden layers start, as for `PICNN`.
        positivity: How positive weights come from free ones.
        start: How positive weights are drawn.

    Raises:
        Incompatible: A size is not positive.

    References:
        Convex Potential Flows (Huang, Chen, Tsirigotis & Courville, ICLR 2021),
        https://arxiv.org/abs/2012.05942, and its code
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({"width": 8, "layers": 2},)

    def __init__(
        self,
        dim: int,
        width: int = 64,
        layers: int = 3,
        activation: Smoothing = "gaussian",
        centred: bool = True,
        symmetric: bool = True,
        context_dim: int = 0,
        gate: Gate = "one",
        positivity: Positivity = "softplus",
        start: Start = "uniform",
    ) -> None:
        plain = DenseICNN(
            dim, width, layers, activation, centred, symmetric, True, positivity, start
        )
        super().__init__(plain, plain.positive, context_dim, width, gate)
