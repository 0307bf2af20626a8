"""What trajectories cost: transport cost, path energy, and how straight they are."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from flowzoo.flow import Encoded
from flowzoo.judge.measure import Measure, Metric, at_least_two, mean
from flowzoo.judge.subject import AGAIN, Subject, latent


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
        self.subsample = at_least_two("transport", subsample)

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `transport`, `detour`, `optimality`; nothing for a flow without trajectories."""
        if not subject.running:
            return {}
        (cost, direct), (change, direct_change) = _costs(subject, self.subsample)
        note = "integral of |v|^2 / 2, in unit time"
        measures = {
            "transport": mean(
                cost, change, finer=subject.finer, unit="squared units", better="lower", note=note
            )
        }
        # Displacements below the solver's tolerance are noise, and so would be their ratio.
        if (length := float(direct.mean())) > resolution(subject) / 2:
            ratio = float(cost.mean()) / length
            # Linearised, so that numerator and denominator share their errors (delta method).
            values = ratio + (cost - ratio * direct) / length
            change_of_ratio = (change - ratio * direct_change) / length
            note = "cost over straight-line cost"
            measures["detour"] = mean(
                values, change_of_ratio, finer=subject.finer / length, better="lower", note=note
            )
        if optimum := _optimum(subject):
            note = "cost over optimal cost"
            measures["optimality"] = mean(
                cost / optimum,
                change / optimum,
                finer=subject.finer / optimum,
                better="lower",
                note=note,
            )
        return measures


class PathEnergy(Metric):
    """Path energy E of T times the integral of |v|^2 over [0, T], twice the transport cost.

    In squared units of the flow's coordinates, along the trajectories of test points; papers take
    those of samples, which are the same where the flow is exact. Where W2^2(data, N(0, I)) is known
    and not zero, `npe` is the normalised path energy |path energy - W2^2| / W2^2, zero for optimal
    transport; its part `difference` has the sign.

    Arguments:
        subsample: Points that are solved again, for the solver's part of the error.

    Raises:
        UserError: The subsample is smaller than 2.

    References:
        Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport
        (Tong et al., TMLR 2024), https://arxiv.org/abs/2302.00482
    """

    def __init__(self, subsample: int = AGAIN) -> None:
        self.subsample = at_least_two("path-energy", subsample)

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `path-energy` and `npe`; nothing for a flow without trajectories."""
        if not subject.running:
            return {}
        (cost, _), (change, _) = _costs(subject, self.subsample)
        note = "along trajectories of test points, not of samples"
        energy = mean(
            2 * cost,
            2 * change,
            finer=2 * subject.finer,
            unit="squared units",
            better="lower",
            note=note,
        )
        measures = {"path-energy": energy}
        if optimum := _optimum(subject):
            signed = mean(
                cost / optimum - 1,
                change / optimum,
                finer=subject.finer / optimum,
                better="lower",
                note=note,
            )
            # An interval about the difference, folded at zero, is one about its absolute value.
            parts = signed.parts | {"difference": signed.value}
            measures["npe"] = replace(signed, value=abs(signed.value), parts=parts)
        return measures


class Straightness(Metric):
    r"""How far trajectories are from straight lines at constant speed, in squared units.

        straightness = E[T int_0^T |v|^2 dt - |z - x|^2] = E[T int_0^T |v - (z - x) / T|^2 dt]

    Zero for straight lines at constant speed, optimal or not. The solver may make it negative by
    its error.

    Arguments:
        subsample: Points that are solved again, for the solver's part of the error.

    Raises:
        UserError: The subsample is smaller than 2.

    References:
        Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow (Liu,
        Gong & Liu, ICLR 2023), https://arxiv.org/abs/2209.03003
    """

    def __init__(self, subsample: int = AGAIN) -> None:
        self.subsample = at_least_two("straightness", subsample)

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `straightness`; nothing for a flow without trajectories."""
        if not subject.running:
            return {}
        (cost, direct), (change, direct_change) = _costs(subject, self.subsample)
        values, changes = 2 * (cost - direct), 2 * (change - direct_change)
        note = "integral of |v - (z - x)|^2, in unit time"
        measured = mean(
            values,
            changes,
            finer=2 * subject.finer,
            unit="squared units",
            better="lower",
            note=note,
        )
        return {"straightness": measured}


def resolution(subject: Subject) -> float:
    """Return the mean squared distance below which the judge's solver resolves nothing."""
    return subject.tolerance**2 * float(subject.x.double().square().sum(-1).mean())


def _optimum(subject: Subject) -> float | None:
    """Return the least transport cost, where it is known and large enough to divide by."""
    optimum = subject.data.transport_cost
    return optimum if optimum is not None and optimum > resolution(subject) / 2 else None


def _costs(subject: Subject, n: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return cost in unit time and straight-line cost, and their changes to the finer solve.

    The first two are of all test points (n,), their changes of the subsample (k,).
    """
    cost, direct = _of_trajectories(subject.x, subject.encoded)
    rows, fine = subject.again(n)
    fine_cost, fine_direct = _of_trajectories(subject.places(rows), latent(fine))
    return (cost, direct), (cost[rows] - fine_cost, direct[rows] - fine_direct)


def _of_trajectories(x: Tensor, encoded: Encoded) -> tuple[Tensor, Tensor]:
    action, elapsed = encoded.costs.double().unbind(-1)
    return action * elapsed, 0.5 * (x.double() - encoded.z.double()).square().sum(-1)
