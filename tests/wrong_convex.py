"""Convex potentials that break one promise each, and right ones beside them."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn.functional import softplus

from flowzoo.errors import Incompatible
from flowzoo.maps import LinearMap, Scaled
from flowzoo_cp_flow.convex import Convex, ConvexPoint


class Right(Convex):
    """F = sum_j softplus(W x + V c + b)_j, its derivatives by automatic differentiation.

    Arguments:
        dim: Dimension d of x.
        context_dim: Width of the context.
    """

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__()
        self.dim, self.context_dim = dim, context_dim
        self.first = nn.Linear(dim + context_dim, 8)

    def arguments(self, x, context=None):
        if (0 if context is None else context.shape[-1]) != self.context_dim:
            raise Incompatible("another context")
        return self.first(x if context is None else torch.cat([x, context], -1))

    def forward(self, x, context=None):
        return softplus(self.arguments(x, context), threshold=100).sum(-1)


class Gram(LinearMap):
    """W^T diag(bend) W of each sample, for W (w, d) and bend (n, w)."""

    symmetric, floor = True, 0.0

    def __init__(self, w, bend):
        self.w, self.bend = w, bend

    def vjp(self, p):
        return (p @ self.w.T * self.bend) @ self.w

    def jvp(self, p):
        return self.vjp(p)

    def dense(self):
        return (self.w.T * self.bend[:, None, :]) @ self.w

    def trace(self):
        return self.bend @ self.w.square().sum(-1)

    def rows(self, index):
        return type(self)(self.w, self.bend[index])


class RightClosed(Right):
    """The same in closed form."""

    gram: type[Gram] = Gram

    def at(self, x, context=None):
        a = self.arguments(x, context)
        slope, w = torch.sigmoid(a), self.first.weight[:, : self.dim]
        hessian = self.gram(w, self.bends(a))
        return ConvexPoint(softplus(a, threshold=100).sum(-1), slope @ w, hessian)

    def bends(self, a):
        return torch.sigmoid(a) * torch.sigmoid(-a)


# --- convexity -----------------------------------------------------------------------------------


class Saddle(Right):
    """Adds a saddle."""

    def forward(self, x, context=None):
        return super().forward(x, context) + x.square().sum(-1) - 1.1 * x[:, 0].square()


class FarOut(Right):
    """Bends down, far away only."""

    def forward(self, x, context=None):
        return super().forward(x, context) - 1e-9 * x.square().sum(-1).square()


class Negative(Right):
    """Combines its units with weights of either sign, as a network with a free last layer does."""

    def forward(self, x, context=None):
        units = softplus(self.arguments(x, context), threshold=100)
        return units @ torch.linspace(-0.2, 1, 8, dtype=x.dtype, device=x.device)


class TooHigh(RightClosed):
    """States a floor that eigenvalues lie below."""

    class gram(Gram):
        floor = 0.01


class Floorless(RightClosed):
    """States no floor."""

    class gram(Gram):
        floor = None


# --- a point -------------------------------------------------------------------------------------


class Apart(RightClosed):
    """A point's value is another than F."""

    def at(self, x, context=None):
        point = super().at(x, context)
        return dataclasses.replace(point, value=point.value + 1)


class Uphill(RightClosed):
    """The gradient with the wrong sign."""

    def at(self, x, context=None):
        point = super().at(x, context)
        return dataclasses.replace(point, gradient=-point.gradient)


class Denying(RightClosed):
    """A Hessian that does not say that it is symmetric."""

    class gram(Gram):
        symmetric = False


class Larger(RightClosed):
    """A Hessian of another scale."""

    def at(self, x, context=None):
        point = super().at(x, context)
        return dataclasses.replace(point, hessian=Scaled(point.hessian, 1.0 + 1e-6))


class Incomplete(RightClosed):
    """A Hessian that misses the term of one unit."""

    def bends(self, a):
        bends = super().bends(a)
        return torch.cat([bends[:, :-1], torch.zeros_like(bends[:, -1:])], -1)


class Neighbours(RightClosed):
    """Products with the Hessian of another sample."""

    class gram(Gram):
        def vjp(self, p):
            return (p @ self.w.T * self.bend.roll(1, 0)) @ self.w


class OtherRows(RightClosed):
    """The rows that were not asked for."""

    class gram(Gram):
        def rows(self, index):
            return super().rows(index.flip(0))


class WrongTrace(RightClosed):
    """The trace of another matrix."""

    class gram(Gram):
        def trace(self):
            return self.bend.sum(-1)


class Forgetting(RightClosed):
    """Products with several probes are those with the first of them."""

    class gram(Gram):
        def vjp(self, p):
            return super().vjp(p if p.dim() == 2 else p[:1].expand_as(p))


# --- derivatives ---------------------------------------------------------------------------------


class Halved(Right):
    """Half of its gradient."""

    def forward(self, x, context=None):
        value = super().forward(x, context)
        return 0.5 * (value + value.detach())


class Dead(RightClosed):
    """A Hessian without a gradient."""

    def bends(self, a):
        return super().bends(a).detach()


class OneSided(RightClosed):
    """A Hessian that is differentiated as if every cotangent were symmetric."""

    class gram(Gram):
        def dense(self):
            return super().dense().triu() + super().dense().detach().tril(-1)


class Once(RightClosed):
    """A Hessian whose derivative is taken for a constant."""

    def bends(self, a):
        bends, slope = super().bends(a), torch.sigmoid(a)
        third = (bends * (1 - 2 * slope)).detach()
        return bends.detach() + third * (a - a.detach())


class Kinked(Right):
    """Infinite curvature where a coordinate is 0."""

    def forward(self, x, context=None):
        return super().forward(x, context) + 0.01 * x.abs().pow(1.5).sum(-1)


class Overflowing(Right):
    """Exponentials, which are infinite far out."""

    def forward(self, x, context=None):
        return self.arguments(x, context).exp().sum(-1)
