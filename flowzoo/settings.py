"""How a flow is fitted, in numbers: what `registry.yaml` writes under `training` and `budget`.

Nothing here imports torch, so a plan can be checked in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from flowzoo.errors import UserError


@dataclass(frozen=True)
class Budget:
    """When a fit ends: the first limit that is reached, counted over all of its stages.

    Arguments:
        steps: Optimizer steps.
        seconds: Wall-clock seconds of training, validation included.
        samples: Training points seen, repetitions counted.
        nfe: Evaluations of the field, forward and backward.
    """

    steps: int | None = None
    seconds: float | None = None
    samples: int | None = None
    nfe: int | None = None

    def limits(self) -> dict[str, int | float]:
        """Return the limits that are set, by name.

        Raises:
            UserError: None is set, or one that is not positive.
        """
        given = {name: getattr(self, name) for name in ("steps", "samples", "nfe", "seconds")}
        found = {name: value for name, value in given.items() if value is not None}
        if not found:
            raise UserError(
                "the budget sets no limit: give steps, seconds, samples or nfe, as in "
                "budget: {steps: 2000}"
            )
        for name, value in found.items():
            if not value > 0:
                raise UserError(f"budget: {name} must be positive, got {value}")
        return found


@dataclass(frozen=True)
class Judge:
    """How the judge solves, whatever a flow was trained with.

    Arguments:
        tolerance: Relative and absolute tolerance of its solver; its error is estimated by a solve
            at a hundredth of it.

    Raises:
        UserError: The tolerance is not between 1e-10 and 1.
    """

    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if not 1e-10 <= self.tolerance <= 1:
            raise UserError(f"tolerance must lie in [1e-10, 1], got {self.tolerance}")


@dataclass(frozen=True)
class Optimizer:
    """Adam (Kingma & Ba 2015) or AdamW (Loshchilov & Hutter 2019).

    Arguments:
        name: `adam` adds the weight decay to the gradient, `adamw` decouples it.
        lr: Learning rate.
        betas: Decay rates of the two moments.
        weight_decay: Strength of the L2 pull towards zero.
    """

    name: Literal["adam", "adamw"] = "adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes.

    Arguments:
        name: `constant`; `step` multiplies by `factor` every `every` steps; `plateau` multiplies by
            `factor` after `patience` validations without improvement; `cosine` falls to zero over
            the stage's steps; without a budget in steps, over the used part of the budget.
        warmup: Steps of linear growth before any of them: step k has the rate lr (k + 1) / warmup.
        every: Steps between two drops of `step`.
        factor: What the rate is multiplied by at a drop.
        patience: Validations without improvement that `plateau` waits for.
        drops: After this many drops, `plateau` ends the stage at the next one; None never ends it.
    """

    name: Literal["constant", "step", "plateau", "cosine"] = "constant"
    warmup: int = 0
    every: int = 1000
    factor: float = 0.5
    patience: int = 10
    drops: int | None = None


@dataclass(frozen=True)
class Training:
    """Everything about the training loop that is not the flow and not the objective.

    Arguments:
        batch_size: Points in a training batch; the whole data when it is smaller.
        optimizer: Which optimizer, with its numbers.
        schedule: How its learning rate changes.
        clip: Largest Euclidean norm of the gradient; None does not clip.
        clamp: Box constraint: every parameter is kept in [-clamp, clamp] (OT-Flow); None has no
            box.
        ema: Decay of the moving average of the weights, which validation and the result then use;
            None keeps the raw weights.
        validate_every: Steps between two validations; 0 never validates.
        validate_rows: At most this many rows of the validation set.
        criterion: What validation measures: the negative log-likelihood, or the stage's own loss.
        patience: Validations without improvement that end a stage; None never does.
        keep: `best` returns the weights of the best validation, `last` the final ones.
        restart_from_best: Every so many steps the weights go back to the best ones so far, the
            optimizer's moments kept, as the published OT-Flow code does silently; None never does.
        precision: Floating-point type of weights and data.
    """

    batch_size: int = 512
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    clip: float | None = None
    clamp: float | None = None
    ema: float | None = None
    validate_every: int = 100
    validate_rows: int = 2000
    criterion: Literal["nll", "loss"] = "nll"
    patience: int | None = None
    keep: Literal["best", "last"] = "best"
    restart_from_best: int | None = None
    precision: Literal["float32", "float64"] = "float32"
