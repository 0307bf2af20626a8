"""What is timed of OT-Flow: three jobs at published sizes, done by either side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from machine import Job, Machine
from published_ot_flow import PublishedOTFlow
from torch import Tensor

from flowzoo.continuous import Continuous
from flowzoo.field import Gradient
from flowzoo.integrators import RK4
from flowzoo.objective import Batch, Likelihood
from flowzoo.regularizers import HJB, Transport
from flowzoo_ot_flow.potential import ResNetPotential

JOBS = ("training", "evaluation", "generation")


@dataclass(frozen=True)
class Case:
    """A published setting.

    Arguments:
        dim: Dimension d.
        width: Width m; there is one hidden layer.
        batches: Rows of a step, one measurement each; fewer than published where a step would take
            minutes.
        train_steps: Runge-Kutta steps in training.
        test_steps: Runge-Kutta steps in validation.
        likelihood: a1.
        hjb: a2.
    """

    dim: int
    width: int
    batches: tuple[int, ...]
    train_steps: int
    test_steps: int
    likelihood: float
    hjb: float

    def operations(self, job: str, rows: int) -> int:
        """Return the operations that a job needs, those of matrix products alone."""
        d, m, rank = self.dim, self.width, min(10, self.dim + 1)
        gradient = 4 * m * (d + 1) + 4 * m**2 + 4 * rank * (d + 1)
        whole = gradient + 2 * m**2 * min(d, m)
        each, steps = {
            "training": (3 * whole, self.train_steps),
            "evaluation": (whole, self.test_steps),
            "generation": (gradient, self.test_steps),
        }[job]
        return 4 * steps * rows * each


CASES = {
    "toy": Case(2, 32, (4096,), 8, 8, 30, 1),
    "miniboone": Case(43, 256, (400, 2000), 6, 10, 100, 15),
    "bsds300": Case(63, 512, (24,), 14, 30, 2000, 800),
}


class Worker(ABC):
    """One side, with weights and points, ready to do the jobs.

    Arguments:
        potential: What has the weights.
        case: The setting.
        points: Data, or the noise of a generation, (n, d).
    """

    def __init__(self, potential: ResNetPotential, case: Case, points: Tensor) -> None:
        self.potential, self.case, self.points = potential, case, points

    @abstractmethod
    def objective(self) -> Tensor:
        """Return L + a1 C + a2 R."""

    @abstractmethod
    def evaluation(self) -> list[Tensor]:
        """Return noise, log-determinant, and L and R."""

    @abstractmethod
    def generation(self) -> list[Tensor]:
        """Return data."""

    def training(self) -> list[Tensor]:
        """Return the objective and its gradient in each parameter."""
        self.potential.zero_grad(set_to_none=True)
        total = self.objective()
        total.backward()
        gradients = [p.grad for p in self.potential.parameters()]
        return [total.detach(), *(g for g in gradients if g is not None)]


class Published(Worker):
    """The published algorithm."""

    def __init__(self, potential: ResNetPotential, case: Case, points: Tensor) -> None:
        super().__init__(potential, case, points)
        self.flow = PublishedOTFlow(potential)

    def objective(self) -> Tensor:
        """Return L + a1 C + a2 R."""
        case = self.case
        return self.flow.objective(self.points, case.likelihood, case.hjb, case.train_steps)

    @torch.no_grad()
    def evaluation(self) -> list[Tensor]:
        """Return noise, log-determinant, and L and R."""
        end, d = self.flow.encode(self.points, self.case.test_steps), self.case.dim
        return [end[:, :d], end[:, d], end[:, d + 1 :]]

    @torch.no_grad()
    def generation(self) -> list[Tensor]:
        """Return data."""
        return [self.flow.generate(self.points, self.case.test_steps)]


class Flowzoo(Worker):
    """flowzoo; `recompute` is its integrator's option."""

    def __init__(
        self, potential: ResNetPotential, case: Case, points: Tensor, recompute: bool
    ) -> None:
        super().__init__(potential, case, points)
        velocity = Gradient(potential)
        self.train = Continuous(velocity, RK4(case.train_steps, recompute))
        self.test = Continuous(velocity, RK4(case.test_steps))
        self.running = [Transport(), HJB(case.hjb)]
        self.likelihood = Likelihood(case.likelihood, self.running)

    def objective(self) -> Tensor:
        """Return L + a1 C + a2 R."""
        return self.likelihood.loss(self.train, Batch(self.points)).total

    @torch.no_grad()
    def evaluation(self) -> list[Tensor]:
        """Return noise, log-determinant, and L and R."""
        out = self.test.encode(self.points, self.running)
        return [out.z, out.ladj, out.costs]

    @torch.no_grad()
    def generation(self) -> list[Tensor]:
        """Return data."""
        return [self.test.decode(self.points)]


@dataclass(frozen=True)
class Side:
    """The published algorithm, or flowzoo with options."""

    published: bool = False
    compiled: bool = False
    recompute: bool = False

    def worker(self, case: Case, rows: int, machine: Machine) -> Worker:
        """Return one with weights and points that depend on the case and `rows` alone."""
        torch.manual_seed(0)
        more: dict[str, Any] = {"compile": True} if self.compiled else {}
        potential = ResNetPotential(case.dim, case.width, **more)
        potential.to(machine.device, machine.dtype)
        points = machine.normal(rows, case.dim)
        if self.published:
            return Published(potential, case, points)
        return Flowzoo(potential, case, points, self.recompute)


SIDES = {
    "published": Side(published=True),
    "flowzoo": Side(),
    "compiled": Side(compiled=True),
    "recompute": Side(recompute=True),
    "compiled-recompute": Side(compiled=True, recompute=True),
}


def training_job(name: str, case: Case, rows: int, machine: Machine) -> Job:
    """Return a training step of which nothing but its own memory is new.

    One has run before: of two rows, or of all where it is compiled for their number.
    """
    side = SIDES[name]
    worker = side.worker(case, rows, machine)
    warm = worker if side.compiled else side.worker(case, 2, machine)
    warm.training()
    warm.potential.zero_grad(set_to_none=True)
    return worker.training
