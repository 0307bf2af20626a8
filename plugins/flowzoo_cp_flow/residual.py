"""The residual input-convex network: each layer adds a small network of its input to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowzoo_cp_flow.activations import Smoothing, Softplus
from flowzoo_cp_flow.icnn import require_sizes
from flowzoo_cp_flow.layers import Normalisation, Positive, Positivity, Start, listed
from flowzoo_cp_flow.network import Layers, Network
from flowzoo_cp_flow.units import Unit, Weights


class ResidualICNN(Network):
    r"""The residual convex network: each layer adds a small network of its input to it.

    z_{k+1} = s(N(z_k + Q_k softplus(N(P_k z_k)) + U_k x + c_k)) with positive P_k and Q_k, z_1 =
    s_0(N(W_0 x + b_0)), F = N(P_K z_K + u x). The inner activation is the softplus itself, whatever
    the others are. The published code's ResICNN2.

    Arguments:
        dim: Dimension d of x.
        width: Units of a layer.
        layers: Hidden layers K, of which all but the first are residual.
        activation: The smoothing of the softplus.
        centred: Whether the activation of 0 is 0.
        symmetric: Whether s_0 is an even function.
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
        positivity: Positivity = "softplus",
        start: Start = "uniform",
    ) -> None:
        super().__init__()
        require_sizes("residual-icnn", dim=dim, width=width, layers=layers)
        self.dim = dim
        self.activation = Softplus(activation, centred)
        self.first = Softplus(activation, centred, symmetric)
        self.within = Softplus()
        self.entry, inner = nn.Linear(dim, width), range(layers - 1)
        self.inner = listed([Positive(width, width, False, positivity, start) for _ in inner])
        self.inner_norms = listed([Normalisation(width) for _ in inner])
        self.positive = listed(
            [Positive(width, width, True, positivity, start) for _ in inner]
            + [Positive(width, 1, False, positivity, start)]
        )
        # The normalisations shift.
        self.skips = listed([nn.Linear(dim, w, bias=False) for w in [width] * len(inner) + [1]])
        self.norms = listed([Normalisation(w) for w in [width] * layers + [1]])

    def layers(self, context: Tensor | None) -> Layers:
        """Return the entry, two units for each further layer, and the output."""
        entry = Unit(Weights(self.entry.weight), self.entry.bias, (), self.first)
        found = [(entry, self.norms[0])]
        # As a matrix, whose rows can be scaled.
        like = self.entry.weight
        same = Weights(torch.eye(len(like), dtype=like.dtype, device=like.device))
        every = zip(
            self.inner, self.inner_norms, self.positive, self.skips, self.norms[1:], strict=False
        )
        for k, (inner, inner_norm, positive, skip, norm) in enumerate(every):
            z, link = 2 * k, Weights(inner.weight)
            found.append((Unit(None, inner.offset(), ((z, link),), self.within), inner_norm))
            links = ((z, same), (z + 1, Weights(positive.weight)))
            unit = Unit(Weights(skip.weight), positive.offset(), links, self.activation)
            found.append((unit, norm))
        last, skip = self.positive[-1], self.skips[-1]
        links = ((len(found) - 1, Weights(last.weight)),)
        found.append((Unit(Weights(skip.weight), last.offset(), links), self.norms[-1]))
        return found
