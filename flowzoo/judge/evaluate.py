"""Scores a flow by a list of metrics, and lets no number pass that is not one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from flowzoo.adapters import adapt
from flowzoo.errors import Diverged, UserError
from flowzoo.flow import Flow
from flowzoo.judge.measure import Measure, Metric
from flowzoo.judge.numerics import TOLERANCE
from flowzoo.judge.points import Points, Standardised, dimension
from flowzoo.judge.subject import Subject


def evaluate(
    flow: Any,
    data: Points,
    scale: Standardised | None = None,
    metrics: Sequence[Metric] = (),
    device: str | torch.device = "cpu",
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> dict[str, Measure]:
    """Score a flow on test points; the flow is left as it was.

    Arguments:
        flow: The trained flow, or any object with `log_prob` and `sample` (`flowzoo.adapters`).
        data: Test points, in the flow's coordinates.
        scale: The map from the data's published coordinates, if any.
        metrics: What to measure.
        device: Where to compute.
        seed: Seed of every random choice.
        tolerance: Relative and absolute tolerance of the judge's solver.

    Returns:
        Measures by name.

    Raises:
        Diverged: A number is not finite, or a solver gave up; the sentence names the metric.
        UserError: The test points are none, no table or not finite, their contexts do not match
            them, or two metrics give the same number.
        Incompatible: The flow is of another dimension.
    """
    measures: dict[str, Measure] = {}
    flow = adapt(flow, dimension(data.test))
    # Divergences need gradients inside the solve, even where the caller records none.
    with _in_evaluation(flow), torch.inference_mode(False):
        subject = Subject(flow, data, scale, device, seed, tolerance)
        for metric in metrics:
            try:
                found = metric.measure(subject)
            except Diverged as error:
                raise Diverged(f"{type(metric).__name__} cannot be measured: {error}") from error
            for name, measure in found.items():
                _require_finite(name, measure)
                if name in measures:
                    raise UserError(f"two of the metrics measure {name}; keep one of them")
                measures[name] = measure
    return measures


def _require_finite(name: str, measure: Measure) -> None:
    if measure.finite:
        return
    numbers = {"": measure.value, " (its error)": measure.error or 0.0}
    numbers |= {f" (its part {part})": number for part, number in measure.parts.items()}
    where, number = next((k, v) for k, v in numbers.items() if not math.isfinite(v))
    raise Diverged(f"the metric {name}{where} is {number}, which is not a finite number")


@contextmanager
def _in_evaluation(flow: Flow) -> Iterator[None]:
    """Put every module of the flow in evaluation mode, and afterwards each back as it was."""
    modes = [(module, module.training) for module in flow.modules()]
    flow.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
