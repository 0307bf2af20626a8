"""The numbers a table can print; `docs/judging.md` explains each of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowzoo.errors import Diverged, UserError
from flowzoo.flow import Encoded
from flowzoo.judge.measure import Measure, Metric, mean, standard_error
from flowzoo.judge.subject import AGAIN, OWN, Subject


class NLL(Metric):
    """Mean negative log-likelihood of the test points, in nats per point, with a certificate.

    The trace is exact and the solver adaptive at a tolerance of 1e-5. The parts of the error:
    `sampling`, the standard error of the mean over test points; `solver`, what the mean is off by,
    from a subsample solved again in float64 at a tolerance a hundred times tighter.
    `own_minus_judge` is what the flow's own numerics would have reported, less the judge's value,
    on at most 1000 points; it is left out where they give no finite number.

    Arguments:
        subsample: Points that are solved again.

    Raises:
        UserError: The subsample is smaller than 2.
    """

    def __init__(self, subsample: int = AGAIN) -> None:
        self.subsample = _at_least_two("nll", subsample)

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `nll`."""
        nll = -subject.log_prob
        change = -_density_change(subject, self.subsample)
        parts, note = _own_minus_judge(subject), subject.numerics
        return {"nll": mean(nll, change, unit="nats", better="lower", parts=parts, note=note)}


class KL(Metric):
    """KL(data || flow) in nats, where the data's density is known: the gap to the best NLL.

    The mean over test points of log p_data(x) - log p_flow(x). Paired at each point, its error
    vanishes with the gap; that of the NLL stays. An estimate may be negative, the KL is not.

    Arguments:
        subsample: Points that are solved again, for the solver's part of the error.

    Raises:
        UserError: The subsample is smaller than 2.
    """

    def __init__(self, subsample: int = AGAIN) -> None:
        self.subsample = _at_least_two("kl", subsample)

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `kl`, or nothing where the density is not known."""
        density = subject.data.log_prob
        if density is None:
            return {}
        # Both densities in the flow's coordinates, in which the data states its own.
        true = density(subject.data.test.double()).to(subject.x.device)
        gap = true - (subject.log_prob - subject.volume)
        change, note = -_density_change(subject, self.subsample), "paired with the true density"
        return {"kl": mean(gap, change, unit="nats", better="lower", note=note)}


class TransportCost(Metric):
    """Mean transport cost of the test points, E of T times the integral of |v|^2 / 2 over [0, T].

    In squared units of the flow's coordinates. The factor T, the time that the flow takes, makes it
    the cost of the same trajectories run in unit time, so that flows of other durations and chains
    of flows compare: it is at least the straight-line cost |x - z|^2 / 2 of the same ends.
    `detour` is the ratio of the two means, 1 for straight trajectories at constant speed. Where the
    optimal cost is known and not zero, `optimality` is the ratio to it.

    Arguments:
        subsample: Points that are solved again, for the solver's part of the error.

    Raises:
        UserError: The subsample is smaller than 2.

    References:
        A computational fluid mechanics solution to the Monge-Kantorovich mass transfer problem
        (Benamou & Brenier, Numerische Mathematik 2000)
    """

    def __init__(self, subsample: int = AGAIN) -> None:
        self.subsample = _at_least_two("transport", subsample)

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `transport`, `detour`, `optimality`; nothing for a flow without trajectories."""
        if not subject.running:
            return {}
        rows, fine = subject.again(self.subsample)
        cost, direct = _costs(subject.x, subject.encoded)
        fine_cost, fine_direct = _costs(subject.places(rows), fine)
        change, direct_change = cost[rows] - fine_cost, direct[rows] - fine_direct
        note = "integral of |v|^2 / 2, in unit time"
        measures = {
            "transport": mean(cost, change, unit="squared units", better="lower", note=note)
        }
        # Displacements below the solver's tolerance are noise, and so would be their ratio.
        resolved = 0.5 * subject.tolerance**2 * float(subject.x.double().square().sum(-1).mean())
        if (length := float(direct.mean())) > resolved:
            ratio = float(cost.mean()) / length
            # Linearised, so that numerator and denominator share their errors (delta method).
            values = ratio + (cost - ratio * direct) / length
            change_of_ratio = (change - ratio * direct_change) / length
            note = "cost over straight-line cost"
            measures["detour"] = mean(values, change_of_ratio, better="lower", note=note)
        optimum = subject.data.transport_cost
        if optimum is not None and optimum > resolved:
            note = "cost over optimal cost"
            measures["optimality"] = mean(
                cost / optimum, change / optimum, better="lower", note=note
            )
        return measures


class RoundTrip(Metric):
    """How far decode(encode(x)) is from x with the flow's own numerics: mean and largest distance.

    Arguments:
        subsample: Points to send there and back.

    Raises:
        UserError: The subsample is smaller than 2.
    """

    def __init__(self, subsample: int = OWN) -> None:
        self.subsample = _at_least_two("round-trip", subsample)

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `round-trip`."""
        rows, own = subject.own(self.subsample)
        context = None if subject.context is None else subject.context[rows]
        with torch.no_grad():
            back = subject.flow.decode(own.z, context)
        distance = (back - subject.x[rows]).double().norm(dim=-1)
        parts, note = {"largest": float(distance.max())}, "own numerics"
        return {"round-trip": mean(distance, unit="units", better="lower", parts=parts, note=note)}


def _density_change(subject: Subject, n: int) -> Tensor:
    """Return the judge's log-density less that of the finer solve, on n points."""
    rows, fine = subject.again(n)
    return subject.log_prob[rows] - subject.density(fine)


def _own_minus_judge(subject: Subject) -> dict[str, float]:
    """Return by how much the NLL of the flow's own numerics differs from the judge's."""
    try:
        rows, own = subject.own(OWN)
    except Diverged:
        return {}
    gap = subject.log_prob[rows] - subject.density(own)
    parts = {"own_minus_judge": float(gap.mean())}
    if (error := standard_error(gap)) is not None:
        parts["own_minus_judge_error"] = error
    return parts if all(map(math.isfinite, parts.values())) else {}


def _costs(x: Tensor, encoded: Encoded) -> tuple[Tensor, Tensor]:
    """Return the cost in unit time and the straight-line cost of trajectories from x, both (n,)."""
    action, elapsed = encoded.costs.double().unbind(-1)
    return action * elapsed, 0.5 * (x.double() - encoded.z.double()).square().sum(-1)


def _at_least_two(metric: str, subsample: int) -> int:
    if subsample < 2:
        raise UserError(f"the subsample of {metric} must be at least 2 points, got {subsample}")
    return subsample
