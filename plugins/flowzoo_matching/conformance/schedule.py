"""Checks of schedules: ends, derivatives, order, and what follows the input."""

from __future__ import annotations

import torch
from torch import Tensor

from flowzoo.conformance.check import Failed, check, off_by, require
from flowzoo.conformance.specimen import Specimen
from flowzoo_matching.schedule import Diffusion, Schedule

_LEFT = 0.01  # what a schedule may leave of the data at t = 1, or of the noise at t = 0
_NAMES = ("alpha", "sigma", "d_alpha", "d_sigma")


@check("schedule")
def ends(specimen: Specimen) -> str:
    """At t = 0 there is the data alone, at t = 1 the noise alone, up to 0.01.

    A schedule that leaves more on purpose, as one that blurs the data, says so in
    `expected_failures`.
    """
    at = specimen.make().at(torch.tensor([0.0, 1.0], dtype=torch.float64))
    wanted = {"alpha": (at.alpha, (1.0, 0.0)), "sigma": (at.sigma, (0.0, 1.0))}
    worst = 0.0
    for name, (found, expected) in wanted.items():
        for t, value, target in zip((0, 1), found.tolist(), expected, strict=True):
            off = abs(value - target)
            require(off <= _LEFT, f"{name}({t}) is {value:.4g}, expected {target:g} ± {_LEFT:g}")
            worst = max(worst, off)
    return f"ends off by {worst:.1e}, allowed {_LEFT:g}"


@check("schedule")
def derivatives(specimen: Specimen) -> str:
    """d_alpha and d_sigma are the time derivatives of alpha and sigma, by central differences."""
    schedule, t, h = specimen.make(), _inside(specimen), 1e-5
    at, ahead, behind = (schedule.at(t + s) for s in (0, h, -h))
    said = []
    for name in ("alpha", "sigma"):
        slope = (getattr(ahead, name) - getattr(behind, name)) / (2 * h)
        said.append(off_by(getattr(at, f"d_{name}"), slope, 1e-6, f"d_{name}"))
    return "; ".join(said)


@check("schedule")
def monotone(specimen: Specimen) -> str:
    """From data to noise alpha falls and sigma rises, and alpha / sigma falls strictly."""
    schedule = specimen.make()
    low, high = schedule.t_range
    t = torch.linspace(low, high, 257, dtype=torch.float64)
    at = schedule.at(t)
    for name, values, sign in (("alpha", at.alpha, -1), ("sigma", at.sigma, 1)):
        wrong = sign * values.diff() < -1e-12
        where = float(t[int(wrong.int().argmax())])
        verb = "rises" if sign < 0 else "falls"
        require(not bool(wrong.any()), f"{name} {verb} after t = {where:.3g}")
    angle = torch.atan2(at.sigma, at.alpha)  # of the ratio, without dividing by zero
    stuck = angle.diff() <= 0
    where = float(t[int(stuck.int().argmax())])
    require(not bool(stuck.any()), f"alpha / sigma does not fall after t = {where:.3g}")
    return "monotone at 257 times"


@check("schedule")
def t_range(specimen: Specimen) -> str:
    """The times to draw from are a part of [0, 1] on which every coefficient is finite."""
    schedule = specimen.make()
    low, high = checked_range(schedule.t_range)
    at = schedule.at(torch.linspace(low, high, 1001, dtype=torch.float64))
    for name in _NAMES:
        require(
            bool(getattr(at, name).isfinite().all()), f"{name} is not finite on [{low:g}, {high:g}]"
        )
    largest = max(float(getattr(at, name).abs().max()) for name in _NAMES)
    return f"[{low:g}, {high:g}], coefficients up to {largest:.3g}"


@check("schedule")
def shapes(specimen: Specimen) -> str:
    """Coefficients have the shape, dtype and device of t, and do not depend on its neighbours."""
    schedule, t = specimen.make(), _inside(specimen)
    whole = schedule.at(t)
    for name in _NAMES:
        for shape in ((), (1,), (4,), (4, 1), (2, 3, 1), (0,)):
            some = t[: torch.Size(shape).numel()].reshape(shape)
            expected = getattr(whole, name)[: some.numel()].reshape(shape)
            off_by(getattr(schedule.at(some), name), expected, 1e-14, f"{name} at t of {shape}")
        for like in (t.float(), t.to("meta")):
            _require_follows(schedule, like, name)
    return "t of six shapes, in float32 and on the meta device"


@check("schedule")
def precision(specimen: Specimen) -> str:
    """In float32 the coefficients are those of float64, to float32's rounding."""
    schedule, t = specimen.make(), _inside(specimen).float()
    rough, fine = schedule.at(t), schedule.at(t.double())
    said = [off_by(getattr(rough, n).double(), getattr(fine, n), 1e-5, n) for n in _NAMES]
    return said[-1]


@check("schedule", of=Diffusion)
def rates(specimen: Specimen) -> str:
    """f and g^2 are those of alpha and sigma, finite on all of [0, 1], and g^2 is not negative."""
    schedule, t = specimen.make(), _inside(specimen)
    at, (f, g_squared) = schedule.at(t), schedule.rates(t)
    off_by(f, at.d_alpha / at.alpha, 1e-10, "f")
    expected = 2 * at.sigma * (at.d_sigma - f * at.sigma)
    said = off_by(g_squared, expected, 1e-10, "g^2")
    for name, values in zip(("f", "g^2"), schedule.rates(_whole()), strict=True):
        require(bool(values.isfinite().all()), f"{name} is not finite on [0, 1]")
    require(bool((schedule.rates(_whole())[1] >= 0).all()), "g^2 is negative on [0, 1]")
    return said


@check("schedule", of=Diffusion)
def times(specimen: Specimen) -> str:
    """`time_at` is the time of a log(sigma^2 / alpha^2)."""
    schedule, t = specimen.make(), _inside(specimen)
    at = schedule.at(t)
    return off_by(schedule.time_at(2 * (at.sigma / at.alpha).log()), t, 1e-10, "time_at")


def _whole() -> Tensor:
    return torch.linspace(0, 1, 1001, dtype=torch.float64)


def checked_range(found: tuple[float, float]) -> tuple[float, float]:
    """Return a range of times that is an interval in [0, 1].

    Raises:
        Failed: It is not.
    """
    low, high = found
    require(0 <= low < high <= 1, f"t_range is [{low:g}, {high:g}], expected a part of [0, 1]")
    return low, high


def _inside(specimen: Specimen) -> Tensor:
    """Return times where central differences stay inside [0, 1] and derivatives are moderate."""
    draws = torch.rand(16, generator=specimen.generator(), dtype=torch.float64)
    return 0.02 + 0.96 * draws


def _require_follows(schedule: Schedule, t: Tensor, name: str) -> None:
    try:
        found = getattr(schedule.at(t), name)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise Failed(f"cannot take t {t.dtype} on {t.device}: {reason}") from error
    require(
        found.dtype == t.dtype and found.device == t.device,
        f"{name} is {found.dtype} on {found.device} for t {t.dtype} on {t.device}",
    )
