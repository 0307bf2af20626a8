"""The objective `generative`: points made from noise are compared with data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowzoo.errors import BadData, Incompatible, UserError
from flowzoo.flow import Flow
from flowzoo.objective import Batch, Costs, Loss, Objective, Stage
from flowzoo.regularizers import Regularizer
from flowzoo_pfg.discrepancy import Discrepancy, SlicedW2


class Generative(Objective):
    """weight * D(x, data) + sum_i w_i E[cost_i], for x generated from noise z ~ N(0, I).

    Running costs are those of the trajectories that the points were generated on, endpoint costs
    those of moving x to z. With a context the points are generated from the batch's contexts, and
    the pairs (point, context) are compared: equal laws of the pairs are equal conditional laws.

    The Potential Flow Generator trains a potential flow in this way, with a squared HJB residual
    and an adversary (WGAN-GP) or sliced W2 as its discrepancy.

    Arguments:
        discrepancy: The discrepancy D of generated points and data; `sliced-w2` when left out.
        weight: Its factor.
        regularizers: Costs, each with its own weight.
        samples: How many points are generated for a batch; as many as it has when left out.

    Raises:
        UserError: No points are to be generated.
        Incompatible: A regularizer is paid neither along the way nor at the ends.

    References:
        Potential Flow Generator with L2 Optimal Transport Regularity for Generative Models (Yang &
        Karniadakis, 2019), https://arxiv.org/abs/1908.11462
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {
            "discrepancy": {"name": "sliced-w2", "projections": 8},
            "regularizers": [{"name": "hjb", "power": "squared"}],
        },
        {
            "discrepancy": {"name": "sliced-w2", "projections": 8},
            "weight": 10.0,
            "regularizers": ["transport", "jko-w2"],
            "samples": 16,
        },
    )

    def __init__(
        self,
        discrepancy: Discrepancy | None = None,
        weight: float = 1.0,
        regularizers: Sequence[Regularizer] = (),
        samples: int | None = None,
    ) -> None:
        if samples is not None and samples < 1:
            raise UserError(f"generative: samples must be at least 1, got {samples}")
        self.discrepancy = SlicedW2() if discrepancy is None else discrepancy
        self.weight, self.samples = weight, samples
        self.costs = Costs("generative", regularizers)

    def stages(self, flow: Flow) -> Iterator[Stage]:
        """Yield the one stage: all parameters at once.

        Raises:
            Incompatible: The flow sends no noise to data, or cannot integrate one of the costs.
        """
        if not flow.latent:
            raise Incompatible(
                f"generative moves noise to data, which {type(flow).__name__} cannot: it knows a "
                "density only"
            )
        self.costs.requires(flow)
        yield Stage(
            "generative",
            list(flow.parameters()),
            lambda batch, noise: self.loss(flow, batch, noise),
        )

    def loss(self, flow: Flow, batch: Batch, generator: torch.Generator | None = None) -> Loss:
        """Return the objective on a batch.

        Raises:
            BadData: The batch has too few points.
            Incompatible: No gradient passes through the generated points.
        """
        if not len(batch.x):
            raise BadData("generative compares generated points with data, and the batch has none")
        n = len(batch.x) if self.samples is None else self.samples
        z = torch.randn(
            n, flow.dim, dtype=batch.x.dtype, device=batch.x.device, generator=generator
        )
        context = None if batch.context is None else _spread(batch.context, n)
        made = self.costs.generate(flow, z, context, generator)
        _require_gradient(flow, made.x)
        distance = self.discrepancy(
            _joined(made.x, context), _joined(batch.x, batch.context), generator
        )
        terms = {type(self.discrepancy).__name__: distance.detach()}
        total = self.costs.added(self.weight * distance, terms, made.costs, made.x, z)
        return Loss(total, terms, made.nfe)


def _spread(context: Tensor, n: int) -> Tensor:
    """Return n rows, each of the batch's as often as every other where that divides."""
    return context[torch.arange(n, device=context.device) * len(context) // n]


def _joined(x: Tensor, context: Tensor | None) -> Tensor:
    return x if context is None else torch.cat((x, context), -1)


def _require_gradient(flow: Flow, x: Tensor) -> None:
    trained = torch.is_grad_enabled() and any(p.requires_grad for p in flow.parameters())
    if trained and not x.requires_grad:
        raise Incompatible(
            f"the points that {type(flow).__name__} generates carry no gradient to its weights: "
            "generative cannot train it"
        )
