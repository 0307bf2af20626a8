"""Points that carry their conditions, so that a coupling by cost does not mix the conditions up."""

from __future__ import annotations

import torch
from torch import Tensor

from flowzoo.errors import Incompatible


def require_weight(weight: float) -> float:
    """Return the weight of conditions in a cost, checked.

    Raises:
        Incompatible: It is negative or not finite.
    """
    if not 0 <= weight < float("inf"):
        raise Incompatible(f"condition_weight must be finite and not negative, got {weight}")
    return weight


def with_conditions(
    x: Tensor,
    z: Tensor,
    context: Tensor | None,
    weight: float,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return points whose squared distance is |x - z|^2 + w |c_x - c_z|^2.

    The noise is given conditions of its own: the batch's, in random order, and so independent of
    it. Pairs of least cost then keep the noise nearly independent of the condition, where
    |x - z|^2 alone gives each condition the noise that is close to its data.

    Arguments:
        x: Data (n, d).
        z: Noise (n, d).
        context: Conditions of the data (n, c), or None, which leaves the points as they are.
        weight: The weight w; so does 0.
        generator: Source of the order.

    References:
        The Curse of Conditions (Cheng and Schwing, 2025), https://arxiv.org/abs/2503.10636
    """
    if context is None or not weight:
        return x, z
    own = torch.randperm(len(z), generator=generator, device=z.device)
    side = weight**0.5 * context.to(x.dtype)
    return torch.cat([x, side], 1), torch.cat([z, side[own]], 1)
