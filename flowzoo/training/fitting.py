"""A fit in progress: its stages, its counters, its curve and its checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch

from flowzoo.flow import Flow
from flowzoo.objective import Batch, Left, Stage, nothing, unchanged
from flowzoo.training.batches import (
    each,
    own_random_numbers,
    random_state,
    seed_of,
    set_random_state,
    thinned,
)
from flowzoo.training.budget import Allotment, Spent, allot
from flowzoo.training.checkpoint import Folder
from flowzoo.training.loop import Loop, Validation, weights
from flowzoo.training.plan import Fitted, Plan
from flowzoo.training.progress import Progress

ROW_EVERY = 20  # steps between two rows of the curve, and at most between two fetches of losses
BEAT = 1.0  # seconds after which losses are fetched and reported at the latest


class Fit:
    """Takes the stages one after another, from the beginning or from a checkpoint.

    Arguments:
        plan: What is fitted to what, and how.
        folder: Where checkpoint and curve are kept, or None.
    """

    def __init__(self, plan: Plan, folder: Folder | None) -> None:
        training = plan.training
        self.plan, self.flow, self.folder = plan, plan.flow, folder
        self.train, self.validation = self._placed(plan.train), None
        if plan.validation is not None and training.validate_every:
            self.validation = self._placed(thinned(plan.validation, training.validate_rows))
        self.budget = Allotment(dict.fromkeys(plan.budget.limits(), 0), plan.budget.limits())
        self.spent = Spent()
        self.curve: list[dict[str, Any]] = []
        self.stages: list[dict[str, Any]] = []
        self.index = 0
        self.entry: dict[str, Any] | None = None  # the weights that the stage found
        self.held: Batch | None = None  # the stage's validation points
        self.left, self.before = Left(), Spent()
        self.result: dict[str, Any] = {"stopped": "", "best_step": None, "best_validation": None}
        self.started = self.saved_at = self.reported_at = self.written_at = time.monotonic()

    def _placed(self, data: Batch) -> Batch:
        dtype = getattr(torch, self.plan.training.precision)
        return each(data, lambda values: values.to(self.plan.device, dtype))

    def run(self) -> Fitted:
        """Fit, and return what came of it."""
        saved = self.folder.load(self.flow.state_dict()) if self.folder else None
        if saved:
            self.index, self.curve, self.result = saved["index"], saved["curve"], saved["result"]
            self.stages, self.spent = saved["stages"], Spent(**saved["spent"])
            self.started -= self.spent.seconds
            self.flow.load_state_dict(saved["weights"])
            set_random_state(saved["random"], self.plan.device)
        if self.folder:
            self.folder.write_curve(self.curve)
        while self.index < len(self.plan.stages):
            self._stage(self.plan.stages[self.index], saved if saved and saved["loop"] else None)
            self.index, saved = self.index + 1, None
            if self.folder:  # a finished stage is never taken again
                self._save(None)
        found = {"curve": self.curve, "stages": self.stages, **self.result}
        return Fitted(flow=self.flow, **asdict(self.spent), **found)

    def _stage(self, stage: Stage, saved: dict[str, Any] | None) -> None:
        """Take one stage, from its beginning or from where it was saved."""
        if saved:
            allotment = Allotment(**saved["loop"]["allotment"])
            self.flow.load_state_dict(saved["entry"] or saved["weights"])
            before = Spent(**saved["before"])
        else:
            if not stage.needed():
                return
            share = stage.share / sum(s.share for s in self.plan.stages[self.index :])
            allotment = allot(self.plan.budget, self.spent, share)
            if reached := allotment.reached(self.spent):
                self.result["stopped"] = reached
                return
            self._clock()
            before = replace(self.spent)
        self.before = before
        with _only(self.flow, stage):
            loop = self._begin(stage, allotment)
            if saved:  # after `begin`, which may have changed weights
                self.flow.load_state_dict(saved["weights"])
                loop.load(saved["loop"])
                set_random_state(saved["random"], self.plan.device)
            elif stage.guarded and loop.validation is not None:
                loop.validate()
            stopped = self._steps(loop)
            loop.finish()
            best = (loop.best.step, loop.best.value) if loop.best else (None, None)
            self.result = {"stopped": stopped, "best_step": best[0], "best_validation": best[1]}
            self._end(stage, loop)

    def _begin(self, stage: Stage, allotment: Allotment) -> Loop:
        """Begin a stage; a resumed one begins again.

        It finds the weights of its entry and seeded global generators, so it gives the same again;
        the entry's weights are part of the checkpoint.
        """
        plan, seed = self.plan, seed_of(self.plan.seed, "stage", self.index)
        changes = stage.begin is not nothing or stage.points is not unchanged
        self.entry = weights(self.flow) if changes else None
        self.flow.eval()
        validation = None
        if self.validation is not None:
            self.held = self._points(stage, self.left.validation, self.validation, seed)
            nll = (stage.criterion or plan.training.criterion) == "nll"
            points = self.validation if nll else self.held
            validation = Validation(self.flow, stage, points, nll, seed_of(seed, "measure"))
        data = self._points(stage, self.left.train, self.train, seed)
        self.left = Left()
        with own_random_numbers(plan.device, seed_of(seed, "begin")), torch.no_grad():
            stage.begin(data)
        self.flow.train()
        return Loop(self.flow, stage, data, validation, plan.training, allotment, self.spent, seed)

    def _points(self, stage: Stage, left: Batch | None, raw: Batch, seed: int) -> Batch:
        """Return a stage's points: those that the stage before left, or its own of raw ones."""
        if left is not None:
            return left
        role = "train" if raw is self.train else "validation"
        with own_random_numbers(self.plan.device, seed_of(seed, role)), torch.no_grad():
            return stage.points(raw)

    def _end(self, stage: Stage, loop: Loop) -> None:
        """End a stage: note what it took and what it found, and keep what it left."""
        if stage.end is not None:
            self.flow.eval()
            seed = seed_of(loop.seed, "end")
            with own_random_numbers(self.plan.device, seed), torch.no_grad():
                self.left = stage.end(loop.batches.data, self.held)
            self.flow.train()
        self._clock()
        took = {name: n - getattr(self.before, name) for name, n in asdict(self.spent).items()}
        self.stages.append({"stage": stage.name, **took, **self.result, **self.left.facts})

    def _steps(self, loop: Loop) -> str:
        """Take the stage's steps; return what ended it."""
        while loop.ended is None:
            loop.advance()
            now = self._clock()
            loop.ended = loop.allotment.reached(self.spent)
            due = loop.due()
            if due:
                loop.validate()
            loop.restart()
            if due or loop.ended or self.spent.steps % ROW_EVERY == 0:
                self._row(loop, loop.measured if due else None)
            elif now - self.reported_at > BEAT:
                self._report(loop)
            if self.folder and now - self.saved_at >= self.plan.checkpoint_every:
                self._save(loop)
        return loop.ended

    def _clock(self) -> float:
        now = time.monotonic()
        self.spent.seconds = now - self.started
        return now

    def _report(self, loop: Loop) -> None:
        loop.losses.fetch()
        self.reported_at = self._clock()
        if self.plan.observe is None:
            return
        self.plan.observe(
            Progress(
                stage=loop.stage.name,
                stage_index=self.index,
                step=self.spent.steps,
                fraction=self.budget.fraction(self.spent),
                seconds=self.spent.seconds,
                nfe_forward=self.spent.nfe_forward,
                nfe_backward=self.spent.nfe_backward,
                terms=loop.losses.mean()[1],
                validation=loop.measured,
                lr=loop.lr,
            )
        )

    def _row(self, loop: Loop, validation: float | None) -> None:
        """Close a row of the curve."""
        self._report(loop)
        loss, terms = loop.losses.mean()
        loop.losses.clear()
        self.curve.append(
            {
                "step": self.spent.steps,
                "stage": loop.stage.name,
                "seconds": self.spent.seconds,
                "nfe_forward": self.spent.nfe_forward,
                "nfe_backward": self.spent.nfe_backward,
                "lr": loop.lr,
                "loss": loss,
                "terms": terms,
                "validation": validation,
                "criterion": loop.validation and loop.validation.criterion,
            }
        )
        if self.folder and self.reported_at - self.written_at > BEAT:
            self.folder.write_curve(self.curve)
            self.written_at = self.reported_at

    def _save(self, loop: Loop | None) -> None:
        """Write a checkpoint; without a loop, that of a finished fit."""
        assert self.folder is not None
        if loop is not None:
            loop.check()
        self.folder.save(
            {
                "index": self.index,
                "weights": self.flow.state_dict(),
                "entry": self.entry if loop else None,
                "before": asdict(self.before),
                "stages": self.stages,
                "loop": loop and loop.state(),
                "random": random_state(self.plan.device),
                "spent": asdict(self.spent),
                "curve": self.curve,
                "result": self.result,
            }
        )
        self.saved_at = time.monotonic()


@contextmanager
def _only(flow: Flow, stage: Stage) -> Iterator[None]:
    """Let gradients be taken of the stage's parameters alone."""
    mine = {id(p) for p in stage.parameters}
    others = [p for p in flow.parameters() if p.requires_grad and id(p) not in mine]
    for p in others:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in others:
            p.requires_grad_(True)
