"""What a fit is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flowzoo.flow import Flow
from flowzoo.objective import Batch, Stage
from flowzoo.settings import Budget, Training
from flowzoo.training.progress import Progress


@dataclass(frozen=True)
class Fitted:
    """A fitted flow, and what it cost.

    Arguments:
        flow: The flow that was given, with its new weights, in evaluation mode.
        steps: Steps taken, over all stages.
        samples: Training points seen, repetitions counted.
        seconds: Wall-clock seconds of training.
        nfe_forward: Evaluations of the field in training, forward; validations are not counted.
        nfe_backward: Likewise, backward.
        stopped: What ended the last stage: the limit of the budget (`steps`, `seconds`, `samples`,
            `nfe`), `patience` or `plateau`.
        best_step: The step with the last stage's best validation, None without validation.
        best_validation: What it measured.
        curve: One row every 20 steps and at every validation: step, stage, seconds, lr,
            nfe_forward, nfe_backward, loss and terms averaged since the row before, validation,
            and its criterion, `nll` or `loss`.
        stages: One row for each stage that was taken: stage, what it took of steps, samples,
            seconds, nfe_forward and nfe_backward, stopped, best_step, best_validation, and the
            facts that it left.
    """

    flow: Flow
    steps: int
    samples: int
    seconds: float
    nfe_forward: int
    nfe_backward: int
    stopped: str
    best_step: int | None
    best_validation: float | None
    curve: list[dict[str, Any]]
    stages: list[dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """What is fitted to what, and how.

    Arguments:
        flow: The flow.
        stages: The objective's stages.
        train: Training points.
        validation: Validation points, or None.
        budget: When the fit ends.
        training: How it is done.
        seed: Seed of everything random.
        device: Where it is done.
        checkpoint_every: Seconds between two checkpoints.
        observe: Told where the fit stands.
    """

    flow: Flow
    stages: Sequence[Stage]
    train: Batch
    validation: Batch | None
    budget: Budget
    training: Training
    seed: int
    device: torch.device
    checkpoint_every: float
    observe: Callable[[Progress], None] | None
