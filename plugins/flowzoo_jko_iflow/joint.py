"""Fine-tuning: a last stage in which all blocks of a chain are trained together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowzoo.errors import UserError
from flowzoo.flow import log_normal
from flowzoo.integrators import Evaluations
from flowzoo.objective import Batch, Costs, Left, Loss, Stage
from flowzoo_jko_iflow.growing import Growing
from flowzoo_jko_iflow.push import Moved, Pushed, push


@dataclass(frozen=True)
class FineTuning:
    """A last stage that trains all blocks together, by the likelihood of the whole chain.

    Blocks trained one after another are never revisited; this is the remedy. With validation it
    ends no worse than it begins. Fixed grids keep only their steps and recompute the rest, so the
    memory is that of one step and the places between.

    Arguments:
        share: Its part of the budget, in (0, 1).
        movement: Weight of the blocks' movement costs, sum_k E|x_k - x_{k-1}|^2 / (2 h_k).
        rate: A factor on the learning rate: blocks that are trained, and move all at once, want a
            much smaller one.

    Raises:
        UserError: A number is out of its range.
    """

    share: float = 0.25
    movement: float = 0.0
    rate: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"fine_tune.share must lie in (0, 1), got {self.share}")
        if not self.movement >= 0:
            raise UserError(f"fine_tune.movement must not be negative, got {self.movement}")
        if not self.rate > 0:
            raise UserError(f"fine_tune.rate must be positive, got {self.rate}")


def joint_stage(chain: Growing, tuning: FineTuning, costs: Costs, chunk: int, stages: int) -> Stage:
    """Return the stage, which ends with what the chain and its blocks do then.

    Arguments:
        chain: The chain.
        tuning: How it is tuned.
        costs: Further costs of each block.
        chunk: How many points are pushed at once.
        stages: How many stages of share 1 come before.
    """
    return Stage(
        "all blocks",
        list(chain.parameters()),
        lambda batch, noise: joint_loss(chain, tuning, costs, batch, noise),
        end=lambda train, held: _measured(chain, train, held, chunk),
        share=stages * tuning.share / (1 - tuning.share),
        rate=tuning.rate,
        guarded=True,
    )


def joint_loss(
    chain: Growing,
    tuning: FineTuning,
    costs: Costs,
    batch: Batch,
    generator: torch.Generator | None = None,
) -> Loss:
    """Return the mean negative log-likelihood of the whole chain, with the blocks' costs."""
    x, ladj = batch.x, batch.x.new_zeros(len(batch.x))
    extra = movement = batch.x.new_zeros(())
    nfe: tuple[Evaluations, ...] = ()
    paid: dict[str, Tensor] = {}
    for block, h in zip(chain.recomputing().flows(), chain.step_sizes, strict=False):
        context = batch.context if block.context_dim else None
        step = costs.encode(block, x, context, generator)
        named: dict[str, Tensor] = {}
        extra = costs.added(extra, named, step.costs, x, step.z)
        paid = {name: paid.get(name, 0) + value for name, value in named.items()}
        movement = movement + (step.z - x).square().sum(-1).mean() / (2 * h)
        x, ladj, nfe = step.z, ladj + step.ladj, (*nfe, *step.nfe)
    nll = -(log_normal(x) + ladj).mean()
    terms = {"nll": nll.detach(), "movement": movement.detach(), **paid}
    return Loss(nll + extra + tuning.movement * movement, terms, nfe)


def _measured(chain: Growing, train: Batch, held: Batch | None, chunk: int) -> Left:
    on_train = _through(chain, train, chunk)
    for k, moved in enumerate(on_train):
        chain.movements[k] = moved.movement
    on_held = on_train if held is None else _through(chain, held, chunk)
    found: dict[str, Any] = {"nll": on_held[-1].nll, "train_nll": on_train[-1].nll}
    return Left(facts=found)


def _through(chain: Growing, data: Batch, chunk: int) -> list[Moved]:
    points = Pushed.of(data)
    return [push(block, points, chunk, seed=k) for k, block in enumerate(chain.flows())]
