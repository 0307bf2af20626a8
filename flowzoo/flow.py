"""Flows: bijections from data to noise that know their volume change."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowzoo.errors import Incompatible
from flowzoo.integrators import Evaluations, Integrator
from flowzoo.regularizers import RunningCost
from flowzoo.score import Score, outside_inference, pulled_through
from flowzoo.traces import TraceEstimator


@dataclass(frozen=True)
class Encoded:
    """What became of data points.

    Arguments:
        z: Noise (n, d).
        ladj: log abs det dz/dx (n,), in nats.
        costs: Integrated running costs (n, r), in the order asked for.
        nfe: One entry per solve; their `backward` grows when gradients are taken.
    """

    z: Tensor
    ladj: Tensor
    costs: Tensor
    nfe: tuple[Evaluations, ...] = field(default=())


@dataclass(frozen=True)
class Decoded:
    """What became of noise.

    Arguments:
        x: Data (n, d).
        costs: Running costs (n, r) of the way from x to the noise, in the order asked for.
        nfe: One entry per solve; their `backward` grows when gradients are taken.
    """

    x: Tensor
    costs: Tensor
    nfe: tuple[Evaluations, ...] = field(default=())


class Flow(nn.Module, ABC):
    """A bijection x -> z from data to N(0, I), with log p(x) = log N(z; 0, I) + ladj.

    A member sets `dim`, implements `encode` and `decode`, and inherits the density and the samples.
    `latent` is False for an adapted density that sends no point to noise.
    """

    kind: ClassVar[str] = "flow"
    dim: int
    context_dim: int = 0
    latent: bool = True

    @abstractmethod
    def encode(
        self,
        x: Tensor,
        running: Sequence[RunningCost] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """Send data to noise.

        Arguments:
            x: Data (n, d).
            running: Costs to integrate along the way; a flow without a trajectory refuses them.
            context: What the flow is conditioned on, (n, c).
            generator: Source of the randomness of trace estimators.

        Raises:
            Incompatible: A cost needs what this flow does not provide.
        """

    @abstractmethod
    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Send noise (n, d) to data (n, d)."""

    def generate(
        self, z: Tensor, running: Sequence[RunningCost] = (), context: Tensor | None = None
    ) -> Decoded:
        """Send noise (n, d) to data and integrate costs on the way, without the volume change.

        Raises:
            Incompatible: A cost needs what this flow does not provide.
        """
        self.requires(running)
        return Decoded(self.decode(z, context), z.new_zeros(z.shape[0], len(running)))

    def log_prob(
        self, x: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return log p(x) as (n,), in nats."""
        encoded = self.encode(x, context=context, generator=generator)
        return log_normal(encoded.z) + encoded.ladj

    def sample(
        self, n: int, context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw (n, d) samples, differentiable in the weights through z -> x."""
        like = next(iter(self.parameters()), torch.empty(0))
        z = torch.randn(n, self.dim, dtype=like.dtype, device=like.device, generator=generator)
        return self.decode(z, context)

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw (n, d) samples and return them with their log-density (n,), in nats."""
        x = self.sample(n, context, generator)
        return x, self.log_prob(x, context, generator)

    def score(
        self, x: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return grad_x log p(x) as (n, d), differentiable where gradients are enabled.

        Where the flow is an ODE it solves one for the score, so that it is the gradient of
        `log_prob` to the accuracy of the integrator; with probes redrawn at each stage in the mean
        only, as the way back draws others. Nothing of the flow changes in training mode, either:
        normalisations that follow their batches are taken as they are.

        Raises:
            Incompatible: No gradient passes through the flow.
        """
        if self.latent:
            return self.pull_score(x, torch.neg, context, generator)

        def gradient(x: Tensor, context: Tensor | None) -> Tensor:
            density = partial(self.log_prob, context=context, generator=generator)
            return pulled_through(self, lambda y: (density(y),), x, torch.ones_like)

        return outside_inference(gradient, x, context)

    def pull_score(
        self,
        x: Tensor,
        score: Tensor | Score,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the score at data, given the score at the points z that the flow sends it to.

        Arguments:
            x: Data (n, d).
            score: The score at z (n, d), or a function that gives it for z (n, d).
            context: What the flow is conditioned on, (n, c).
            generator: Source of the randomness of trace estimators.

        Raises:
            Incompatible: No gradient passes through the flow.
        """

        def pull(x: Tensor, context: Tensor | None, *known: Tensor) -> Tensor:
            at = score if callable(score) else lambda _: known[0]
            return self._pull_score(x, at, context, generator)

        return outside_inference(pull, x, context, *(() if callable(score) else (score,)))

    def _pull_score(
        self, x: Tensor, score: Score, context: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """Return J^T s_z + grad_x ladj, by automatic differentiation of `encode`."""

        def ends(x: Tensor) -> tuple[Tensor, Tensor]:
            encoded = self.encode(x, (), context, generator)
            return encoded.z, encoded.ladj

        return pulled_through(self, ends, x, score)

    def with_numerics(
        self, integrator: Integrator | None = None, trace: TraceEstimator | None = None
    ) -> Flow:
        """Return this flow, weights shared, solved by other numerics where it has any."""
        return self

    def in_use(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that the density depends on: all, but in a flow that grows."""
        return self.parameters()

    def requires(self, running: Sequence[RunningCost]) -> None:
        """Raise Incompatible, with the reason, where a cost cannot be integrated."""
        if running:
            names = ", ".join(type(cost).__name__ for cost in running)
            raise Incompatible(
                f"{type(self).__name__} has no trajectory along which to integrate {names}"
            )


class Chain(Flow):
    """Flows applied one after another, from data to noise; costs add up.

    Arguments:
        blocks: The flows, first the one next to the data.
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {
            "blocks": [
                "moving-batch-norm",
                {"name": "continuous", "velocity": {"name": "mlp", "hidden": [8]}},
            ]
        },
    )

    def __init__(self, blocks: Sequence[Flow]) -> None:
        super().__init__()
        if not blocks:
            raise Incompatible("a chain needs at least one block")
        dims = [block.dim for block in blocks]
        if len(set(dims)) > 1:
            raise Incompatible(f"the blocks of a chain must agree in dimension, got {dims}")
        self.blocks = nn.ModuleList(blocks)
        self.dim = dims[0]
        self.context_dim = max(block.context_dim for block in blocks)

    def encode(
        self,
        x: Tensor,
        running: Sequence[RunningCost] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """Send data through all blocks."""
        ladj, costs = x.new_zeros(x.shape[0]), x.new_zeros(x.shape[0], len(running))
        nfe: tuple[Evaluations, ...] = ()
        for block in self.flows():
            step = block.encode(x, running, context if block.context_dim else None, generator)
            x, ladj, costs, nfe = step.z, ladj + step.ladj, costs + step.costs, nfe + step.nfe
        return Encoded(x, ladj, costs, nfe)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Send noise through all blocks, last to first."""
        for block in reversed(self.flows()):
            z = block.decode(z, context if block.context_dim else None)
        return z

    def generate(
        self, z: Tensor, running: Sequence[RunningCost] = (), context: Tensor | None = None
    ) -> Decoded:
        """Send noise through all blocks, last to first, and add up the costs."""
        costs = z.new_zeros(z.shape[0], len(running))
        nfe: tuple[Evaluations, ...] = ()
        for block in reversed(self.flows()):
            step = block.generate(z, running, context if block.context_dim else None)
            z, costs, nfe = step.x, costs + step.costs, nfe + step.nfe
        return Decoded(z, costs, nfe)

    def _pull_score(
        self, x: Tensor, score: Score, context: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """Pull the score through all blocks, last to first; each sends the points on once."""
        for block in reversed(self.flows()):
            given = context if block.context_dim else None
            score = partial(block.pull_score, score=score, context=given, generator=generator)
        return score(x)

    def flows(self) -> list[Flow]:
        """Return the blocks."""
        return list(self.blocks)  # pyright: ignore[reportReturnType]

    def with_numerics(
        self, integrator: Integrator | None = None, trace: TraceEstimator | None = None
    ) -> Flow:
        """Return a chain of the same blocks, each solved by other numerics."""
        return Chain([block.with_numerics(integrator, trace) for block in self.flows()]).train(
            self.training
        )

    def requires(self, running: Sequence[RunningCost]) -> None:
        """Raise Incompatible where a block cannot integrate one of the costs."""
        for block in self.flows():
            block.requires(running)


def log_normal(z: Tensor) -> Tensor:
    """Return log N(z; 0, I) for z (n, d) as (n,), in nats."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))
