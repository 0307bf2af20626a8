"""The partially input-convex network whose gates come after the linear maps, unit by unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from flowzoo.errors import Incompatible
from flowzoo_cp_flow.activations import Smoothing, Softplus
from flowzoo_cp_flow.conditioning import Features, Gate, blank, positive_gate
from flowzoo_cp_flow.icnn import require_sizes
from flowzoo_cp_flow.layers import Normalisation, Positive, Positivity, Start, listed
from flowzoo_cp_flow.network import Layers, Network
from flowzoo_cp_flow.units import Unit, Weights


class FilmPICNN(Network):
    r"""Input-augmented layers, each unit modulated by features h = ELU(N(W c + b)) of the context.

    z_{k+1} = [s(N((P_k z_k + b_k) * softplus(W_k h) + (U_k x + c_k) * (1 + G_k h) + C_k h));
    s_0(N((V_k x + g_k) * (1 + G'_k h) + C'_k h))], z_1 = s_0(N((W_0 x + b_0) * (1 + G_0 h))) and
    F = N(P_K z_K * softplus(W_K h) + u x * (1 + G_K h)). The published code's PICNNFW.

    Arguments:
        dim: Dimension d of x.
        width: Units of a layer, an even number, and features of the context.
        layers: Hidden layers K.
        activation: The smoothing of the softplus.
        centred: Whether the activation of 0 is 0.
        symmetric: Whether s_0 is an even function.
        context_dim: Width of the context; without one nothing is modulated.
        gate: Where the gates of hidden layers start: at `one`, or at the `published` 0.894, a slip.
        positivity: How positive weights come from free ones.
        start: How positive weights are drawn.

    Raises:
        Incompatible: A size is not positive, or the width is odd.

    References:
        FiLM: Visual Reasoning with a General Conditioning Layer (Perez, Strub, de Vries, Dumoulin &
        Courville, AAAI 2018), https://arxiv.org/abs/1709.07871; Convex Potential Flows (Huang et
        al., ICLR 2021), https://arxiv.org/abs/2012.05942, and its code
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
        super().__init__()
        require_sizes("film-picnn", dim=dim, width=width, layers=layers)
        if width % 2:
            raise Incompatible(f"film-picnn: half of width {width} sees x alone; make it even")
        self.dim, self.context_dim = dim, context_dim
        self.gate: Gate = gate
        self.activation = Softplus(activation, centred)
        self.first = Softplus(activation, centred, symmetric)
        self.entry, half, inner = nn.Linear(dim, width), width // 2, range(layers - 1)
        self.positive = listed(
            [Positive(width, half, True, positivity, start) for _ in inner]
            + [Positive(width, 1, False, positivity, start)]
        )
        self.skips = listed([nn.Linear(dim, half) for _ in inner] + [nn.Linear(dim, 1, bias=False)])
        self.augments = listed(nn.Linear(dim, half) for _ in inner)
        widths = [half] * len(inner) + [1]
        self.norms = listed(Normalisation(w) for w in [width, *widths])
        self.augment_norms = listed(Normalisation(half) for _ in inner)
        gated = context_dim > 0
        self.features = Features(context_dim, width) if gated else None
        self.output_gates = listed(blank(width, w) for w in [width, *widths] if gated)
        self.input_gates = listed(blank(width, w) for w in widths if gated)
        self.augment_gates = listed(blank(width, half) for _ in inner if gated)
        self.shifts = listed(nn.Linear(width, width) for _ in inner if gated)

    def layers(self, context: Tensor | None) -> Layers:
        """Return the entry, two units for each further layer, and the output."""
        h = None if self.features is None or context is None else self.features(context)
        skip, bias = _modulated(self.entry, self.output_gates, 0, h)
        found = [(Unit(skip, bias, (), self.first), self.norms[0])]
        for k, aside in enumerate(self.augments):
            shift = (0.0, 0.0) if h is None else self.shifts[k](h).chunk(2, -1)
            unit = self._unit(k, h)
            found.append((unit._replace(bias=unit.bias + shift[0]), self.norms[k + 1]))
            skip, bias = _modulated(aside, self.augment_gates, k, h)
            found.append((Unit(skip, bias + shift[1], (), self.first), self.augment_norms[k]))
        return [*found, (self._unit(len(self.augments), h), self.norms[-1])]

    def settle_context(self, context: Tensor | None) -> None:
        """Set the normalisation of the features."""
        if self.features is not None and context is not None:
            self.features.settle(context)

    def _unit(self, k: int, h: Tensor | None) -> Unit:
        """Return the unit that sees the outputs of layer k, without its shift."""
        positive, last = self.positive[k], k == len(self.augments)
        gate = None
        if h is not None:
            gate = positive_gate(self.output_gates[k + 1](h), self.gate, last)
        pieces = positive.weight.chunk(2, 1) if k else (positive.weight,)
        start = max(0, 2 * k - 1)
        links = tuple((start + j, Weights(piece, after=gate)) for j, piece in enumerate(pieces))
        skip, bias = _modulated(self.skips[k], self.input_gates, k, h)
        offset = positive.offset() if gate is None else positive.offset() * gate
        return Unit(skip, offset + bias, links, None if last else self.activation)


def _modulated(
    layer: nn.Linear, gates: Sequence[nn.Linear], k: int, h: Tensor | None
) -> tuple[Weights, Tensor]:
    """Return W and b of a layer, both multiplied by a gate where there are features."""
    bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
    if h is None:
        return Weights(layer.weight), bias
    gate = 1 + gates[k](h)
    return Weights(layer.weight, after=gate), bias * gate
