"""The linear autoregressive flow that CP-Flow's transport is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.linalg import solve_triangular

from flowzoo.flow import Encoded, Flow
from flowzoo.regularizers import RunningCost


class Triangular(Flow):
    r"""z = L x + b with L = D (I + N), D diagonal and positive, N strictly lower triangular.

    First the identity. N are regressions on the coordinates before, whatever their scales D.
    Its density is N(-L^-1 b, (L^T L)^-1), so that likelihood fits any Gaussian: on real data it is
    the baseline of a Gaussian with full covariance. Its map is the Knothe-Rosenblatt one, which is
    the optimal L = Sigma^-1/2 only where the covariance Sigma is diagonal.

    Arguments:
        dim: Dimension d of the data.

    References:
        Convex Potential Flows (Huang, Chen, Tsirigotis & Courville, ICLR 2021), section 5.2,
        https://arxiv.org/abs/2012.05942
    """

    place: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("place", torch.tril_indices(dim, dim), persistent=False)
        self.raw = nn.Parameter(
            torch.zeros(dim * (dim + 1) // 2)
        )  # N by rows, with log D on the diagonal
        self.shift = nn.Parameter(torch.zeros(dim))

    def encode(
        self,
        x: Tensor,
        running: Sequence[RunningCost] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """Return L x + b; ladj is sum_i log L_ii for every sample."""
        self.requires(running)
        factor, log_diagonal = self._factor()
        z = torch.addmm(self.shift, x, factor.mT)
        return Encoded(z, log_diagonal.sum().expand(x.shape[0]), x.new_zeros(x.shape[0], 0))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Solve L x = z - b."""
        return solve_triangular(self._factor()[0].mT, z - self.shift, upper=True, left=False)

    def _factor(self) -> tuple[Tensor, Tensor]:
        """Return L (d, d) and the logarithms of its diagonal (d,)."""
        raw = self.raw.new_zeros(self.dim, self.dim).index_put(tuple(self.place), self.raw)
        log_diagonal = raw.diagonal()
        unit = raw.tril(-1) + torch.eye(self.dim, dtype=raw.dtype, device=raw.device)
        return log_diagonal.exp()[:, None] * unit, log_diagonal
