"""Fitting a flow: the stages of an objective one after another, under one budget."""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from flowzoo.errors import Incompatible, UserError
from flowzoo.flow import Flow
from flowzoo.objective import Batch, Objective, Stage
from flowzoo.settings import Budget, Training
from flowzoo.training.batches import own_random_numbers, seed_of
from flowzoo.training.checkpoint import Folder
from flowzoo.training.fitting import Fit
from flowzoo.training.plan import Fitted, Plan
from flowzoo.training.progress import Progress
from flowzoo.training.subnormals import flushed_subnormals

__all__ = ["Fitted", "Progress", "fit"]

DEFAULTS = Training()
POSITIVE = (
    "batch_size",
    "clamp",
    "clip",
    "optimizer.lr",
    "patience",
    "restart_from_best",
    "schedule.every",
    "schedule.factor",
    "schedule.patience",
    "validate_rows",
)


def fit(
    flow: Flow,
    objective: Objective,
    train: Batch,
    validation: Batch | None = None,
    *,
    budget: Budget,
    training: Training = DEFAULTS,
    seed: int = 0,
    device: str | torch.device = "cpu",
    folder: Path | None = None,
    checkpoint_every: float = 60.0,
    observe: Callable[[Progress], None] | None = None,
) -> Fitted:
    """Fit a flow, in place.

    Every stage gets, of whatever is left of each limit of the budget, its share among the stages
    to come, and ends with its best (or last) weights; a stage for which nothing is left is passed
    over. Which weights are best is asked anew in every stage, since a later stage may pursue
    something else than the criterion.

    All random numbers follow from `seed` and the step; torch's global generators are seeded inside
    and left as they were. A fit that finds its checkpoint in `folder` goes on from there, and on
    the CPU ends with the bits that it would have ended with (a budget in seconds apart).

    A finished stage is never taken again. One that was interrupted makes its points and begins
    again, and finds the weights that the stage before left: it may depend on them, on the points,
    on torch's global random numbers, and on nothing that an earlier stage left elsewhere.

    Arguments:
        flow: The flow; it is moved to `device` and to the precision of the training.
        objective: What is minimised. All its stages are listed before the first one begins.
        train: Training points.
        validation: Points for validation, early stopping and the choice of the best weights. With
            the criterion `nll` they are not transformed by a stage's `points`.
        budget: When the fit ends.
        training: How it is done.
        seed: Seed of the batches and of all noise.
        device: Where it is done.
        folder: Where checkpoint and curve are kept; None keeps neither.
        checkpoint_every: Seconds between two checkpoints.
        observe: Told where the fit stands, every 20 steps or every second.

    Raises:
        UserError: The settings or the data cannot be used, or the folder holds another fit.
        Incompatible: The objective cannot train this flow, or the data have another width.
        Diverged: A loss, a weight or a validation is not finite, or a solver gave up; says at which
            step.
    """
    _check_settings(budget, training, validation)
    _check_data(flow, train, "training")
    if validation is not None:
        _check_data(flow, validation, "validation")
    device = torch.device(device)
    flow.to(device, getattr(torch, training.precision))
    stages = list(objective.stages(flow))
    for stage in stages:
        _check_stage(flow, stage)
    plan = Plan(
        flow, stages, train, validation, budget, training, seed, device, checkpoint_every, observe
    )
    kept = None if folder is None else Folder(Path(folder), _identity(plan))
    with own_random_numbers(device, seed_of(seed, "global")), flushed_subnormals():
        try:
            return Fit(plan, kept).run()
        finally:
            flow.eval()


def _identity(plan: Plan) -> dict[str, Any]:
    """Return what a checkpoint must agree in to be this fit's."""
    return {
        **_flat("budget", asdict(plan.budget)),
        **_flat("training", asdict(plan.training)),
        "seed": plan.seed,
        "stages": [stage.name for stage in plan.stages],
        "the checksum of the training data": _checksum(plan.train),
        "the checksum of the validation data": plan.validation and _checksum(plan.validation),
    }


def _flat(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, dict)
        found |= _flat(f"{prefix}.{name}", value) if nested else {f"{prefix}.{name}": value}
    return found


def _checksum(data: Batch) -> int:
    total = 0
    for entry in fields(data):
        values = getattr(data, entry.name)
        if isinstance(values, Tensor):
            total = zlib.crc32(values.detach().cpu().contiguous().numpy().data, total)
    return total


def _check_settings(budget: Budget, training: Training, validation: Batch | None) -> None:
    budget.limits()
    settings = _flat("training", asdict(training))
    for part, prefix in (
        (training, "training"),
        (training.optimizer, "training.optimizer"),
        (training.schedule, "training.schedule"),
    ):
        _check_names(part, prefix)
    for name in POSITIVE:
        value = settings[f"training.{name}"]
        if value is not None and not value > 0:
            raise UserError(f"training.{name} must be positive, got {value}")
    for name in ("validate_every", "schedule.warmup", "optimizer.weight_decay"):
        if not settings[f"training.{name}"] >= 0:
            raise UserError(
                f"training.{name} must not be negative, got {settings[f'training.{name}']}"
            )
    if training.ema is not None and not 0 < training.ema < 1:
        raise UserError(f"training.ema is a decay between 0 and 1, got {training.ema}")
    if validation is None or not training.validate_every:
        _check_needs_no_validation(training)


def _check_names(part: Any, prefix: str) -> None:
    for name, hint in get_type_hints(type(part)).items():
        value, allowed = getattr(part, name), get_args(hint)
        if get_origin(hint) is Literal and value not in allowed:
            close = difflib.get_close_matches(str(value), allowed, 1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"{prefix}.{name} is one of {', '.join(allowed)}, got {value}{meant}")


def _check_needs_no_validation(training: Training) -> None:
    for needs, name in (
        (training.schedule.name == "plateau", "schedule: plateau"),
        (training.patience is not None, "patience"),
        (training.restart_from_best is not None, "restart_from_best"),
    ):
        if needs:
            raise UserError(
                f"training.{name} needs validations: give validation data and validate_every"
            )


def _check_data(flow: Flow, data: Batch, role: str) -> None:
    if data.x.dim() != 2 or data.x.shape[0] == 0:
        raise UserError(
            f"the {role} data must have rows and columns, got shape {tuple(data.x.shape)}"
        )
    if data.x.shape[1] != flow.dim:
        raise Incompatible(
            f"the {role} data have {data.x.shape[1]} columns, but the flow has dimension {flow.dim}"
        )
    width = 0 if data.context is None else data.context.shape[-1]
    if flow.context_dim not in (0, width):
        raise Incompatible(
            f"the flow is conditioned on {flow.context_dim} columns of context, but the {role} "
            f"data bring {width}"
        )


def _check_stage(flow: Flow, stage: Stage) -> None:
    known = {id(p) for p in flow.parameters()}
    if any(id(p) not in known for p in stage.parameters):
        raise Incompatible(f"stage {stage.name} trains a parameter that is not the flow's")
    if not any(p.requires_grad for p in stage.parameters):
        raise Incompatible(f"stage {stage.name} has no parameter that can be trained")
    for name in ("share", "rate"):
        if not getattr(stage, name) > 0:
            said = f"stage {stage.name}: {name} must be positive, got {getattr(stage, name)}"
            raise Incompatible(said)
