"""Checks of metrics: numbers that can be stored, that repeat, and that tell right from wrong."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace

import torch

from flowzoo.conformance.check import Failed, Skipped, check, require
from flowzoo.conformance.probes.flows_judged import (
    PERFECT,
    ROWS,
    SPOILED,
    conditional,
    data,
    ideals,
)
from flowzoo.conformance.probes.flows_trained import everything
from flowzoo.conformance.probes.rows import takes
from flowzoo.conformance.runner import settled
from flowzoo.conformance.specimen import Specimen
from flowzoo.data.dataset import Data
from flowzoo.errors import FlowzooError
from flowzoo.judge import Measure, Metric, Subject
from flowzoo.registry.component import reason

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_PART = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
_SMALLER = {"samples": 400, "points": 200}  # options that cost time, where a metric takes them
_UNKNOWN = 0.05  # what a number without an error may be off by, relative to 1 + its size
_FEW = (1, 2, 3, 5)

Measures = dict[str, Measure]


@check("metric")
def finite(specimen: Specimen) -> str:
    """Numbers are finite, with a unit, and a name that its docstring has, as of `nll`.

    Of right flows of three kinds, in one dimension and in single precision too.
    """
    told: Measures = {}
    said = f"{inspect.getdoc(specimen.cls)} {inspect.getdoc(specimen.cls.measure)}"
    subjects = [(what, _subject(what)) for what in PERFECT]
    first = next(iter(PERFECT))
    subjects += [(f"{first} for d = 1", _subject(first, 1))]
    subjects += [(f"{first} in float32", _subject(first, dtype=torch.float32))]
    for what, subject in subjects:
        for name, measure in _measured(specimen, subject, what).items():
            _sound(name, measure, what)
            require(f"`{name}`" in said, f"its docstring does not mention `{name}`, which it gives")
            told[name] = measure
    return ", ".join(_something(told))


@check("metric")
def context(specimen: Specimen) -> str:
    """A flow that is conditioned is measured with the contexts of the test points."""
    what = "a conditioned flow"
    found = _something(_measured(specimen, conditional(), what))
    for name, measure in found.items():
        _sound(name, measure, what)
    return ", ".join(found)


@check("metric")
def repeatable(specimen: Specimen) -> str:
    """Measured again the numbers are the same, and torch's global generator is not used."""
    found = []
    for state in ("one", "another"):
        with settled(state):
            before = torch.get_rng_state()
            found.append(_first(specimen))
            require(torch.equal(before, torch.get_rng_state()), "torch's global generator is used")
    differ = _differences(*found)
    require(not differ, f"two measurements differ: {differ}")
    return f"{len(found[0])} numbers twice the same"


@check("metric")
def order(specimen: Specimen) -> str:
    """The order of the test points does not matter, beyond the errors."""
    what = next(iter(PERFECT))
    if _differences(_first(specimen), _first(specimen)):
        raise Skipped("two measurements of the same differ")
    points = data()
    ranks = points.test.norm(dim=-1).argsort()
    up, down = (
        _something(_measured(specimen, Subject(PERFECT[what](2), _with(points, rows)), what))
        for rows in (ranks, ranks.flip(0))
    )
    require(up.keys() == down.keys(), f"{sorted(up)} of sorted points, {sorted(down)} of reversed")
    for name in up:
        gap, allowed = up[name].value - down[name].value, _allowed(up[name], down[name])
        require(
            abs(gap) <= allowed,
            f"{name} of reversed test points differs by {gap:.3g}, allowed ±{allowed:.2g}",
        )
    return f"{', '.join(up)} of sorted and of reversed points agree"


@check("metric")
def leaves_flow(specimen: Specimen) -> str:
    """Measuring changes neither the flow (weights, modes, numerics) nor the test points."""
    for what, make in PERFECT.items():
        flow, points = make(2).eval(), data()
        before, rows = everything(flow), points.test.clone()
        _measured(specimen, Subject(flow, points), what)
        require(before == everything(flow), f"{what} is changed by measuring it")
        require(torch.equal(rows, points.test), "the test points are changed by measuring")
    return f"{len(PERFECT)} flows as before"


@check("metric")
def perfect(specimen: Specimen) -> str:
    """A flow that is exactly right gets the ideal number, within twice the error.

    Ideals are known of flowzoo's own numbers. Another metric states them on its class, as
    `ideals = {"my-distance": 0.0}`; the flow is then the optimal one. Of a biased number with a
    part `unbiased`, that part is meant.
    """
    own: Mapping[str, float] = getattr(specimen.cls, "ideals", {})
    said: dict[float, str] = {}
    for i, (what, known) in enumerate(ideals().items()):
        known = {**known, **own} if i == 0 else known
        for name, measure in _measured(specimen, _subject(what), what).items():
            if name not in known:
                continue
            value = measure.parts.get("unbiased", measure.value)
            gap = value - known[name]
            allowed = 2 * (measure.error or 0.0) + 1e-6 * (1 + abs(known[name]))
            require(
                abs(gap) <= allowed,
                f"{name} of {what} is {value:.4g}, expected {known[name]:.4g} ± {allowed:.2g}",
            )
            said[abs(gap) / allowed] = f"{name} off by {abs(gap):.1e}, allowed {allowed:.0e}"
    if not said:
        raise Skipped("it gives no number of which the ideal is known")
    return said[max(said)]


@check("metric")
def worse(specimen: Specimen) -> str:
    """Where a direction is better, one of six spoiled flows is worse by more than the errors.

    Spoiled in density, in spread, in the way that points take, in accuracy, speed or noise. Numbers
    that do not repeat, such as times, are not compared: they depend on more than the flow.
    """
    if "repeatable" in specimen.expected:
        raise Skipped("its numbers do not repeat, as it declares")
    best: Measures = {}
    for what in PERFECT:
        for name, measure in _measured(specimen, _subject(what), what).items():
            if measure.better and (name not in best or _behind(best[name], measure) > 0):
                best[name] = measure
    if not best:
        raise Skipped("it gives no number with a direction")
    told: dict[str, str] = {}
    for what in SPOILED:
        for name, measure in _measured(specimen, _subject(what), what).items():
            if name in best and name not in told:
                behind, allowed = _behind(measure, best[name]), _allowed(measure, best[name])
                if behind > allowed:
                    told[name] = f"{name} {best[name].value:.3g}, of {what} {measure.value:.3g}"
    for name in best:
        require(
            name in told, f"{name} of no spoiled flow is clearly worse than {best[name].value:.4g}"
        )
    return "; ".join(told.values())


@check("metric")
def small(specimen: Specimen) -> str:
    """Of one, two, three and five test points it gives numbers, or an error with a sentence."""
    refused = 0
    what = next(iter(PERFECT))
    for rows in _FEW:
        try:
            found = _made(specimen).measure(_subject(what, rows=rows))
        except FlowzooError as error:
            require(len(str(error).split()) >= 4, f"{rows} points are refused by '{error}'")
            refused += 1
            continue
        except Exception as error:
            raise Failed(f"{rows} test points raise {reason(error)}") from error
        for name, measure in found.items():
            _sound(name, measure, f"{rows} test points")
    return f"{len(_FEW) - refused} sizes measured, {refused} refused"


def _subject(
    what: str, dim: int = 2, rows: int = ROWS, dtype: torch.dtype = torch.float64
) -> Subject:
    flow = {**PERFECT, **SPOILED}[what](dim).to(dtype).eval()
    return Subject(flow, data(dim, rows))


def _made(specimen: Specimen) -> Metric:
    smaller = {k: v for k, v in _SMALLER.items() if k in takes(specimen)}
    return replace(specimen, spec={**smaller, **specimen.spec}).make()


def _measured(specimen: Specimen, subject: Subject, what: str) -> Measures:
    """Return what a metric measures.

    Raises:
        Failed: It gives up on a flow on which nothing is wrong.
    """
    metric = _made(specimen)
    try:
        return metric.measure(subject)
    except FlowzooError as error:
        raise Failed(f"it does not measure {what}: {error}") from error


def _first(specimen: Specimen) -> Measures:
    """Return the numbers of the first right flow of which there are any."""
    for what in PERFECT:
        if found := _measured(specimen, _subject(what), what):
            return found
    return _something({})


def _something(found: Measures) -> Measures:
    if not found:
        raise Skipped("it measures nothing on the flows at hand")
    return found


def _differences(one: Measures, other: Measures) -> str:
    """Return in words in what two measurements differ."""
    if one.keys() != other.keys():
        return f"{', '.join(one)} and then {', '.join(other)}"
    pairs = ((name, one[name], other[name]) for name in one if one[name] != other[name])
    return "; ".join(f"{name} {a.value!r} and then {b.value!r}" for name, a, b in pairs)


def _sound(name: str, measure: Measure, what: str) -> None:
    """Raise Failed unless a number can be stored and printed."""
    whose = f"{name} of {what}"
    require(bool(_NAME.fullmatch(name)), f"the name {name!r} is not in kebab case")
    require(isinstance(measure, Measure), f"{whose} is a {type(measure).__name__}, no Measure")
    numbers = {"its value": measure.value, **measure.parts}
    if measure.error is not None:
        numbers["its error"] = measure.error
        require(not measure.error < 0, f"the error of {whose} is {measure.error}")
    for part, number in numbers.items():
        require(type(number) is float, f"{part} of {whose} is a {type(number).__name__}, no float")
    require(measure.finite, f"{whose} is not finite: {numbers}")
    for part in measure.parts:
        require(bool(_PART.fullmatch(part)), f"the part {part!r} of {name} is not in snake case")
    require(measure.better in ("lower", "higher", None), f"{whose}: better is {measure.better!r}")
    require(isinstance(measure.unit, str), f"the unit of {whose} is {measure.unit!r}")
    require(bool(measure.note), f"{whose} has no note that says how it was computed")


def _allowed(one: Measure, other: Measure) -> float:
    """Return what two measurements may differ by."""
    known = [
        m.error if m.error is not None else _UNKNOWN * (1 + abs(m.value)) for m in (one, other)
    ]
    return sum(known) + 1e-9 * (1 + abs(one.value))


def _behind(measure: Measure, best: Measure) -> float:
    """Return by how much a number is worse than another."""
    gap = measure.value - best.value
    return gap if best.better == "lower" else -gap


def _with(points: Data, rows: torch.Tensor) -> Data:
    return replace(points, test=points.test[rows])
