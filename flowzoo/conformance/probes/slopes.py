"""Gradients against central finite differences, along random directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowzoo.conformance.check import Skipped, off_by, require


def slopes(
    value: Callable[[], Tensor],
    at: Sequence[Tensor],
    generator: torch.Generator,
    allowed: float,
    what: str,
    step: float = 1e-4,
) -> str:
    """Return by how much automatic derivatives differ from finite differences.

    Along one random direction in all tensors together, with a central difference of fourth order;
    what halving its step changes is its own error.

    Arguments:
        value: Computes a number () from the tensors as they are now.
        at: Float64 leaves that require gradients, in which it is differentiated.
        generator: Source of the direction.
        allowed: The largest deviation that passes, relative to 1 + |slope|.
        what: Subject of the sentence, as in `the gradient in x`.
        step: Size of the finite step, for a direction with entries of size one.

    Raises:
        Failed: They differ by more, or no gradient arrives.
        Skipped: The function is too rough for finite differences of that accuracy.
    """
    directions = [torch.randn(w.shape, generator=generator, dtype=w.dtype).to(w) for w in at]
    number = value()
    require(number.requires_grad, f"{what}: nothing that comes out is differentiable")
    found = torch.autograd.grad(number, at, allow_unused=True)
    require(any(g is not None for g in found), f"{what}: no gradient arrives")
    pairs = zip(found, directions, strict=True)
    slope = sum(((g * u).sum() for g, u in pairs if g is not None), torch.zeros(()).double())
    coarse, fine = (_difference(value, at, directions, h) for h in (step, step / 2))
    own = float((coarse - fine).abs() / (1 + fine.abs()))
    if own > allowed:
        raise Skipped(f"{what}: finite differences are off by {own:.1g} themselves, not smooth")
    return off_by(slope.detach(), fine, 2 * allowed, what)


def _difference(
    value: Callable[[], Tensor], at: Sequence[Tensor], directions: Sequence[Tensor], h: float
) -> Tensor:
    """Return the slope along directions: (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12 h."""
    kept = [w.detach().clone() for w in at]
    values = []
    with torch.no_grad():
        for multiple in (1, -1, 2, -2):
            for w, start, u in zip(at, kept, directions, strict=True):
                w.copy_(start + multiple * h * u)
            with torch.enable_grad():  # what is computed may depend on the mode
                values.append(value().detach().double())
        for w, start in zip(at, kept, strict=True):
            w.copy_(start)
    one, minus_one, two, minus_two = values
    return (8 * (one - minus_one) - (two - minus_two)) / (12 * h)
