"""Regularizers that break one promise each, and right ones from which they differ by that alone."""

from __future__ import annotations

import torch

from flowzoo.regularizers import EndpointCost, RunningCost


class Right(RunningCost):
    """|v|^2 + |dv/dx|_F^2.

    Arguments:
        weight: The factor in the objective.
    """

    def rate(self, at, probes):
        return self.of(at, probes)

    def of(self, at, probes):
        speed = at.v.square().sum(-1)
        if probes is None:
            return speed + at.jacobian.dense().square().sum((-2, -1))
        return speed + self.mean(at.jacobian.vjp(probes).square().sum(-1))

    def mean(self, products):
        return products.mean(0)


class RightEnd(EndpointCost):
    """|z - x|^2.

    Arguments:
        weight: The factor in the objective.
    """

    def between(self, x, z):
        return (z - x).square().sum(-1)


class Residual(RunningCost):
    """The squared Hamilton-Jacobi-Bellman residual.

    Arguments:
        weight: The factor in the objective.
    """

    needs = frozenset({"phi_t"})
    sign = -1

    def rate(self, at, probes):
        return (at.phi_t + self.sign * 0.5 * at.v.square().sum(-1)).square()


class WrongSign(Residual):
    """Has the sign of a potential that is followed downhill in the other time."""

    sign = 1


class Undeclared(Residual):
    """Does not say that it needs phi_t."""

    needs = frozenset()


class Impossible(RightEnd):
    """Needs what there is not."""

    needs = frozenset({"luck"})


class NeedyEnd(RightEnd):
    """Needs something of a point that it never sees."""

    needs = frozenset({"phi_t"})


class Averaged(Right):
    """Spreads the mean of the batch."""

    def of(self, at, probes):
        cost = super().of(at, probes)
        return 0.5 * cost + 0.5 * cost.mean()


class Mean(Right):
    """Returns the mean of the batch."""

    def of(self, at, probes):
        return super().of(at, probes).mean()


class Reversed(RightEnd):
    """Returns costs in the wrong order."""

    def between(self, x, z):
        return super().between(x, z).flip(0)


class Profit(RightEnd):
    """Pays for short ways."""

    def between(self, x, z):
        return super().between(x, z) - 2 * (z - x).norm(dim=-1)


class Rent(RightEnd):
    """Costs something on the spot."""

    def between(self, x, z):
        return super().between(x, z) + 0.1


class Summed(Right):
    """Sums over probes."""

    def mean(self, products):
        return products.sum(0)


class Rooted(Right):
    """Takes roots before it averages over probes."""

    def mean(self, products):
        return products.sqrt().mean(0).square()


class Weighed(Right):
    """Applies its weight itself."""

    def of(self, at, probes):
        return self.weight * super().of(at, probes)


class Forgetful(Right):
    """Loses its weight.

    Arguments:
        weight: The factor in the objective.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()


class Noisy(RightEnd):
    """Adds noise of its own."""

    def between(self, x, z):
        return super().between(x, z) * (1 + 0.1 * torch.rand(len(x), device=x.device).to(x))


class InPlace(RightEnd):
    """Overwrites the end."""

    def between(self, x, z):
        return (z.data.sub_(x) + 0 * z).square().sum(-1)


class Single(RightEnd):
    """Computes in float32."""

    def between(self, x, z):
        return super().between(x, z).float()


class Rounded(RightEnd):
    """Computes in half precision where it is asked for single."""

    def between(self, x, z):
        cost = super().between(x, z)
        return cost.bfloat16().to(x) if x.dtype == torch.float32 else cost


class Following(RightEnd):
    """Returns the default dtype where that is larger."""

    def between(self, x, z):
        return super().between(x, z) + torch.zeros(1, device=x.device)


class Stuck(RightEnd):
    """Has a constant on the CPU."""

    def between(self, x, z):
        return super().between(x, z) + torch.zeros(len(x), dtype=x.dtype)


class Detached(RightEnd):
    """Has half the gradient."""

    def between(self, x, z):
        return ((z - x) * (z - x).detach()).sum(-1)
