"""Velocities and potentials that break one promise each, and right ones beside them."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from flowzoo.errors import Incompatible
from flowzoo.field import Potential, Velocity
from flowzoo.maps import Scaled, Traced


class Right(Velocity):
    """A tanh network of (t, x, context).

    Arguments:
        dim: Dimension d of x.
        context_dim: Width of the context.
    """

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__()
        self.dim, self.context_dim = dim, context_dim
        self.first, self.last = nn.Linear(1 + dim + context_dim, 8), nn.Linear(8, dim)

    def forward(self, t, x, context=None):
        if (0 if context is None else context.shape[-1]) != self.context_dim:
            raise Incompatible("another context")
        parts = [t.expand(len(x))[:, None], x, *([] if context is None else [context])]
        return self.last(torch.tanh(self.first(torch.cat(parts, -1))))


class Along(Right):
    """The divergence that comes with the velocity is not the divergence."""

    def with_divergence(self, t, x, context=None):
        point = self.at(t, x, context)
        return dataclasses.replace(point, jacobian=Scaled(point.jacobian, 1.01))


class Unlearned(Right):
    """The divergence that comes with the velocity has no gradient."""

    def with_divergence(self, t, x, context=None):
        point = self.at(t, x, context)
        trace = torch.einsum("nii->n", point.jacobian.dense()).detach()
        return dataclasses.replace(point, jacobian=Traced(trace, lambda: point.jacobian))


class RightGradient(Velocity):
    """v = -grad Phi of Phi = sum_i a_i(t) sin x_i + t |x|^2 / 2, in closed form.

    Arguments:
        dim: Dimension d of x.
    """

    provides = frozenset({"phi_t", "symmetric"})

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.rate = nn.Parameter(torch.linspace(0.5, 1.5, dim))

    def forward(self, t, x, context=None):
        t = t.expand(len(x))[:, None]
        return -torch.sin(self.rate * t) * torch.cos(x) - t * x

    def at(self, t, x, context=None):
        point = super().at(t, x, context)
        point.jacobian.symmetric = True
        return dataclasses.replace(point, phi_t=self.phi_t(t.expand(len(x))[:, None], x))

    def phi_t(self, t, x):
        slope = self.rate * torch.cos(self.rate * t)
        return (slope * torch.sin(x) + 0.5 * x.square()).sum(-1)


class RightPotential(Potential):
    """Phi = t w^T tanh(W x) + |x|^2 / 2.

    Arguments:
        dim: Dimension d of x.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.net = dim, nn.Sequential(nn.Linear(dim, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, t, x, context=None):
        return t * self.net(x)[:, 0] + 0.5 * x.square().sum(-1)


# --- points --------------------------------------------------------------------------------------


class Transposed(Right):
    """Has products and matrix of the transposed Jacobian."""

    def at(self, t, x, context=None):
        point = super().at(t, x, context)
        return dataclasses.replace(point, jacobian=_Transpose(point.jacobian, 1.0))


class _Transpose(Scaled):
    def vjp(self, p):
        return self.a.jvp(p)

    def jvp(self, p):
        return self.a.vjp(p)

    def dense(self):
        return self.a.dense().mT


class WrongTrace(Right):
    """Has a closed form of the trace that is off by 1 %."""

    def at(self, t, x, context=None):
        point = super().at(t, x, context)
        return dataclasses.replace(point, jacobian=_Offset(point.jacobian, 1.0))


class _Offset(Scaled):
    def trace(self):
        return 1.01 * self.a.dense().diagonal(dim1=-2, dim2=-1).sum(-1)


class Remembering(Right):
    """Answers with the product of the probes before."""

    def at(self, t, x, context=None):
        point = super().at(t, x, context)
        return dataclasses.replace(point, jacobian=_Remembering(point.jacobian, 1.0))


class _Remembering(Scaled):
    last = None

    def vjp(self, p):
        if self.last is None or self.last.shape != p.shape:
            self.last = self.a.vjp(p)
        return self.last


class Dead(Right):
    """Has a Jacobian without second derivatives."""

    def at(self, t, x, context=None):
        point = super().at(t, x, context)
        return dataclasses.replace(point, jacobian=_Dead(point.jacobian, 1.0))


class _Dead(Scaled):
    def dense(self):
        return self.a.dense().detach()


class FalselySymmetric(Right):
    """Says that its Jacobian is symmetric, and takes one product for the other."""

    provides = frozenset({"symmetric"})

    def at(self, t, x, context=None):
        point = super().at(t, x, context)
        point.jacobian.symmetric = True
        return point


class Denying(RightGradient):
    """Provides a symmetric Jacobian, which denies it."""

    def at(self, t, x, context=None):
        point = super().at(t, x, context)
        point.jacobian.symmetric = False
        return point


class Apart(Right):
    """Moves a little faster at its points than by itself."""

    def at(self, t, x, context=None):
        point = super().at(t, x, context)
        return dataclasses.replace(point, v=1.001 * point.v)


class WrongSign(RightGradient):
    """Has the time derivative of minus its potential."""

    def phi_t(self, t, x):
        return -super().phi_t(t, x)


class Withholding(RightGradient):
    """Promises phi_t and gives none."""

    def at(self, t, x, context=None):
        return dataclasses.replace(super().at(t, x, context), phi_t=None)


# --- potentials ----------------------------------------------------------------------------------


class Uphill(RightPotential):
    """Has the gradient of minus its potential."""

    def gradient(self, t, x, context=None):
        return -super().gradient(t, x, context)


class Timeless(RightPotential):
    """Has no time derivative at its points."""

    def at(self, t, x, context=None):
        point = super().at(t, x, context)
        return dataclasses.replace(point, phi_t=torch.zeros_like(point.phi_t))


class Doubled(RightPotential):
    """Has twice its Hessian."""

    def at(self, t, x, context=None):
        point = super().at(t, x, context)
        return dataclasses.replace(point, hessian=Scaled(point.hessian, 2.0))


class Columns(RightPotential):
    """Keeps a dimension too many."""

    def forward(self, t, x, context=None):
        return super().forward(t, x, context)[:, None]
