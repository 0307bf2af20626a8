"""Checks of paths: ends, velocity, rows that do not disturb each other, words for one quantity."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from flowzoo.conformance.check import Failed, Skipped, check, off_by, require
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import Incompatible
from flowzoo_matching.conformance.schedule import checked_range
from flowzoo_matching.noisy import Noised
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
        (0, _at(path, zero, x, z).x, x),
        (1, _at(path, one, x, z).x, z),
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
    """v is the time derivative of x_t for fixed data and noises, by central differences."""
    path, (t, x, z) = specimen.make(), _pairs(specimen)
    h = 1e-5
    slope = (_at(path, t + h, x, z).x - _at(path, t - h, x, z).x) / (2 * h)
    return off_by(_at(path, t, x, z).v, slope, 1e-6, "v")


@check("path")
def t_range(specimen: Specimen) -> str:
    """The times to draw from are a part of [0, 1] on which places and velocities are finite."""
    path, (_, x, z) = specimen.make(), _pairs(specimen, 101)
    low, high = checked_range(path.t_range)
    at = _at(path, torch.linspace(low, high, 101, dtype=x.dtype), x, z)
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
    return off_by(_at(path, t, x, z).t, t, 0.0, "t")


@check("path")
def rows(specimen: Specimen) -> str:
    """The sample of a pair does not depend on the batch that it sits in."""
    path, (t, x, z) = specimen.make(), _pairs(specimen)
    noise = _noise(x)
    whole = _at(path, t, x, z, noise)
    order = torch.randperm(len(x), generator=specimen.generator(3))
    mixed = _at(path, t[order], x[order], z[order], noise[order])
    alone = _at(path, t[:1], x[:1], z[:1], noise[:1])
    for name in ("x", "v"):
        full = getattr(whole, name)
        off_by(getattr(mixed, name), full[order], 1e-12, f"{name} of permuted pairs")
        said = off_by(getattr(alone, name), full[:1], 1e-12, f"{name} of a pair alone")
    return said


@check("path")
def precision(specimen: Specimen) -> str:
    """In float32 places and velocities are those of float64, to float32's rounding."""
    path, (t, x, z) = specimen.make(), _pairs(specimen)
    given = [values.float() for values in (t, x, z, _noise(x))]
    rough, fine = _at(path, *given), _at(path, *(values.double() for values in given))
    said = [off_by(getattr(rough, n).double(), getattr(fine, n), 1e-4, n) for n in ("x", "v")]
    return "; ".join(said)


@check("path")
def conversions(specimen: Specimen) -> str:
    """Velocity, data, noise and score of a pair say each other at (t, x_t), and there and back.

    For a path that has `convert`; at one known pair the score is that of x_t given the data. Where
    the path has a noise of its own, the pair is one whose velocity is the mean of those with the
    same data and the same x_t.
    """
    path, (t, x, z) = specimen.make(), _pairs(specimen)
    convert: Any = getattr(path, "convert", None)
    if convert is None:
        raise Skipped("it does not convert")
    still, at = _likeliest(path, t, x, z)
    known = {"velocity": at.v, "data": x, "noise": z}
    try:
        known["score"] = convert(t, at.x, z, "noise", "score")
    except Incompatible as error:
        raise Skipped(str(error)) from error
    said = ""
    for given in get_args(Quantity):
        for wanted in get_args(Quantity):
            found = convert(t, at.x, known[given], given, wanted)
            said = off_by(found, known[wanted], 1e-8, f"{wanted} from {given}")
    # log p(x_t | x) is Gaussian about the path from the data to noise 0, linear in the noise.
    sigma = (at.x - still).norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True)
    off_by(known["score"], -(at.x - still) / sigma.square(), 1e-8, "the score given the data")
    return said


@check("path", of=Noised)
def own_noise(specimen: Specimen) -> str:
    """Its own noise is N(0, I), drawn from the generator given, and told with its size."""
    path, (t, x, z) = specimen.make(), _pairs(specimen, 4096)
    before = torch.get_rng_state()
    at, again, other = (path.sample(t, x, z, specimen.generator(seed)) for seed in (1, 1, 2))
    require(
        torch.equal(before, torch.get_rng_state()),
        "torch's global generator is used although one is given",
    )
    require(at.noise is not None, "a sample does not tell the path's own noise")
    require(torch.equal(at.noise, again.noise), "equal generators give different noise")
    require(not torch.equal(at.noise, other.noise), "different generators give equal noise")
    given = path.with_noise(t, x, z, at.noise)
    for name in ("x", "v"):
        off_by(getattr(at, name), getattr(given, name), 0.0, f"{name} of the noise that was drawn")
    still = path.with_noise(t, x, z, torch.zeros_like(z)).x
    off_by(at.noise_scale[:, None] * at.noise, at.x - still, 1e-12, "noise_scale times the noise")
    off_by(at.noise.T.cov(), torch.eye(x.shape[1], dtype=x.dtype), 0.1, "the noise's covariance")
    return off_by(at.noise.mean(0), torch.zeros_like(x[0]), 0.08, "the noise's mean")


def _pairs(specimen: Specimen, n: int = 16, d: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Return times inside [0, 1], data and noise."""
    t = 0.02 + 0.96 * torch.rand(n, generator=specimen.generator(), dtype=torch.float64)
    return t, 2 + specimen.points(n, d, seed=1), specimen.points(n, d, seed=2)


def _noise(x: Tensor) -> Tensor:
    """Return noise of a path's own that is the same for batches of the same shape."""
    draws = torch.randn(
        x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64, device="cpu"
    )
    return draws.to(x)


def _at(
    path: ProbabilityPath, t: Tensor, x: Tensor, z: Tensor, noise: Tensor | None = None
) -> PathSample:
    """Return the sample of pairs, which is the same at every call: for given noise of its own."""
    if isinstance(path, Noised):
        return path.with_noise(t, x, z, _noise(x) if noise is None else noise)
    return path.sample(t, x, z)


def _likeliest(path: ProbabilityPath, t: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, PathSample]:
    """Return places without noise, and the likeliest sample with all its noise together z."""
    none = torch.zeros_like(z)
    still = _at(path, t, x, none, none).x
    if not isinstance(path, Noised):
        return still, path.sample(t, x, z)
    ones = torch.ones_like(z)
    pair, own = (_at(path, t, none, *two).x for two in ((ones, none), (none, ones)))
    size = torch.hypot(pair, own)
    return still, path.with_noise(t, x, pair * z / size, own * z / size)


def _sampled(path: ProbabilityPath, t: Tensor, x: Tensor, z: Tensor) -> PathSample:
    try:
        return _at(path, t, x, z)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise Failed(f"cannot take {tuple(x.shape)} {x.dtype} on {x.device}: {reason}") from error


def _named(
    at: PathSample, t: Tensor, x: Tensor, z: Tensor
) -> tuple[tuple[str, Tensor, Tensor], ...]:
    return ("t", at.t, t), ("x_t", at.x, x), ("v", at.v, z)
