"""The numbers a table can print."""

from __future__ import annotations

import torch
from torch import Tensor

from flowzoo.flow import log_normal
from flowzoo.judge.measure import Measure, Metric
from flowzoo.judge.subject import TOLERANCE, Subject


class NLL(Metric):
    """Mean negative log-likelihood of the test points, in nats per point, with a certificate.

    The trace is exact and the solver adaptive at a tolerance of 1e-5. The parts of the error:
    `sampling`, the standard error of the mean over test points; `solver`, the mean change on a
    subsample solved again in float64 at a tolerance a hundred times tighter. `own_minus_judge` is
    what the flow's own numerics would have reported, less the judge's value, on the subsample.

    Arguments:
        subsample: Points that are solved again.
    """

    def __init__(self, subsample: int = 200) -> None:
        self.subsample = subsample

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `nll`."""
        nll = -subject.log_prob.double()
        sampling = float(nll.std() / len(nll) ** 0.5) if len(nll) > 1 else float("inf")
        rows = subject.rows(self.subsample)
        x, context = subject.x[rows], None if subject.context is None else subject.context[rows]
        fine = subject.encode(
            subject.refined, x.double(), None if context is None else context.double()
        )
        refined = -(log_normal(fine.z) + fine.ladj + subject.volume)
        solver = float((nll[rows] - refined).mean().abs())
        with torch.no_grad():
            own = -subject.flow.log_prob(x, context, subject.generator()).double() - subject.volume
        parts = {
            "sampling": sampling,
            "solver": solver,
            "own_minus_judge": float((own - nll[rows]).mean()),
        }
        error = (sampling**2 + solver**2) ** 0.5
        note = f"exact trace, dopri5 at {TOLERANCE:g}"
        return {"nll": Measure(float(nll.mean()), error, "nats", "lower", parts, note)}


class KL(Metric):
    """KL(data || flow) in nats, where the data's density is known: the gap to the best NLL.

    The mean over test points of log p_data(x) - log p_flow(x). Paired at each point, its error is
    far smaller than that of the NLL.
    """

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `kl`, or nothing where the density is not known."""
        density = subject.data.log_prob
        if density is None:
            return {}
        true = density(subject.data.test.double()).to(subject.x.device)
        gap = true - (subject.log_prob.double() - subject.volume)
        return {"kl": _mean(gap, "nats", "lower", "paired with the true density")}


class TransportCost(Metric):
    """Mean transport cost of the test points, E of the integral of |v|^2 / 2, in squared units.

    In the flow's coordinates. It is compared with the straight-line cost |x - z|^2 / 2 of the same
    ends: the ratio is 1 for straight trajectories at constant speed. Where the optimal cost
    is known, `optimality` is the ratio to it.
    """

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `transport`, `detour`, `optimality`; nothing for a flow without trajectories."""
        if not subject.encoded.costs.shape[1]:
            return {}
        cost = subject.encoded.costs[:, 0].double()
        direct = 0.5 * (subject.x - subject.encoded.z).double().square().sum(-1)
        measures = {
            "transport": _mean(cost, "squared units", "lower", "integral of |v|^2 / 2"),
            "detour": _mean(cost / direct.mean(), "", "lower", "cost over straight-line cost"),
        }
        optimum = subject.data.transport_cost
        if optimum:
            measures["optimality"] = _mean(cost / optimum, "", "lower", "cost over optimal cost")
        return measures


class RoundTrip(Metric):
    """How far decode(encode(x)) is from x with the flow's own numerics: mean and largest distance.

    Arguments:
        subsample: Points to send there and back.
    """

    def __init__(self, subsample: int = 1000) -> None:
        self.subsample = subsample

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `round-trip`."""
        rows = subject.rows(self.subsample)
        x, context = subject.x[rows], None if subject.context is None else subject.context[rows]
        with torch.no_grad():
            z = subject.flow.encode(x, context=context, generator=subject.generator()).z
            error = (subject.flow.decode(z, context) - x).double().norm(dim=-1)
        measure = _mean(error, "units", "lower", "own numerics")
        measure.parts["largest"] = float(error.max())
        return {"round-trip": measure}


def _ratio(cost: Tensor, reference: float, note: str) -> Measure:
    return Measure(float(cost.mean()) / reference, None, "", "lower", note=note)


def _mean(values: Tensor, unit: str, better: str, note: str) -> Measure:
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return Measure(float(values.mean()), error, unit, better, {}, note)  # pyright: ignore
