"""Metrics that break one promise each, and a right one from which they differ by that alone."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from flowzoo.errors import UserError
from flowzoo.integrators import RK1
from flowzoo.judge import Measure, Metric, mean


class Right(Metric):
    """The mean negative log-likelihood by the judge, as `nll`."""

    def measure(self, subject):
        found = mean(self.values(subject), unit="nats", better="lower", note="by the judge")
        return {"nll": self.change(found)}

    def values(self, subject):
        return -subject.log_prob

    def change(self, measure):
        return measure


class Own(Metric):
    """A distance of one's own, `mean-distance`, with its ideal."""

    ideals: ClassVar[dict[str, float]] = {"mean-distance": 0.0}

    def measure(self, subject):
        distance = (subject.encoded.z.double().mean(0)).norm()
        error = 3 * (subject.x.shape[1] / len(subject.x)) ** 0.5
        note = "distance of the mean of z from the origin"
        return {"mean-distance": Measure(float(distance), error, "units", "lower", note=note)}


class WrongIdeal(Own):
    """The distance `mean-distance`, with an ideal that it does not reach."""

    ideals: ClassVar[dict[str, float]] = {"mean-distance": 1.5}


class Undefined(Right):
    """Infinite error bars of `nll`."""

    def change(self, measure):
        return replace(measure, error=float("inf"))


class Nameless(Metric):
    """A number that its docstring does not name."""

    def measure(self, subject):
        return {"secret": Measure(1.0, 0.0, note="a constant")}


class Camel(Metric):
    """A name `MyNumber` that no table column has."""

    def measure(self, subject):
        return {"MyNumber": Measure(1.0, 0.0, note="a constant")}


class Tensorial(Right):
    """A tensor for the value of `nll`."""

    def change(self, measure):
        return replace(measure, value=torch.tensor(measure.value))


class Negative(Right):
    """An error of `nll` below zero."""

    def change(self, measure):
        return replace(measure, error=None if measure.error is None else -measure.error)


class Upwards(Right):
    """`nll`, the higher the better."""

    def change(self, measure):
        return replace(measure, better="higher")


class Indifferent(Metric):
    """A `constant` for every flow, which is to be low."""

    def measure(self, subject):
        return {"constant": Measure(1.0, 0.1, "", "lower", note="a constant")}


class Described(Metric):
    """A `constant` for every flow, without a direction."""

    def measure(self, subject):
        return {"constant": Measure(1.0, 0.1, "", None, note="a constant")}


class Careless(Right):
    """`nll` of a random half of the points, chosen by the global generator."""

    def values(self, subject):
        n = len(subject.x)
        return super().values(subject)[torch.randperm(n)[: (n + 1) // 2]]


class Head(Right):
    """`nll` of the first twelve test points."""

    def values(self, subject):
        return super().values(subject)[:12]


class Trains(Right):
    """`nll`, leaving the flow in training mode."""

    def values(self, subject):
        subject.flow.train()
        return super().values(subject)


class Solves(Right):
    """`nll`, leaving the flow with another solver."""

    def values(self, subject):
        found = super().values(subject)
        subject.flow.integrator = RK1(2)
        return found


class Rounds(Right):
    """`nll`, with weights changed in place."""

    def values(self, subject):
        found = super().values(subject)
        with torch.no_grad():
            for weight in (*subject.flow.parameters(), *subject.flow.buffers()):
                weight.mul_(1 + 1e-6)
        return found


class Centres(Right):
    """`nll`, with test points changed in place."""

    def values(self, subject):
        found = super().values(subject)
        subject.data.test.sub_(1e-3)
        return found


class Optimist(Right):
    """`nll`, half a nat too low."""

    def change(self, measure):
        return replace(measure, value=measure.value - 0.5)


class Blind(Right):
    """`nll` by the flow itself, without its context."""

    def values(self, subject):
        with torch.no_grad():
            return -subject.flow.log_prob(subject.x)


class Spread(Right):
    """`nll`, with an error that a single point does not have."""

    def values(self, subject):
        found = super().values(subject)
        assert found.var() > 0
        return found


class Refuses(Right):
    """`nll` of three points or more, rightly refused below."""

    def values(self, subject):
        if len(subject.x) < 3:
            raise UserError(f"refuses needs at least 3 test points, got {len(subject.x)}")
        return super().values(subject)


class Silent(Metric):
    """Measures nothing of anything."""

    def measure(self, subject):
        return {}
