"""Paths, schedules and couplings that break one promise each."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch

from flowzoo_matching.coupling import Coupling, Pairs
from flowzoo_matching.path import Affine, PathSample, ProbabilityPath
from flowzoo_matching.schedule import Coefficients, Cosine, Schedule

# --- schedules -----------------------------------------------------------------------------------


class Changed(Schedule):
    """The trigonometric schedule with a change."""

    def at(self, t):
        return self.change(t, Cosine().at(t))

    def change(self, t, at):
        return at


class Backwards(Changed):
    """Time from noise to data, as most matching codes have it."""

    def at(self, t):
        at = Cosine().at(1 - t)
        return Coefficients(at.alpha, at.sigma, -at.d_alpha, -at.d_sigma)


class Unfinished(Changed):
    """A tenth of the data is left at the noise."""

    def change(self, t, at):
        return replace(at, alpha=at.alpha + 0.1 * t.square(), d_alpha=at.d_alpha + 0.2 * t)


class WrongSlope(Changed):
    """A derivative of the wrong sign."""

    def change(self, t, at):
        return replace(at, d_sigma=-at.d_sigma)


class Wavy(Changed):
    """Noise that comes and goes on the way."""

    def change(self, t, at):
        more, slope = 0.2 * (4 * math.pi * t).sin(), 0.8 * math.pi * (4 * math.pi * t).cos()
        return replace(at, sigma=at.sigma + more, d_sigma=at.d_sigma + slope)


class Infinite(Changed):
    """A range of times that has the end where its slope is infinite."""

    def at(self, t):
        sigma = t.sqrt()
        return Coefficients(1 - t, sigma, torch.full_like(t, -1), 0.5 / sigma)


class Outside(Changed):
    """Times beyond the noise."""

    t_range = (0.0, 1.2)


class Doubled(Changed):
    """Double precision, whatever is asked for."""

    def change(self, t, at):
        return replace(at, alpha=at.alpha.double())


class Stranded(Changed):
    """A constant that stays on the CPU."""

    def change(self, t, at):
        return replace(at, sigma=at.sigma + torch.zeros(t.shape, dtype=t.dtype))


class Averaged(Changed):
    """Coefficients at the mean of all times."""

    def change(self, t, at):
        return Cosine().at(t.mean().expand(t.shape) if t.numel() else t)


class Rough(Changed):
    """Coefficients that lose digits in single precision."""

    def change(self, t, at):
        return replace(at, alpha=(at.alpha + 1e4) - 1e4)


# --- paths ---------------------------------------------------------------------------------------


class Bent(ProbabilityPath):
    """A straight line with a change."""

    def sample(self, t, x, z, generator=None):
        return self.change(t, x, z, Affine().sample(t, x, z))

    def change(self, t, x, z, at):
        return at


class ToData(Bent):
    """From noise to data."""

    def sample(self, t, x, z, generator=None):
        return Affine().sample(t, z, x)


class MinusV(Bent):
    """The velocity of the other direction of time."""

    def change(self, t, x, z, at):
        return replace(at, v=-at.v)


class Late(Bent):
    """Times to draw from that are not in [0, 1]."""

    t_range = (-0.1, 1.0)


class Flat(Bent):
    """Velocities (n,) instead of (n, d)."""

    def change(self, t, x, z, at):
        return replace(at, v=at.v[:, :1] if x.shape[1] == 2 else at.v)


class Crowd(Bent):
    """Places that depend on the other pairs of the batch."""

    def change(self, t, x, z, at):
        hump, slope = (t * (1 - t))[:, None], (1 - 2 * t)[:, None]
        mean = (z - x).mean(0)
        return PathSample(at.t, at.x + hump * mean, at.v + slope * mean)


class Coarse(Bent):
    """Places that lose digits in single precision."""

    def change(self, t, x, z, at):
        return replace(at, x=(at.x + 1e4) - 1e4)


class Misread(Affine):
    """A score without its sign."""

    def __init__(self) -> None:
        super().__init__(Cosine())

    def convert(self, t, x, value, given, wanted):
        found = super().convert(t, x, -value if given == "score" else value, given, wanted)
        return -found if wanted == "score" else found


class Mixed(Affine):
    """Data for noise."""

    def __init__(self) -> None:
        super().__init__(Cosine())

    def convert(self, t, x, value, given, wanted):
        swapped = {"data": "noise", "noise": "data"}
        wanted = swapped.get(wanted, wanted) if given == "velocity" else wanted
        return super().convert(t, x, value, given, wanted)


class Blurred(Affine):
    """Declares what it does on purpose."""

    expected_failures: ClassVar[dict[str, str]] = {"ends": "it blurs the data by 0.3"}

    def __init__(self) -> None:
        from flowzoo_matching.schedule import OT

        super().__init__(OT(0.3))


# --- couplings -----------------------------------------------------------------------------------


class Shuffled(Coupling):
    """Random pairs, rightly."""

    def pair(self, x, z, context=None, generator=None):
        return Pairs(None, torch.randperm(len(x), generator=generator))


class Resampled(Coupling):
    """Pairs drawn with replacement from a uniform plan, rightly."""

    def pair(self, x, z, context=None, generator=None):
        n = len(x)
        plan = torch.full((n * n,), 1 / n**2)
        drawn = torch.multinomial(plan, n, replacement=True, generator=generator)
        return Pairs(drawn // n, drawn % n)


class Nearest(Coupling):
    """Each data point with its nearest noise: some noise is never used."""

    def pair(self, x, z, context=None, generator=None):
        return Pairs(None, torch.cdist(x.detach(), z).argmin(1))


class Favourite(Coupling):
    """Row 0 twice as often as any other."""

    def pair(self, x, z, context=None, generator=None):
        n = len(x)
        weights = torch.ones(n)
        weights[0] = 2
        rows = torch.multinomial(weights, n, replacement=True, generator=generator)
        return Pairs(rows, torch.arange(n))


class Dropped(Coupling):
    """One data row fewer than noise rows."""

    def pair(self, x, z, context=None, generator=None):
        return Pairs(torch.arange(max(1, len(x) - 1)), None)


class Places(Coupling):
    """Points instead of row numbers."""

    def pair(self, x, z, context=None, generator=None):
        return Pairs(None, z)


class Careless(Coupling):
    """Randomness from the global generator."""

    def pair(self, x, z, context=None, generator=None):
        return Pairs(None, torch.randperm(len(x)))


class Sorting(Coupling):
    """Sorts the noise in place."""

    def pair(self, x, z, context=None, generator=None):
        z.copy_(z.sort(0).values)
        return Pairs()
