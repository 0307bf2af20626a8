"""What a check gets: a component with options, and as many instances of it as it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from flowzoo.build import build
from flowzoo.conformance.check import Skipped
from flowzoo.registry import Registry


@dataclass(frozen=True)
class Specimen:
    """A component to check.

    A component says on its class how it is to be checked, where the defaults do not do:
    `examples`, a list of options (mappings), each of which is checked; `expected_failures`, the
    names of checks that it is known to fail, each with the reason.

    Arguments:
        kind: The component's kind.
        name: What is checked, in words: `trace/hutchinson`, with a number where it has several
            examples; for a recipe `recipe/ot-flow`.
        spec: What is built: `{name: ..., option: ...}`.
        cls: The component's class; `object` where that could not be loaded.
        registry: What the names in the spec mean.
        expected: Names of checks that it is known to fail, with the reasons.
        broken: Why it cannot be checked, in a sentence; empty where it can.
    """

    kind: str
    name: str
    spec: Mapping[str, Any]
    cls: type
    registry: Registry = field(repr=False)
    expected: Mapping[str, str] = field(default_factory=dict)
    broken: str = ""

    def make(
        self,
        dim: int = 2,
        dtype: torch.dtype = torch.float64,
        context_dim: int = 0,
        seed: int = 0,
        shake: float = 0.3,
    ) -> Any:
        """Return an instance; a module comes in evaluation mode, with weights that are no start's.

        Weights at the start often make a flow the identity, on which little can go wrong; so noise
        is added to them. Equal arguments give equal instances.

        Arguments:
            dim: Dimension d, where the component takes one.
            dtype: Precision of a module's weights.
            context_dim: Dimension of the context, where the component takes one.
            seed: Seed of the weights.
            shake: Size of the noise, in units of 1 / sqrt(columns of the weight).
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = build(
                self.kind, dict(self.spec), self.registry, dim=dim, context_dim=context_dim
            )
            if isinstance(made, nn.Module):
                made = made.to(dtype).eval()
                _shake(made, shake)
        return made

    def sized(self, usual: int, dim: int | None = None, **options: Any) -> Any:
        """Return an instance in a usual dimension, or the only one it has; in `dim` if given.

        Arguments:
            usual: The dimension d where any will do.
            dim: The dimension d that is needed.
            options: What else `make` takes.

        Raises:
            Skipped: It has another dimension than the one needed, and no choice.
        """
        made = self.make(usual if dim is None else dim, **options)
        if dim is not None and made.dim != dim:
            raise Skipped(f"it has {made.dim} dimensions and no choice, {dim} are needed")
        return made

    def generator(self, seed: int = 0) -> torch.Generator:
        """Return a source of randomness, the same for the same seed."""
        return torch.Generator().manual_seed(seed)

    def points(
        self, n: int = 16, dim: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0
    ) -> torch.Tensor:
        """Return points (n, d) from N(0, I), the same for the same arguments."""
        return torch.randn(n, dim, generator=self.generator(seed), dtype=torch.float64).to(dtype)


def _shake(module: nn.Module, size: float) -> None:
    with torch.no_grad():
        for weight in module.parameters():
            columns = weight.shape[-1] if weight.dim() > 1 else 1
            noise = torch.randn(weight.shape, dtype=torch.float64) * size / columns**0.5
            weight.add_(noise.to(weight))
