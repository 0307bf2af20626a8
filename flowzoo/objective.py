"""Objectives: what is minimised, on which parameters, in which order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from flowzoo.errors import Incompatible
from flowzoo.flow import Decoded, Encoded, Flow, log_normal
from flowzoo.integrators import Evaluations
from flowzoo.regularizers import EndpointCost, FlowCost, Regularizer, RunningCost

Way = TypeVar("Way", Encoded, Decoded)


@dataclass(frozen=True)
class Batch:
    """Training points.

    Arguments:
        x: Points (n, d).
        context: What they are conditioned on (n, c), or None.
    """

    x: Tensor
    context: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """A loss on a batch.

    Arguments:
        total: What is minimised, ().
        terms: Its parts before weighting, each (), detached, for the progress bar and the curve.
        nfe: The solves' counts; read after the backward pass.
    """

    total: Tensor
    terms: dict[str, Tensor]
    nfe: tuple[Evaluations, ...] = field(default=())


def unchanged(data: Batch) -> Batch:
    """Return the data."""
    return data


def nothing(data: Batch) -> None:
    """Begin without a change."""


def always() -> bool:
    """Need the stage."""
    return True


@dataclass(frozen=True)
class Left:
    """What a stage leaves to the next one, once its weights are final.

    Arguments:
        train: Training points for the next stage, which then does not make its own; None leaves
            that to it.
        validation: Likewise, validation points.
        facts: What is known of the stage: plain numbers and words, for the record.
    """

    train: Batch | None = None
    validation: Batch | None = None
    facts: Mapping[str, float | int | str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One optimisation problem.

    A fit asks whether the stage is needed, makes its points, begins it, takes its steps and ends
    it. All but the steps happens without gradients and in evaluation mode. A stage that was
    interrupted finds, when the fit is resumed, the weights that the stage before left, and its
    points are made and it is begun again: so neither may depend on anything else that an earlier
    stage did. What a family has to remember (JKO-iFlow: how many blocks it has, and how far each
    moves the points) are buffers of its flow.

    Arguments:
        name: What a progress bar and a checkpoint call it.
        parameters: What the optimizer may change.
        loss: The loss on a batch, with a source of randomness.
        points: Turns raw points into this stage's (JKO-iFlow pushes them through the blocks before
            this one). Asked of training and of validation points, unless the stage before left
            some: the same to the last bit.
        begin: Changes the weights before the first step, given the stage's training points.
        end: Called with the stage's training and validation points (None without validation) once
            the weights are final.
        needed: Asked before the stage; where it is not needed, nothing else is.
        share: This stage's weight in what is left of the budget.
        rate: A factor on the learning rate.
        guarded: True validates the weights that it begins with, too, so that the best ones cannot
            be worse.
        criterion: What its validations measure, whatever the training's settings say: `loss` for a
            stage that the likelihood of the whole flow would choose the wrong weights for. None
            leaves it to the settings.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    loss: Callable[[Batch, torch.Generator], Loss]
    points: Callable[[Batch], Batch] = unchanged
    begin: Callable[[Batch], None] = nothing
    end: Callable[[Batch, Batch | None], Left] | None = None
    needed: Callable[[], bool] = always
    share: float = 1.0
    rate: float = 1.0
    guarded: bool = False
    criterion: Literal["nll", "loss"] | None = None


class Objective(ABC):
    """A family's way of fitting a flow, as one or more stages."""

    kind: ClassVar[str] = "objective"

    @abstractmethod
    def stages(self, flow: Flow) -> Iterator[Stage]:
        """Yield the stages in order; without effects, which belong to `begin` and `end`.

        Raises:
            Incompatible: The objective cannot train this flow.
        """

    def check(self, flow: Flow) -> None:
        """Raise Incompatible, with the reason, where the objective cannot train this flow."""
        next(iter(self.stages(flow)))


class Costs:
    """The regularizers of an objective, by when they are paid.

    Arguments:
        objective: The objective's name, for errors.
        regularizers: Costs, each with its own weight.

    Raises:
        Incompatible: Nobody knows when one is paid.
    """

    def __init__(self, objective: str, regularizers: Sequence[Regularizer]) -> None:
        for r in regularizers:
            if not isinstance(r, RunningCost | EndpointCost | FlowCost):
                raise Incompatible(
                    f"{type(r).__name__} is neither a RunningCost nor an EndpointCost nor a "
                    f"FlowCost: {objective} does not know when it is paid"
                )
        self.running = [r for r in regularizers if isinstance(r, RunningCost)]
        self.asking = [r for r in regularizers if isinstance(r, FlowCost)]
        self.endpoint = [r for r in regularizers if isinstance(r, EndpointCost)]

    def requires(self, flow: Flow) -> None:
        """Raise Incompatible, with the reason, where one cannot be paid on this flow."""
        flow.requires(self.running)
        for cost in self.asking:
            cost.requires(flow)

    def encode(
        self,
        flow: Flow,
        x: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """Send data (n, d) to noise; the costs are all that `added` expects as paid."""
        encoded = flow.encode(x, self.running, context, generator)
        return self._asked(encoded, flow, x, encoded.z, context, generator)

    def generate(
        self,
        flow: Flow,
        z: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Decoded:
        """Send noise (n, d) to data; the costs are all that `added` expects as paid."""
        made = flow.generate(z, self.running, context)
        return self._asked(made, flow, made.x, z, context, generator)

    def _asked(
        self,
        way: Way,
        flow: Flow,
        x: Tensor,
        z: Tensor,
        context: Tensor | None,
        generator: torch.Generator | None,
    ) -> Way:
        """Return a way with the costs that ask the flow, and what their solves took."""
        for each in self.asking:
            cost, nfe = each.cost(flow, x, z, context, generator)
            costs = torch.cat([way.costs, cost[:, None]], 1)
            way = replace(way, costs=costs, nfe=way.nfe + nfe)
        return way

    def added(
        self, total: Tensor, terms: dict[str, Tensor], paid: Tensor, x: Tensor, z: Tensor
    ) -> Tensor:
        """Return a total with the costs' weighted means, which `terms` are told unweighted.

        Arguments:
            total: What is minimised so far, ().
            terms: Its parts by name; gains one per cost.
            paid: The costs (n, r) of `encode` or `generate`.
            x: Data (n, d).
            z: Noise (n, d).
        """
        columns = [*self.running, *self.asking]
        costs = [*zip(columns, paid.mean(0), strict=True)] if columns else []
        costs += [(cost, cost.between(x, z).mean()) for cost in self.endpoint]
        for cost, value in costs:
            total = total + cost.weight * value
            name = type(cost).__name__
            same = sum(known.split()[0] == name for known in terms)
            terms[f"{name} {same + 1}" if same else name] = value.detach()
        return total


class Likelihood(Objective):
    """Negative log-likelihood and regularizers: weight * E[-log p(x)] + sum_i w_i E[cost_i].

    Arguments:
        weight: The factor of the likelihood (OT-Flow's alpha_1).
        regularizers: Costs, each with its own weight.
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"regularizers": ["transport", "hjb"]},
        {"weight": 100.0, "regularizers": ["jacobian-frobenius", "jko-w2"]},
    )

    def __init__(self, weight: float = 1.0, regularizers: Sequence[Regularizer] = ()) -> None:
        self.weight, self.costs = weight, Costs("likelihood", regularizers)

    def stages(self, flow: Flow) -> Iterator[Stage]:
        """Yield the one stage: all parameters at once."""
        self.costs.requires(flow)
        yield Stage(
            "likelihood",
            list(flow.parameters()),
            lambda batch, noise: self.loss(flow, batch, noise),
        )

    def loss(self, flow: Flow, batch: Batch, generator: torch.Generator | None = None) -> Loss:
        """Return the objective on a batch."""
        encoded = self.costs.encode(flow, batch.x, batch.context, generator)
        nll = -(log_normal(encoded.z) + encoded.ladj).mean()
        terms = {"nll": nll.detach()}
        total = self.costs.added(self.weight * nll, terms, encoded.costs, batch.x, encoded.z)
        return Loss(total, terms, encoded.nfe)
