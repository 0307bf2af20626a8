"""Trace estimators that break one promise each, and right ones from which they differ by that."""

from __future__ import annotations

import torch

from flowzoo.errors import Incompatible
from flowzoo.traces import TraceEstimator


class Right(TraceEstimator):
    """Hutchinson's estimator with two Rademacher probes; no spectral functions."""

    def probes(self, x, generator=None):
        bits = torch.randint(0, 2, (2, *x.shape), generator=generator, device=x.device)
        return (2 * bits - 1).to(x.dtype)

    def __call__(self, a, probes, fn=None):
        if fn is not None:
            raise Incompatible("it estimates tr A alone")
        return self.of(a, probes)

    def of(self, a, probes):
        return (a.vjp(probes) * probes).sum(-1).mean(0)


class RightExact(TraceEstimator):
    """The trace itself, and that of a function by eigenvalues."""

    def probes(self, x, generator=None):
        return None

    def __call__(self, a, probes, fn=None):
        if fn is None:
            return a.dense().diagonal(dim1=-2, dim2=-1).sum(-1)
        return fn(torch.linalg.eigvalsh(a.dense())).sum(-1)


class Shared(Right):
    """One draw for all places of a batch."""

    def probes(self, x, generator=None):
        return super().probes(x[:1], generator).expand(-1, len(x), -1)


# --- the value -----------------------------------------------------------------------------------


class Biased(Right):
    """Overestimates by 1 %."""

    def of(self, a, probes):
        return 1.01 * super().of(a, probes)


class Squared(Right):
    """Estimates tr A^2 where A is small, which the gradient shows as well."""

    def of(self, a, probes):
        return super().of(a, probes) + 0.1 * (a.vjp(probes) * a.jvp(probes)).sum(-1).mean(0)


class Corner(Right):
    """Leaves the last dimension out."""

    def of(self, a, probes):
        return (a.vjp(probes) * probes)[..., :-1].sum(-1).mean(0)


class Detached(Right):
    """Has no gradient."""

    def of(self, a, probes):
        return super().of(a, probes).detach()


class HalfDetached(Right):
    """Has half the gradient."""

    def of(self, a, probes):
        estimate = super().of(a, probes)
        return 0.5 * (estimate + estimate.detach())


class Partial(RightExact):
    """Forgets the last diagonal entry."""

    def __call__(self, a, probes, fn=None):
        if fn is None and a.dense().shape[-1] > 1:
            return a.dense().diagonal(dim1=-2, dim2=-1)[..., :-1].sum(-1)
        return super().__call__(a, probes, fn)


class Binary(RightExact):
    """Takes logarithms to base two, without a gradient."""

    def __call__(self, a, probes, fn=None):
        with torch.set_grad_enabled(fn is None):
            return super().__call__(a, probes, torch.log2 if fn is torch.log else fn)


class BinaryEstimate(Right):
    """Estimates tr log A by a term of its series, without a gradient."""

    def __call__(self, a, probes, fn=None):
        estimate = self.of(a, probes)
        return estimate if fn is None else estimate.detach() - probes.shape[-1]


# --- the probes ----------------------------------------------------------------------------------


class Scaled(Right):
    """Draws probes that are 2 % too long."""

    def probes(self, x, generator=None):
        return 1.02 * super().probes(x, generator)


class Fresh(Right):
    """Draws fresh noise, whatever generator it is given."""

    def probes(self, x, generator=None):
        return super().probes(x, None)


class Frozen(Right):
    """Draws the same probes every time."""

    def probes(self, x, generator=None):
        return super().probes(x, torch.Generator().manual_seed(0))


class Flat(Right):
    """Draws one probe without the leading dimension."""

    def probes(self, x, generator=None):
        return super().probes(x, generator)[0]

    def of(self, a, probes):
        return (a.vjp(probes) * probes).sum(-1)


class DoubleProbes(Right):
    """Draws float64, whatever the places are."""

    def probes(self, x, generator=None):
        return super().probes(x, generator).double()

    def of(self, a, probes):
        return super().of(a, probes.to(a.dense().dtype))


class Hidden(Right):
    """Adds noise that is not in the probes."""

    def of(self, a, probes):
        estimate = super().of(a, probes)
        return estimate + 0.1 * torch.randn_like(estimate)


# --- manners -------------------------------------------------------------------------------------


class Shrunk(Right):
    """Pulls every estimate towards the mean of the batch."""

    def of(self, a, probes):
        estimate = super().of(a, probes)
        return 0.9 * estimate + 0.1 * estimate.mean()


class Backwards(Right):
    """Returns estimates in the wrong order."""

    def of(self, a, probes):
        return super().of(a, probes).flip(0)


class Single(Right):
    """Computes in float32."""

    def of(self, a, probes):
        return super().of(a, probes).float()


class Following(Right):
    """Returns the default dtype where that is larger."""

    def of(self, a, probes):
        return super().of(a, probes) + torch.zeros(1, device=probes.device)


class Stuck(Right):
    """Has a constant on the CPU."""

    def of(self, a, probes):
        estimate = super().of(a, probes)
        return estimate + torch.zeros(len(estimate), dtype=estimate.dtype)


class Stacked(Right):
    """Keeps a dimension too many for one map."""

    def of(self, a, probes):
        estimate = super().of(a, probes)
        return estimate[:, None] if len(estimate) == 1 else estimate


class Secretive(Right):
    """Refuses maps that are not symmetric without having said so."""

    def of(self, a, probes):
        if not a.symmetric:
            raise Incompatible("only symmetric ones")
        return super().of(a, probes)


class Demanding(Right):
    """Declares a need that it does not have."""

    needs = frozenset({"symmetric"})


class Impossible(Right):
    """Needs what there is not."""

    needs = frozenset({"luck"})


class Often(Right):
    """Draws probes at times that nobody knows."""

    redraw = "often"  # pyright: ignore[reportAssignmentType]
