"""What a flow costs to use: evaluations of its field, and points per second."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from statistics import median
from typing import ClassVar

import torch

from flowzoo.errors import Diverged, Incompatible, UserError
from flowzoo.flow import Encoded, Flow
from flowzoo.judge.measure import Measure, Metric
from flowzoo.judge.numerics import piece
from flowzoo.judge.solves import pieces
from flowzoo.judge.subject import OWN, Subject, latent


class NFE(Metric):
    """Evaluations of the field that the judge's solver takes to score a test point.

    Points that are solved together share their evaluations: the number is that of the piece that a
    point was solved in, all blocks of a chain together, averaged over points. It says how stiff the
    trained field is. The part `own` is the same of the flow's own numerics, on at most 1000 points,
    left out where they give up. A count has no error.
    """

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `nfe`; nothing for a flow that counts nothing."""
        judge = subject.solved.encoded
        if judge is None or not judge.nfe:
            return {}
        value, parts = _per_point(subject, subject.judged, judge), {}
        with suppress(Diverged):
            parts["own"] = _per_point(subject, subject.flow, latent(subject.own(OWN)[1]))
        return {"nfe": Measure(value, None, "evaluations", "lower", parts, subject.numerics)}


class Throughput(Metric):
    """Points per second with the flow's own numerics: drawn, and scored by their density.

    The median of repeated calls after a first that is not timed, without gradients, on one batch
    in the flow's precision; where an exact trace would not fit in memory, points are scored in the
    pieces of the judge. The error reaches to the fastest and the slowest repeat, whichever is
    further: these enclose the median of r repeats with probability 1 - 2^(1 - r), 99.2 % for 8.
    Times are not reproducible: they compare on one idle machine only. A rate is left out where the
    own numerics give up, or where the flow does not sample.

    Arguments:
        points: Points in the batch.
        repeats: Calls that are timed, for each of the two.

    Raises:
        UserError: There are no points, or fewer than 2 repeats.
    """

    expected_failures: ClassVar[Mapping[str, str]] = {
        "repeatable": "times differ from call to call"
    }

    def __init__(self, points: int = 1000, repeats: int = 8) -> None:
        if points < 1:
            raise UserError(f"throughput needs at least 1 point, got {points}")
        if repeats < 2:
            raise UserError(f"throughput needs at least 2 repeats, got {repeats}")
        self.points, self.repeats = points, repeats

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `sampling-rate` and `density-rate`."""
        flow, n, device = subject.flow, self.points, subject.x.device
        rows = torch.arange(n, device=device) % len(subject.x)  # repeated where there are fewer
        x = subject.x[rows]
        context = None if subject.context is None else subject.context[rows]
        generator = subject.generator()

        def sample() -> None:
            with torch.no_grad():
                flow.sample(n, context, generator)

        def score() -> None:
            def one(some: torch.Tensor) -> torch.Tensor:
                part = None if context is None else context[some]
                return flow.log_prob(x[some], part, generator)

            for _ in pieces(one, n, piece(x.shape[1]), device):
                pass

        rates = {
            "sampling-rate": self._rate(sample, device, n),
            "density-rate": self._rate(score, device, min(n, piece(x.shape[1]))),
        }
        return {name: rate for name, rate in rates.items() if rate is not None}

    def _rate(self, call: Callable[[], None], device: torch.device, size: int) -> Measure | None:
        try:
            seconds = [_seconds(call, device) for _ in range(1 + self.repeats)][1:]
        except (Diverged, Incompatible):
            return None
        rates = [self.points / s for s in seconds]
        middle = median(rates)
        error = max(middle - min(rates), max(rates) - middle)
        note = f"own numerics, {size} points at once on {_hardware(device)}"
        return Measure(middle, error, "points/s", "higher", {}, note)


def _per_point(subject: Subject, flow: Flow, encoded: Encoded) -> float:
    """Return the evaluations of the piece that a point was solved in, averaged over points."""
    counts = torch.tensor([float(solve.forward) for solve in encoded.nfe], dtype=torch.float64)
    context = None if subject.context is None else subject.context[:1]
    with torch.no_grad():  # one point tells how many solves a piece takes, one for each block
        solves = len(flow.encode(subject.x[:1], (), context, subject.generator()).nfe)
    counts = counts.reshape(-1, solves).sum(1)
    n, size = len(encoded.z), piece(encoded.z.shape[1])
    sizes = torch.tensor([min(size, n - start) for start in range(0, n, size)])
    if len(sizes) != len(counts):  # memory was short and pieces were halved
        return float(counts.mean())
    return float((counts * sizes).sum() / n)


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    _synchronise(device)
    start = time.perf_counter()
    call()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"
