"""What changes the weights: the optimizer, its rate, the box around them, their average."""

# torch._foreach_* is one call for all tensors; torch's own optimizers are made of it.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flowzoo.settings import Optimizer, Schedule


def make_optimizer(
    parameters: Sequence[nn.Parameter], settings: Optimizer
) -> torch.optim.Adam | torch.optim.AdamW:
    """Return the optimizer, in torch's fused form where there is one: a step is then one kernel."""
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return kind(
        parameters,
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=fused or None,
    )


class Rate:
    """The learning rate of a stage.

    Warm-up takes the steps k = 0, 1, ... < warmup at lr (k + 1) / warmup. After it, with
    j = k - warmup: `step` is lr factor^floor(j / every); `cosine` is lr (1 + cos(pi j / J)) / 2
    with J the steps that follow the warm-up; `plateau` is lr factor^drops. Where the budget does
    not limit the steps, `cosine` takes the used fraction of the stage's budget in place of j / J.

    Arguments:
        schedule: The settings.
        lr: The rate before any change.
        steps: Steps of the stage, None where they are not limited.
    """

    def __init__(self, schedule: Schedule, lr: float, steps: int | None) -> None:
        self.schedule, self.lr, self.steps = schedule, lr, steps
        self.stale = self.drops = 0

    def at(self, step: int, fraction: float) -> float:
        """Return the rate of a step of the stage, of whose budget a fraction is used."""
        s, after = self.schedule, step - self.schedule.warmup
        if after < 0:
            return self.lr * (step + 1) / s.warmup
        if s.name == "step":
            return self.lr * s.factor ** (after // s.every)
        if s.name == "plateau":
            return self.lr * s.factor**self.drops
        if s.name == "cosine":
            if self.steps is not None:
                fraction = after / max(1, self.steps - s.warmup)
            return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))
        return self.lr

    def validated(self, improved: bool) -> bool:
        """Take note of a validation; return True where `plateau` ends the stage."""
        if self.schedule.name != "plateau":
            return False
        self.stale = 0 if improved else self.stale + 1
        if self.stale < self.schedule.patience:
            return False
        if self.drops == self.schedule.drops:
            return True
        self.stale, self.drops = 0, self.drops + 1
        return False

    def state(self) -> dict[str, int]:
        """Return what changes from step to step."""
        return {"stale": self.stale, "drops": self.drops}

    def load(self, state: dict[str, int]) -> None:
        """Go on from a saved state."""
        self.stale, self.drops = state["stale"], state["drops"]


def clamp(parameters: Sequence[Tensor], bound: float) -> None:
    """Move every parameter, in place, to the nearest number in [-bound, bound]."""
    values = [p.detach() for p in parameters]
    torch._foreach_clamp_min_(values, -bound)
    torch._foreach_clamp_max_(values, bound)


class Average:
    """Exponential moving average of parameters: a <- d_k a + (1 - d_k) p after step k = 0, 1, ...

    d_k = min(decay, (1 + k) / (10 + k)), so that the first weights are soon forgotten.

    Arguments:
        parameters: What is averaged.
        decay: The decay d that d_k tends to.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.parameters = [p.detach() for p in parameters]
        self.values = [p.clone() for p in self.parameters]

    def update(self) -> None:
        """Take the parameters' values in."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.values, self.parameters, 1 - decay)
        self.updates += 1

    def store(self) -> None:
        """Write the averages into the parameters."""
        torch._foreach_copy_(self.parameters, self.values)

    def reset(self) -> None:
        """Begin again from the parameters' values; the decay stays."""
        torch._foreach_copy_(self.values, self.parameters)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averages in the parameters' place, inside."""
        kept = [p.clone() for p in self.parameters]
        self.store()
        try:
            yield
        finally:
            torch._foreach_copy_(self.parameters, kept)

    def state(self) -> dict[str, Any]:
        """Return averages and their number."""
        return {"values": self.values, "updates": self.updates}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        torch._foreach_copy_(self.values, state["values"])
        self.updates = state["updates"]
