"""Checks of discrepancies: zero for equal laws, positive for others, and a slope that leads there.

Those that measure more than one draw share nothing: a draw has fresh points and fresh randomness.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowzoo.conformance.check import Failed, Skipped, check, off_by, require
from flowzoo.conformance.probes import invariance
from flowzoo.conformance.probes.sequential import interval, mean_is_zero
from flowzoo.conformance.probes.slopes import slopes
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import FlowzooError
from flowzoo.registry.component import reason
from flowzoo_pfg.discrepancy import Discrepancy

_NAMES = ("the discrepancy",)
_AT_ONCE = 8  # values that one draw of a sequential test averages
_BIAS = 0.05  # the smallest bias to find, in units of the value for a shift by 2
_ROUNDING = 1e-10
_STEPS = 60  # of Adam, in the check of descent
_RATE = 0.1
_LEFT = 0.5  # of the distance to the data's mean, after them


@check("discrepancy")
def shapes(specimen: Specimen) -> str:
    """It is a finite number () for any sizes and dimension; few points may be refused."""
    for n, m, d in ((12, 12, 2), (12, 7, 3), (5, 16, 1), (12, 24, 5)):
        found = _value(specimen, specimen.points(n, d), specimen.points(m, d, seed=1))
        _scalar(found, f"the discrepancy of {n} and {m} points in R^{d}")
    for n, m in ((1, 5), (5, 1), (1, 1), (0, 5), (5, 0)):
        try:
            found = _value(specimen, specimen.points(n), specimen.points(m, seed=1))
        except FlowzooError as error:
            sentence = len(str(error).split()) >= 5
            require(sentence, f"{n} and {m} points are refused without a reason: '{error}'")
            continue
        _scalar(found, f"the discrepancy of {n} and {m} points")
    return "numbers, for sizes 5 to 24 in R^1 to R^5"


@check("discrepancy")
def equal_laws(specimen: Specimen) -> str:
    """An unbiased one is zero in the mean for equal laws, another for a sample and itself."""
    made: Discrepancy = specimen.make()
    if not made.unbiased:
        x, said = specimen.points(12, 2), ""
        zero = x.new_zeros(())
        for what, y in (
            ("a sample and itself", x.flip(0)),
            ("a sample and its points three times", x.flip(0).repeat_interleave(3, 0)),
        ):
            said = off_by(_value(specimen, x, y), zero, _ROUNDING, f"the discrepancy of {what}")
        return said
    draws, large = specimen.generator(), float(_shifted(specimen).mean())

    def values() -> Tensor:
        each = [_drawn(made, draws, n=16, m=n).detach() for n in (16, 9) for _ in range(_AT_ONCE)]
        return torch.stack(each).view(2, -1).mean(1) / large

    what = "the discrepancy of equal laws, in units of that of a shift by 2,"
    return mean_is_zero(values, _BIAS, what)


@check("discrepancy")
def positive(specimen: Specimen) -> str:
    """Laws that differ in mean, spread or correlation are farther apart than equal ones."""
    made: Discrepancy = specimen.make()
    draws, said = specimen.generator(), []
    mixed = torch.tensor([[1.0, 0.95], [0.0, 0.312]], dtype=torch.float64)
    for what, change in (
        ("a shift by 2", lambda x: x + x.new_tensor([2.0, 0.0])),
        ("half the spread", lambda x: 0.5 * x),
        ("a correlation of 0.95", lambda x: x @ mixed),
    ):
        more = [
            _drawn(made, draws, change, n=48).detach() - _drawn(made, draws, n=48).detach()
            for _ in range(48)
        ]
        mean, half = (float(value) for value in interval(torch.stack(more).view(-1, 1), 1e-4))
        require(
            mean > half,
            f"{what} makes it larger by {mean:.2g} +- {half:.1g} only, with 48 points of each law",
        )
        said.append(f"{what}: {mean:.2g}")
    return "; ".join(said)


@check("discrepancy")
def gradient(specimen: Specimen) -> str:
    """Its gradient in the generated points is that of finite differences."""
    said = ""
    for n in (9, 6):
        x, y = (1 + specimen.points(n)).requires_grad_(), specimen.points(9, seed=1)
        said = slopes(
            lambda x=x, y=y: _value(specimen, x, y),
            [x],
            specimen.generator(2),
            1e-6,
            f"the slope for {n} and 9 points",
            step=1e-6,  # sorted projections have a kink wherever two of them meet
        )
    return said


@check("discrepancy")
def repeatable(specimen: Specimen) -> str:
    """It follows from the points, which it leaves as they are, and from the generator alone."""
    x, y = 1 + specimen.points(12), specimen.points(12, seed=1)
    before = torch.get_rng_state()
    with invariance.untouched((x, y), "a sample"):
        first = _value(specimen, x, y, 1)
    untouched = torch.equal(before, torch.get_rng_state())
    torch.rand(1)
    second = _value(specimen, x, y, 1)
    torch.set_rng_state(before)
    require(torch.equal(first, second), "it differs between two equal generators")
    require(untouched, "torch's global generator is used although one is given")
    random = not torch.equal(first, _value(specimen, x, y, 2))
    return "equal generators give equal values; " + ("random" if random else "deterministic")


@check("discrepancy")
def rows(specimen: Specimen) -> str:
    """The order of the generated points, and that of the data, do not matter."""
    said = ""
    for n in (12, 7):
        x, y = 1 + specimen.points(n, 3), specimen.points(12, 3, seed=1)
        whole = _value(specimen, x, y)
        mixed = specimen.generator(3)
        for what, one, other in (
            ("generated points", x[torch.randperm(n, generator=mixed)], y),
            ("data", x, y[torch.randperm(12, generator=mixed)]),
        ):
            found = _value(specimen, one, other)
            said = off_by(found, whole, _ROUNDING, f"the discrepancy of permuted {what}")
    return said


@check("discrepancy")
def rigid_motion(specimen: Specimen) -> str:
    """A shift and rotation of both samples changes nothing, on average over its randomness."""
    made: Discrepancy = specimen.make()
    x, y = 1 + specimen.points(12), specimen.points(12, seed=1) * specimen.points(1, 2, seed=2)
    turn = torch.linalg.qr(specimen.points(2, 2, seed=3))[0]
    shift = x.new_tensor([3.0, -1.0])
    draws, large = specimen.generator(), float(_shifted(specimen).mean())

    def change() -> Tensor:
        each = [
            made(x @ turn + shift, y @ turn + shift, draws) - made(x, y, draws)
            for _ in range(_AT_ONCE)
        ]
        return (torch.stack(each).mean() / large)[None]

    return mean_is_zero(change, _BIAS, "the change by a shift and rotation")


@check("discrepancy")
def precision(specimen: Specimen) -> str:
    """In float32 it is that of float64, to float32's rounding, whatever the default dtype."""
    said = ""
    for n in (12, 7):
        given = 1 + specimen.points(n).float(), specimen.points(12, seed=1).float()

        def value(x: Tensor, y: Tensor) -> tuple[Tensor]:
            return (_value(specimen, x, y),)

        invariance.ignores_default_dtype(value, given, _NAMES)
        rough, fine = value(*given)[0], value(*(points.double() for points in given))[0]
        require(fine.dtype == torch.float64, f"it is {fine.dtype} for torch.float64 points")
        # Random numbers of another dtype are others: compared to what they change.
        noise = torch.stack([_value(specimen, *given, seed) for seed in range(16)]).aminmax()
        allowed = 1e-4 + 2 * float(noise.max - noise.min)
        said = off_by(rough.double(), fine, allowed, "the float32 discrepancy")
    return said


@check("discrepancy")
def device(specimen: Specimen) -> str:
    """It is computed where the points are, and reads no value of theirs on the host."""
    made: Discrepancy = specimen.make()
    said = ""
    for where in invariance.devices():
        for n in (12, 7):
            x, y = specimen.points(n), specimen.points(12, seed=1)

            def value(x: Tensor, y: Tensor) -> tuple[Tensor]:
                return (made(x, y),)

            with invariance.global_seed(0):
                expected = value(x, y)
                given = (x.to(where), y.to(where))
                try:
                    said = invariance.on_device(value, given, expected, _NAMES)
                except Skipped as error:
                    raise Failed(f"it waits for the device: {error}") from error
    return said


@check("discrepancy")
def descent(specimen: Specimen) -> str:
    """Points that follow minus its gradient come to the data, and it falls."""
    made: Discrepancy = specimen.make()
    y = specimen.points(64, seed=1)
    x = (1.5 + 0.5 * specimen.points(64)).requires_grad_()
    draws = specimen.generator(2)
    first, far = _standing(made, x, y, draws)
    optimizer = torch.optim.Adam([x], lr=_RATE)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        made(x, y, draws).backward()
        optimizer.step()
    last, near = _standing(made, x, y, draws)
    said = (
        f"in {_STEPS} steps it goes from {first:.3g} to {last:.3g}, "
        f"and the means from {far:.2g} apart to {near:.2g}"
    )
    require(last < first and near < _LEFT * far, said)
    return said


def _scalar(found: Tensor, what: str) -> None:
    require(found.dim() == 0, f"{what} has shape {tuple(found.shape)}, expected ()")
    require(bool(found.isfinite()), f"{what} is {found.item()}")


def _value(specimen: Specimen, x: Tensor, y: Tensor, seed: int = 1) -> Tensor:
    made: Discrepancy = specimen.make()
    try:
        return made(x, y, specimen.generator(seed))
    except RuntimeError as error:
        sizes = f"{tuple(x.shape)} and {tuple(y.shape)} {x.dtype}"
        raise Failed(f"samples {sizes} raise {reason(error)}") from error


def _drawn(
    made: Discrepancy,
    draws: torch.Generator,
    change: Callable[[Tensor], Tensor] = lambda x: x,
    n: int = 32,
    m: int | None = None,
) -> Tensor:
    """Return the discrepancy of fresh normal points (n, 2), changed, and of fresh ones (m, 2)."""
    x, y = (
        torch.randn(size, 2, generator=draws, dtype=torch.float64)
        for size in (n, n if m is None else m)
    )
    return made(change(x), y, draws)


def _shifted(specimen: Specimen) -> Tensor:
    """Return values for laws that are 2 apart."""
    made, draws = specimen.make(), specimen.generator(9)
    return torch.stack([_drawn(made, draws, lambda x: x + 2**0.5).detach() for _ in range(8)])


def _standing(
    made: Discrepancy, x: Tensor, y: Tensor, draws: torch.Generator
) -> tuple[float, float]:
    """Return the discrepancy, averaged over its randomness, and the distance of the means."""
    x = x.detach()
    values = torch.stack([made(x, y, draws) for _ in range(8)])
    return float(values.mean()), float((x.mean(0) - y.mean(0)).norm())
