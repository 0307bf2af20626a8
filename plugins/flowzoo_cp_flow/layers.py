"""Layers of convex networks: weights that are positive, and a normalisation set by the data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from flowzoo.errors import Diverged

Positivity: TypeAlias = Literal["softplus", "exp"]
Start: TypeAlias = Literal["uniform", "spread"]
M = TypeVar("M", bound=nn.Module)

_LEAST = 1e-3  # of a normalisation's scale
_TINY = 1e-6  # added to a standard deviation


class Positive(nn.Module):
    """y = (P z + b) / v with P > 0 for z (n, v): the mean of the inputs, not their sum.

    The bias is divided, too, as in the published code.

    Arguments:
        inputs: Width v of z.
        outputs: Width w of y.
        bias: Whether there is one.
        positivity: P = softplus(W) as published, or exp(W).
        start: `uniform` draws W as torch does for any layer, as published: the P are then nearly
            equal and the layer is of rank one but for a hundredth. `spread` draws P from a
            log-normal law of mean log 2 and standard deviation three times that, so that units
            differ from the first step on.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool = True,
        positivity: Positivity = "softplus",
        start: Start = "uniform",
    ) -> None:
        super().__init__()
        self.positivity: Positivity = positivity
        self.raw = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        bound = 1 / math.sqrt(inputs)
        nn.init.uniform_(self.raw, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        if start == "spread":
            with torch.no_grad():
                self.raw.copy_(self._raw_of(_log_normal(self.raw)))

    @property
    def weight(self) -> Tensor:
        """P / v (w, v)."""
        positive = softplus(self.raw) if self.positivity == "softplus" else self.raw.exp()
        return positive / self.raw.shape[1]

    def offset(self) -> Tensor:
        """Return b / v (w,)."""
        if self.bias is None:
            return self.raw.new_zeros(len(self.raw))
        return self.bias / self.raw.shape[1]

    def _raw_of(self, positive: Tensor) -> Tensor:
        log = positive.log()
        # softplus^-1(p) = log(e^p - 1) = p + log(1 - e^-p)
        return log if self.positivity == "exp" else positive + torch.log(-torch.expm1(-positive))


def _log_normal(like: Tensor) -> Tensor:
    variance = math.log(1 + 3**2)
    mean = math.log(math.log(2)) - 0.5 * variance
    return torch.exp(mean + math.sqrt(variance) * torch.randn_like(like))


class Normalisation(nn.Module):
    """N(a) = (a + b) * (e^l + 0.001), with b and l from the first training batch.

    Thereafter they are parameters like others. Until then N is the identity. Whether they were set
    is part of the state.

    Arguments:
        width: Number of units.
        free: Whether b is trained.
    """

    ready: Tensor

    def __init__(self, width: int, free: bool = True) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(width), requires_grad=free)
        self.log_scale = nn.Parameter(torch.full((width,), math.log1p(-_LEAST)))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
        self._known = False  # so that an accelerator is asked once

    @property
    def scale(self) -> Tensor:
        """e^l + 0.001 (w,)."""
        return self.log_scale.exp() + _LEAST

    @property
    def waits(self) -> bool:
        """Whether b and l are still to be set."""
        self._known = self._known or bool(self.ready)
        return not self._known

    @torch.no_grad()
    def set(self, a: Tensor) -> None:
        """Set b and l so that N(a) has mean 0 and standard deviation 1 over a batch (n, w)."""
        self.shift.copy_(-a.mean(0))
        self.log_scale.copy_(-torch.log(a.std(0, correction=0) + _TINY))
        self.ready.fill_(True)
        self._known = True

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self._known = False


def require_finite(name: str, *batches: Tensor | None) -> None:
    """Raise Diverged where what is to set normalisations holds nan or inf."""
    if not all(bool(batch.isfinite().all()) for batch in batches if batch is not None):
        raise Diverged(
            f"{name}: the first training batch, which sets the normalisations, holds nan or inf; "
            "clean the data and contexts, or look at the block before this one"
        )


def listed(modules: Iterable[M]) -> Sequence[M]:
    """Return a `ModuleList`, whose members' type a type checker then knows."""
    return nn.ModuleList(modules)  # pyright: ignore[reportReturnType]
