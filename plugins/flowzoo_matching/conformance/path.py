"""Checks of paths: ends, velocity, rows that do not disturb each other, words for one quantity."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from flowzoo.conformance.check import Failed, Skipped, check, off_by, require
from flowzoo.conformance.specimen import Specimen
from flowzoo_matching.conformance.schedule import checked_range
from flowzoo_matching.path import PathSample, ProbabilityPath, Quantity

_LEFT = 0.01  # what a path may leave of the noise at t = 0, or of the data at t = 1


@check("path")
def ends(specimen: Specimen) -> str:
    """At t = 0 the path is at the data, at t = 1 at the noise, up to 1 % of the other.

    One that leaves more on purpose, as a blur of the data, says so in `expected_failures`.
    """
    path, (_, x, z) = specimen.make(), _pairs(specimen)
    zero, one = x.new_zeros(len(x)), x.new_ones(len(x))
    scale = torch.maximum(x.abs(), z.abs()).max()
    worst = 0.0
    for t, found, expected in (
        (0, path.sample(zero, x, z).x, x),
        (1, path.sample(one, x, z).x, z),
    ):
        off = float(((found - expected).abs() / scale).max())
        require(
            off <= _LEFT,
            f"x_{t} is off the {('data', 'noise')[t]} by {off:.1%}, allowed {_LEFT:.0%}",
        )
        worst = max(worst, off)
    return f"ends off by {worst:.1e}, allowed {_LEFT:g}"


@check("path")
def velocity(specimen: Specimen) -> str:
    """v is the time derivative of x_t for fixed data and noise, by central differences."""
    path, (t, x, z) = specimen.make(), _pairs(specimen)
    h = 1e-5
    slope = (path.sample(t + h, x, z).x - path.sample(t - h, x, z).x) / (2 * h)
    return off_by(path.sample(t, x, z).v, slope, 1e-6, "v")


@check("path")
def t_range(specimen: Specimen) -> str:
    """The times to draw from are a part of [0, 1] on which places and velocities are finite."""
    path, (_, x, z) = specimen.make(), _pairs(specimen, 101)
    low, high = checked_range(path.t_range)
    at = path.sample(torch.linspace(low, high, 101, dtype=x.dtype), x, z)
    for name, values in (("x_t", at.x), ("v", at.v)):
        require(bool(values.isfinite().all()), f"{name} is not finite on [{low:g}, {high:g}]")
    return f"[{low:g}, {high:g}], |v| up to {float(at.v.abs().max()):.3g}"


@check("path")
def shapes(specimen: Specimen) -> str:
    """Places and velocities are (n, d) and times (n,), in the dtype and on the device of x."""
    path = specimen.make()
    for n, d in ((16, 3), (1, 2), (5, 1), (0, 2)):
        t, x, z = _pairs(specimen, n, d)
        for dtype, device in (("float64", "cpu"), ("float32", "cpu"), ("float64", "meta")):
            like = {"dtype": getattr(torch, dtype), "device": device}
            given = t.to(**like), x.to(**like), z.to(**like)
            for name, found, expected in _named(_sampled(path, *given), *given):
                require(
                    (found.shape, found.dtype, found.device)
                    == (expected.shape, expected.dtype, expected.device),
                    f"{name} is {tuple(found.shape)} {found.dtype} on {found.device}, expected "
                    f"{tuple(expected.shape)} {expected.dtype} on {expected.device}",
                )
    t, x, z = _pairs(specimen)
    return off_by(path.sample(t, x, z).t, t, 0.0, "t")


@check("path")
def rows(specimen: Specimen) -> str:
    """The sample of a pair does not depend on the batch that it sits in."""
    path, (t, x, z) = specimen.make(), _pairs(specimen)
    whole = path.sample(t, x, z)
    order = torch.randperm(len(x), generator=specimen.generator(3))
    mixed, alone = path.sample(t[order], x[order], z[order]), path.sample(t[:1], x[:1], z[:1])
    for name in ("x", "v"):
        full = getattr(whole, name)
        off_by(getattr(mixed, name), full[order], 1e-12, f"{name} of permuted pairs")
        said = off_by(getattr(alone, name), full[:1], 1e-12, f"{name} of a pair alone")
    return said


@check("path")
def precision(specimen: Specimen) -> str:
    """In float32 places and velocities are those of float64, to float32's rounding."""
    path, given = specimen.make(), [values.float() for values in _pairs(specimen)]
    rough, fine = path.sample(*given), path.sample(*(values.double() for values in given))
    said = [off_by(getattr(rough, n).double(), getattr(fine, n), 1e-4, n) for n in ("x", "v")]
    return "; ".join(said)


@check("path")
def conversions(specimen: Specimen) -> str:
    """Velocity, data, noise and score of a pair say each other at (t, x_t), and there and back.

    For a path that has `convert`; at one known pair the score is that of x_t given the data.
    """
    path, (t, x, z) = specimen.make(), _pairs(specimen)
    convert: Any = getattr(path, "convert", None)
    if convert is None:
        raise Skipped("it does not convert")
    at = path.sample(t, x, z)
    known = {"velocity": at.v, "data": x, "noise": z}
    known["score"] = convert(t, at.x, z, "noise", "score")
    said = ""
    for given in get_args(Quantity):
        for wanted in get_args(Quantity):
            found = convert(t, at.x, known[given], given, wanted)
            said = off_by(found, known[wanted], 1e-8, f"{wanted} from {given}")
    # log p(x_t | x) is Gaussian about the path from the data to noise 0, linear in the noise.
    still = path.sample(t, x, torch.zeros_like(z)).x
    sigma = (at.x - still).norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True)
    off_by(known["score"], -(at.x - still) / sigma.square(), 1e-8, "the score given the data")
    return said


def _pairs(specimen: Specimen, n: int = 16, d: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Return times inside [0, 1], data and noise."""
    t = 0.02 + 0.96 * torch.rand(n, generator=specimen.generator(), dtype=torch.float64)
    return t, 2 + specimen.points(n, d, seed=1), specimen.points(n, d, seed=2)


def _sampled(path: ProbabilityPath, t: Tensor, x: Tensor, z: Tensor) -> PathSample:
    try:
        return path.sample(t, x, z)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise Failed(f"cannot take {tuple(x.shape)} {x.dtype} on {x.device}: {reason}") from error


def _named(
    at: PathSample, t: Tensor, x: Tensor, z: Tensor
) -> tuple[tuple[str, Tensor, Tensor], ...]:
    return ("t", at.t, t), ("x_t", at.x, x), ("v", at.v, z)
