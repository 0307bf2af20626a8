"""Discrepancies that break one promise each."""

from __future__ import annotations

from typing import ClassVar

import torch

from flowzoo.errors import BadData
from flowzoo_pfg.discrepancy import Discrepancy, Energy, SlicedW2


class Changed(Discrepancy):
    """The energy distance with a change."""

    unbiased = True

    def __call__(self, x, y, generator=None):
        return self.change(Energy()(x, y, generator), x, y)

    def change(self, value, x, y):
        return value


class Projected(Discrepancy):
    """Sliced W2 with a change."""

    def __call__(self, x, y, generator=None):
        return self.change(SlicedW2()(x, y, generator), x, y)

    def change(self, value, x, y):
        return value


# --- what it is ----------------------------------------------------------------------------------


class Column(Changed):
    """A tensor (1,) instead of a number."""

    def change(self, value, x, y):
        return value[None]


class Lonely(Discrepancy):
    """The mean distance of a point to itself, where there is but one."""

    unbiased = True

    def __call__(self, x, y, generator=None):
        between = 2 * torch.cdist(x, y).mean()
        return between - torch.pdist(x).mean() - torch.pdist(y).mean()


class Silent(Changed):
    """Refuses few points without a reason."""

    def __call__(self, x, y, generator=None):
        if min(len(x), len(y)) < 2:
            raise BadData("too few")
        return super().__call__(x, y, generator)


# --- equal and other laws ------------------------------------------------------------------------


class WithThemselves(Changed):
    """Claims to be unbiased, but counts the pairs of a point with itself."""

    def change(self, value, x, y):
        within = (torch.pdist(points).mean() / len(points) for points in (x, y))
        return value + sum(within)


class Cut(Discrepancy):
    """Takes as many points of the larger sample as the smaller one has."""

    def __call__(self, x, y, generator=None):
        n = min(len(x), len(y))
        return SlicedW2()(x[:n], y[:n], generator)


class Offset(Projected):
    """Does not reach zero."""

    def change(self, value, x, y):
        return value + 0.01


class Means(Changed):
    """The distance of the means."""

    unbiased = False

    def change(self, value, x, y):
        return (x.mean(0) - y.mean(0)).square().sum()


class Axes(Discrepancy):
    """W2 of each coordinate."""

    def __call__(self, x, y, generator=None):
        pairs = zip(x.unbind(1), y.unbind(1), strict=True)
        return torch.stack([SlicedW2()(a[:, None], b[:, None]) for a, b in pairs]).mean()


class Chessboard(Changed):
    """The energy distance with its norm the largest coordinate."""

    def change(self, value, x, y):
        inf = float("inf")
        between = torch.cdist(x, y, p=inf).mean()
        return 2 * between - torch.pdist(x, inf).mean() - torch.pdist(y, inf).mean()


# --- its slope -----------------------------------------------------------------------------------


class Halved(Changed):
    """Half of its gradient."""

    def change(self, value, x, y):
        return 0.5 * (value + value.detach())


class Uphill(Changed):
    """The gradient with the wrong sign."""

    def change(self, value, x, y):
        return 2 * value.detach() - value


class Constant(Changed):
    """No gradient."""

    def change(self, value, x, y):
        return value.detach()


class Capped(Changed):
    """Flat where laws are far apart."""

    def change(self, value, x, y):
        return value.clamp(max=0.6)


# --- manners -------------------------------------------------------------------------------------


class Careless(Discrepancy):
    """Randomness from the global generator."""

    def __call__(self, x, y, generator=None):
        return SlicedW2()(x, y)


class Sorting(Changed):
    """Sorts the data in place."""

    def __call__(self, x, y, generator=None):
        y.copy_(y.sort(0).values)
        return super().__call__(x, y, generator)


class Ordered(Changed):
    """Compares neighbouring rows."""

    def change(self, value, x, y):
        return value + 0.1 * (torch.tanh(x.diff(dim=0)).sum() - torch.tanh(y.diff(dim=0)).sum())


class Coarse(Changed):
    """Loses digits in single precision."""

    def change(self, value, x, y):
        return value + ((y.sum() + 1e6) - 1e6) - y.sum()


class Doubled(Changed):
    """Double precision, whatever is asked for."""

    def change(self, value, x, y):
        return value.double()


class Stranded(Changed):
    """A constant that stays on the CPU."""

    def change(self, value, x, y):
        return value + (torch.zeros(len(x), dtype=x.dtype) * x[:, 0]).sum()


class Waiting(Changed):
    """Reads a number on the host."""

    def change(self, value, x, y):
        return value * (1.0 if float(y.detach().std()) > 0 else 2.0)


class Declared(Means):
    """Declares what it does on purpose."""

    expected_failures: ClassVar[dict[str, str]] = {"positive": "it compares means alone"}
