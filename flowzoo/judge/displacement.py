"""How far a flow moves points, whatever way they take: what a flow without trajectories costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from flowzoo.judge.measure import Measure, Metric, at_least_two, mean
from flowzoo.judge.subject import AGAIN, Subject, latent
from flowzoo.judge.trajectories import resolution


class Displacement(Metric):
    r"""Mean cost of the test points' displacement, E |x - z|^2 / 2 with z = encode(x).

    In squared units of the flow's coordinates, for any flow that sends points to noise. For
    one with trajectories it is at most its transport cost, and equal for straight lines at constant
    speed. `displacement-optimality` is the ratio to the optimal cost, where that is known and not
    zero. The optimum is that of the law, the mean that of a sample; where the optimal map T is
    known the ratio is therefore measured by the excess over its cost at the same points,

        1 + E[|x - z|^2 / 2 - |x - T(x)|^2 / 2] / optimum,

    whose error vanishes as z tends to T(x). It is at least 1 for a flow that reaches N(0, I); one
    that does not may move points less far, so it means something beside a small `kl` alone.

    Arguments:
        subsample: Points that are solved again, for the solver's part of the error.

    Raises:
        UserError: The subsample is smaller than 2.

    References:
        Convex Potential Flows (Huang, Chen, Tsirigotis & Courville, ICLR 2021), section 5.2,
        https://arxiv.org/abs/2012.05942
    """

    ideals: ClassVar[Mapping[str, float]] = {"displacement-optimality": 1.0}

    def __init__(self, subsample: int = AGAIN) -> None:
        self.subsample = at_least_two("displacement", subsample)

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `displacement`, `displacement-optimality`; nothing without a latent."""
        if not subject.flow.latent:
            return {}
        rows, fine = subject.again(self.subsample)
        x = subject.data.test.to(subject.x.device).double()
        cost = _cost(x, subject.encoded.z)
        change = cost[rows] - _cost(x[rows], latent(fine).z)
        found = mean(
            cost,
            change,
            finer=subject.finer,
            unit="squared units",
            better="lower",
            note="|x - z|^2 / 2 of the two ends",
        )
        optimum = subject.data.transport_cost
        if optimum is None or optimum <= resolution(subject) / 2:
            return {"displacement": found}
        ratio = mean(
            1 + self._excess(subject, cost, optimum) / optimum,
            change / optimum,
            finer=subject.finer / optimum,
            better="lower",
            note="displacement over optimal cost",
        )
        return {"displacement": found, "displacement-optimality": ratio}

    @staticmethod
    def _excess(subject: Subject, cost: Tensor, optimum: float) -> Tensor:
        """Return what every point (n,) costs more than by the optimal map, or than the optimum."""
        transport = getattr(subject.data.oracle, "transport", None)
        if transport is None:
            return cost - optimum
        test = subject.data.test.double()
        return cost - _cost(test, transport(test)).to(cost.device)


def _cost(x: Tensor, z: Tensor) -> Tensor:
    return 0.5 * (x - z.double()).square().sum(-1)
