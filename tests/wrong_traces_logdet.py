"""Trace estimators whose log-determinant has a wrong gradient, and right ones beside them."""

from __future__ import annotations

import torch
from wrong_traces import Right, RightExact


class ByHand(RightExact):
    """Puts the gradient A^-1 of a log-determinant in by hand."""

    def __call__(self, a, probes, fn=None):
        if fn is not torch.log:
            return super().__call__(a, probes, fn)
        with torch.no_grad():
            value = super().__call__(a, probes, fn)
        return value + self.slope(a.dense())

    def slope(self, h):
        inverse = torch.linalg.inv(h.detach())
        return (inverse * (h - h.detach())).sum((-2, -1))


class Without(ByHand):
    """Has no gradient of a log-determinant, which is allowed."""

    def slope(self, h):
        return 0.0


class Half(ByHand):
    """Has half the gradient."""

    def slope(self, h):
        return 0.5 * super().slope(h)


class OfTheTrace(Right):
    """Has the gradient of tr A, by random probes."""

    def __call__(self, a, probes, fn=None):
        estimate = self.of(a, probes)
        if fn is not torch.log:
            return super().__call__(a, probes, fn)
        with torch.no_grad():
            value = torch.linalg.eigvalsh(a.dense()).log().sum(-1)
        return value + estimate - estimate.detach()
