"""Moving batch normalisation: FFJORD's layer between stacked blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowzoo.errors import UserError
from flowzoo.flow import Encoded, Flow
from flowzoo.regularizers import RunningCost


class MovingBatchNorm(Flow):
    """z = (x - m) exp(w) / sqrt(s^2 + eps) + b, with moving averages m and s^2 of the batches.

    It always normalises with the moving averages, in training too, so that a sample's log-density
    does not depend on the rest of its batch. In training mode `encode` then moves them by `decay`
    towards the batch's mean and unbiased variance: a `decode` after it is the inverse of the next
    `encode`, not of that one. Batches of one row leave them as they are.

    Arguments:
        dim: Dimension d of the data.
        decay: Share of a batch in the moving averages.
        eps: Added to the variance.

    References:
        FFJORD's code (`MovingBatchNorm1d` with bn_lag 0); off in all of its published settings
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, decay: float = 0.1, eps: float = 1e-4) -> None:
        super().__init__()
        if not 0 <= decay <= 1:
            raise UserError(f"moving-batch-norm: decay must lie in [0, 1], got {decay}")
        if not eps > 0:
            raise UserError(f"moving-batch-norm: eps must be positive, got {eps}")
        self.dim, self.decay, self.eps = dim, decay, eps
        self.weight = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def encode(
        self,
        x: Tensor,
        running: Sequence[RunningCost] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """Normalise; ladj is sum_j w_j - log(s_j^2 + eps) / 2 for every sample."""
        self.requires(running)
        log_scale = self._log_scale()
        z = (x - self.running_mean) * log_scale.exp() + self.bias
        if self.training and x.shape[0] > 1:
            self._follow(x.detach())
        return Encoded(z, log_scale.sum().expand(x.shape[0]), x.new_zeros(x.shape[0], 0))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Undo the normalisation."""
        return (z - self.bias) * (-self._log_scale()).exp() + self.running_mean

    def _log_scale(self) -> Tensor:
        return self.weight - 0.5 * torch.log(self.running_var + self.eps)

    def _follow(self, x: Tensor) -> None:
        with torch.no_grad():
            self.running_mean.lerp_(x.mean(0), self.decay)
            self.running_var.lerp_(x.var(0), self.decay)
