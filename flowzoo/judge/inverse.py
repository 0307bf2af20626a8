"""How well decode undoes encode."""

from __future__ import annotations

import torch
from torch import Tensor

from flowzoo.judge.measure import Measure, Metric, at_least_two, mean
from flowzoo.judge.subject import OWN, Subject, latent


class InverseError(Metric):
    """Mean distance |decode(encode(x)) - x| with the flow's own numerics, in units.

    It has both solves in it, there and back. The part `largest` is the largest distance; `judge`
    and `judge_largest` are mean and largest distance with the judge's numerics, on the same points.

    Arguments:
        subsample: Points to send there and back.

    Raises:
        UserError: The subsample is smaller than 2.
    """

    def __init__(self, subsample: int = OWN) -> None:
        self.subsample = at_least_two("inverse-error", subsample)

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `inverse-error`; nothing for a flow that sends no point to noise."""
        if not subject.flow.latent:
            return {}
        rows, own = subject.own(self.subsample)
        context = None if subject.context is None else subject.context[rows]
        with torch.no_grad():
            back = subject.flow.decode(latent(own).z, context)
        distance = _distance(subject, rows, back)
        judge = _distance(subject, *subject.back(self.subsample))
        parts = {
            "largest": float(distance.max()),
            "judge": float(judge.mean()),
            "judge_largest": float(judge.max()),
        }
        note = "own numerics, there and back"
        found = mean(distance, unit="units", better="lower", parts=parts, note=note)
        return {"inverse-error": found}


def _distance(subject: Subject, rows: Tensor, back: Tensor) -> Tensor:
    return (back.double() - subject.x[rows].double()).norm(dim=-1)
