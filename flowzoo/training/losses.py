"""Losses wait on the device until they are fetched, every few steps: no step waits for them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flowzoo.errors import Diverged
from flowzoo.objective import Loss


class Losses:
    """The losses of the steps since they were last averaged.

    `fetched` holds those that have left the device, as (total, terms).
    """

    def __init__(self) -> None:
        self.fetched: list[tuple[float, dict[str, float]]] = []
        self._waiting: list[Tensor] = []
        self._steps: list[tuple[int, float]] = []
        self._names: tuple[str, ...] = ()

    def add(self, loss: Loss, step: int, lr: float) -> None:
        """Keep a step's loss; `step` counts from 1."""
        names = tuple(loss.terms)
        if names != self._names:
            self.fetch()
            self._names = names
        self._waiting.append(torch.stack([loss.total.detach(), *loss.terms.values()]))
        self._steps.append((step, lr))

    def fetch(self) -> None:
        """Bring what waits to the host; this waits for the device.

        Raises:
            Diverged: A loss is not finite; names the first such step and its term.
        """
        if not self._waiting:
            return
        rows = torch.stack(self._waiting).tolist()
        steps, self._waiting, self._steps = self._steps, [], []
        for (step, lr), (total, *values) in zip(steps, rows, strict=True):
            terms = dict(zip(self._names, values, strict=True))
            for name, value in (*terms.items(), ("total", total)):
                if not math.isfinite(value):
                    what = "loss" if name == "total" else f"loss term {name}"
                    raise Diverged(f"the {what} became {value} at step {step} {advice(lr)}")
            self.fetched.append((total, terms))

    def mean(self) -> tuple[float, dict[str, float]]:
        """Return the averages of what was fetched: the total and, by name, the terms."""
        totals, terms = zip(*self.fetched, strict=True)
        names = dict.fromkeys(name for row in terms for name in row)
        return _mean(totals), {
            name: _mean([row[name] for row in terms if name in row]) for name in names
        }

    def clear(self) -> None:
        """Begin a new average."""
        self.fetched = []

    def state(self) -> list[Any]:
        """Return what was fetched, after fetching the rest."""
        self.fetch()
        return [[total, terms] for total, terms in self.fetched]

    def load(self, state: list[Any]) -> None:
        """Go on from a saved state."""
        self.fetched = [(total, terms) for total, terms in state]


def advice(lr: float) -> str:
    """Return the end of a sentence about a divergence."""
    return f"(lr {lr:g}); lower the learning rate or clip the gradient"


def _mean(values: Any) -> float:
    return math.fsum(values) / len(values)
