"""ActNorm: an affine map of each coordinate, set by the first training batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowzoo.errors import Incompatible
from flowzoo.flow import Encoded, Flow
from flowzoo.regularizers import RunningCost
from flowzoo_cp_flow.layers import Normalisation, require_finite


class ActNorm(Flow):
    """z = (x + b) * (e^l + 0.001), with b and l such that the first training batch is standardised.

    Thereafter they are parameters like others. Until then it is the identity: evaluation never sets
    them, and neither do batches of one row, which have no standard deviation. The 0.001 keeps the
    map from collapsing; it is as published, as is 1e-6 added to standard deviations, so that the
    scale of a constant coordinate is a million.

    Arguments:
        dim: Dimension d of the data.

    References:
        Glow (Kingma & Dhariwal, NeurIPS 2018), https://arxiv.org/abs/1807.03039; Convex Potential
        Flows (Huang, Chen, Tsirigotis & Courville, ICLR 2021), https://arxiv.org/abs/2012.05942,
        and its code
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.norm = Normalisation(dim)

    def encode(
        self,
        x: Tensor,
        running: Sequence[RunningCost] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """Normalise; ladj is the sum of log scales for every sample.

        Raises:
            Incompatible: The points have another dimension, or a cost needs a trajectory.
            Diverged: The first training batch holds nan or inf.
        """
        self.requires(running)
        if x.shape[-1] != self.dim:  # one coordinate would be broadcast
            raise Incompatible(f"actnorm: points have {x.shape[-1]} dimensions, not {self.dim}")
        if self.training and x.shape[0] > 1 and self.norm.waits:
            require_finite("actnorm", x)
            self.norm.set(x.detach())
        scale, n = self.norm.scale, x.shape[0]
        z = (x + self.norm.shift) * scale
        return Encoded(z, scale.log().sum().expand(n), x.new_zeros(n, 0))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Undo the normalisation."""
        return z / self.norm.scale - self.norm.shift
