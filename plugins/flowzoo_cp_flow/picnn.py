"""The partially input-convex network: convex in x, and free to depend on a context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from flowzoo_cp_flow.activations import Smoothing
from flowzoo_cp_flow.conditioning import Conditioned, Gate
from flowzoo_cp_flow.icnn import ICNN
from flowzoo_cp_flow.layers import Positivity, Start


class PICNN(Conditioned):
    r"""An `ICNN` whose layers are gated and shifted by features h = ELU(N(W c + b)) of the context.

    z_{k+1} = s(N(P_k (z_k * softplus(W_k h)) + U_k (x * (1 + G_k h)) + c_k + C_k h)), and so the
    output, without a shift. h is the same for all layers, unlike in the original.

    Arguments:
        dim: Dimension d of x.
        width: Units of a layer, and features of the context.
        layers: Hidden layers K.
        activation: The smoothing of the softplus.
        centred: Whether the activation of 0 is 0.
        symmetric: Whether the first layer's activation is an even function.
        context_dim: Width of the context; 0 leaves the `ICNN`.
        gate: Where the gates of hidden layers start: at `one`, or at the `published` 0.894, a slip.
        positivity: How positive weights come from free ones.
        start: How positive weights are drawn.

    Raises:
        Incompatible: A size is not positive.

    References:
        Input Convex Neural Networks (Amos, Xu & Kolter, ICML 2017),
        https://arxiv.org/abs/1609.07152; Convex Potential Flows (Huang et al., ICLR 2021),
        https://arxiv.org/abs/2012.05942, and its code
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"width": 8, "layers": 2},
        {"width": 8, "layers": 1, "activation": "logistic", "gate": "published"},
    )

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
        plain = ICNN(dim, width, layers, activation, centred, symmetric, True, positivity, start)
        super().__init__(plain, plain.positive, context_dim, width, gate)
