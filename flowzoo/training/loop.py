"""The steps of one stage: losses, gradients, weights, validations, and when to stop."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from flowzoo.errors import Diverged, UserError
from flowzoo.flow import Flow
from flowzoo.integrators import failures
from flowzoo.objective import Batch, Loss, Stage
from flowzoo.settings import Training
from flowzoo.training.batches import Batches, seed_of
from flowzoo.training.budget import Allotment, Spent
from flowzoo.training.losses import Losses, advice
from flowzoo.training.optimisers import Average, Rate, clamp, make_optimizer


@dataclass(frozen=True)
class Best:
    """The weights with the lowest validation so far.

    Arguments:
        value: What validation measured.
        step: The step of the fit after which it did.
        weights: The flow's state, averaged where the training averages.
    """

    value: float
    step: int
    weights: dict[str, Any]


class Validation:
    """What validation measures, with the same random numbers every time.

    Arguments:
        flow: The flow, with its own numerics.
        stage: The stage, whose loss is measured if `nll` is not.
        data: Raw points for the negative log-likelihood, the stage's points for its loss.
        nll: Whether the negative log-likelihood is measured, in nats per point.
        seed: Seed of trace estimators and losses.
    """

    def __init__(self, flow: Flow, stage: Stage, data: Batch, nll: bool, seed: int) -> None:
        self.flow, self.stage, self.data, self.nll = flow, stage, data, nll
        self.seed, self.noise = seed, torch.Generator(data.x.device)

    @property
    def criterion(self) -> str:
        """What is measured, in a word."""
        return "nll" if self.nll else "loss"

    @torch.no_grad()
    def __call__(self) -> float:
        """Return the criterion at the present weights."""
        self.noise.manual_seed(self.seed)
        self.flow.eval()
        try:
            if not self.nll:
                return float(self.stage.loss(self.data, self.noise).total)
            return float(-self.flow.log_prob(self.data.x, self.data.context, self.noise).mean())
        finally:
            self.flow.train()


class Loop:
    """One stage in progress.

    Arguments:
        flow: The flow, as the stage's `begin` left it.
        stage: The stage.
        data: The stage's points.
        validation: What decides which weights are best, or None.
        training: The settings.
        allotment: What the stage may spend.
        spent: The fit's counters, which the loop moves on.
        seed: Seed of the stage.
    """

    def __init__(
        self,
        flow: Flow,
        stage: Stage,
        data: Batch,
        validation: Validation | None,
        training: Training,
        allotment: Allotment,
        spent: Spent,
        seed: int,
    ) -> None:
        self.flow, self.stage, self.training, self.seed = flow, stage, training, seed
        self.allotment, self.spent, self.validation = allotment, spent, validation
        self.parameters = [p for p in stage.parameters if p.requires_grad]
        self.optimizer = make_optimizer(self.parameters, training.optimizer)
        self.lr = training.optimizer.lr * stage.rate
        self.rate = Rate(training.schedule, self.lr, allotment.steps)
        if training.clamp is not None:
            clamp(self.parameters, training.clamp)
        self.average = None if training.ema is None else Average(self.parameters, training.ema)
        self.batches = Batches(data, training.batch_size, seed)
        self.noise = torch.Generator(data.x.device)
        self.losses = Losses()
        self.step = self.stale = 0
        self.measured: float | None = None
        self.best: Best | None = None
        self.ended: str | None = None

    def advance(self) -> None:
        """Take one step."""
        batch = self.batches.at(self.step)
        self.lr = self.rate.at(self.step, self.allotment.fraction(self.spent))
        self.noise.manual_seed(seed_of(self.seed, "noise", self.step))
        self.optimizer.zero_grad(set_to_none=True)
        with self._diverging(self.spent.steps + 1), failures():
            loss = self.stage.loss(batch, self.noise)
            loss.total.backward()
        self._update()
        self.step += 1
        self._count(loss, batch.x.shape[0])
        self.losses.add(loss, self.spent.steps, self.lr)

    def _update(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        if self.training.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.training.clip, foreach=True)
        self.optimizer.step()
        if self.training.clamp is not None:
            clamp(self.parameters, self.training.clamp)
        if self.average is not None:
            self.average.update()

    def _count(self, loss: Loss, rows: int) -> None:
        self.spent.steps += 1
        self.spent.samples += rows
        self.spent.nfe_forward += sum(solve.forward for solve in loss.nfe)
        self.spent.nfe_backward += sum(solve.backward for solve in loss.nfe)
        if set(self.allotment.end) == {"nfe"} and self.spent.nfe == self.allotment.start["nfe"]:
            raise UserError(
                f"stage {self.stage.name} evaluates no field, so a budget in nfe alone never ends; "
                "give steps too"
            )

    def due(self) -> bool:
        """Return whether this step is followed by a validation: the last one always is."""
        if self.validation is None:
            return False
        return self.ended is not None or self.step % self.training.validate_every == 0

    def validate(self) -> None:
        """Measure the criterion, keep the weights if they are the best, and see whether to end."""
        assert self.validation is not None
        self.check()
        with self.average.in_place() if self.average else nullcontext():
            with self._diverging(self.spent.steps):
                self.measured = self.validation()
            if not math.isfinite(self.measured):
                raise Diverged(
                    f"the validation {self.validation.criterion} became {self.measured} at step "
                    f"{self.spent.steps} {advice(self.lr)}"
                )
            improved = self.best is None or self.measured < self.best.value
            if improved:
                self.best = Best(self.measured, self.spent.steps, weights(self.flow))
        self.stale = 0 if improved else self.stale + 1
        if self.rate.validated(improved):
            self.ended = self.ended or "plateau"
        if self.training.patience is not None and self.stale >= self.training.patience:
            self.ended = self.ended or "patience"

    def restart(self) -> None:
        """Go back to the best weights where the settings say so; the optimizer's moments stay."""
        every = self.training.restart_from_best
        if every is None or self.best is None or self.step % every:
            return
        self.flow.load_state_dict(self.best.weights)
        if self.average is not None:
            self.average.reset()

    def finish(self) -> None:
        """Leave the weights that the stage ends with in the flow."""
        self.check()
        if self.training.keep == "best" and self.best is not None:
            self.flow.load_state_dict(self.best.weights)
        elif self.average is not None:
            self.average.store()
        self.optimizer.zero_grad(set_to_none=True)

    def check(self) -> None:
        """Raise Diverged where a loss or a weight is not finite; this waits for the device."""
        self.losses.fetch()
        finite = torch.stack([p.detach().isfinite().all() for p in self.parameters]).all()
        if not bool(finite):
            raise Diverged(
                f"the weights are no longer finite after step {self.spent.steps} {advice(self.lr)}"
            )

    @contextmanager
    def _diverging(self, step: int) -> Iterator[None]:
        """Say at which step a solver gave up, unless an earlier step explains it."""
        try:
            yield
        except Diverged as error:
            self.check()
            raise Diverged(f"at step {step} (lr {self.lr:g}): {error}") from error
        except Exception:  # say, a decomposition that stumbled over a NaN not yet fetched
            self.check()
            raise

    def state(self) -> dict[str, Any]:
        """Return everything but the flow's weights that the next step depends on."""
        return {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "rate": self.rate.state(),
            "average": self.average.state() if self.average else None,
            "losses": self.losses.state(),
            "measured": self.measured,
            "stale": self.stale,
            "best": None if self.best is None else dict(vars(self.best)),
            "ended": self.ended,
            "allotment": asdict(self.allotment),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.step, self.stale, self.ended = state["step"], state["stale"], state["ended"]
        self.measured = state["measured"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.rate.load(state["rate"])
        self.losses.load(state["losses"])
        if self.average is not None:
            self.average.load(state["average"])
        self.best = None if state["best"] is None else Best(**state["best"])


def weights(flow: Flow) -> dict[str, Any]:
    """Return a copy of the flow's parameters and buffers."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in flow.state_dict().items()
    }
