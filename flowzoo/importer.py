"""Importers: weights that somebody else trained, as a flow of ours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowzoo.build import build
from flowzoo.errors import UserError
from flowzoo.flow import Flow
from flowzoo.registry import Registry
from flowzoo.weights import Weights


@dataclass(frozen=True)
class Imported:
    """A flow made of somebody else's weights, as a recipe would write it.

    Arguments:
        flow: Spec of the flow, without `dim` and `context_dim`.
        state: Its weights under their names here, in their own precision.
        dim: Dimension d of the data.
        context_dim: Width of the context.
        objective: Spec of the objective that it was trained by.
        title: What a table calls it.
        notes: What one must know about it, in sentences: what it was trained on, what was assumed.
        ignored: Names of the file's tensors that have no place in the flow.
    """

    flow: Mapping[str, Any]
    state: Mapping[str, Tensor]
    dim: int
    context_dim: int = 0
    objective: str | Mapping[str, Any] = "likelihood"
    title: str = ""
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def build(self, registry: Registry) -> Flow:
        """Return the flow with its weights, in evaluation mode and in their precision.

        It is float64 where any weight is, otherwise float32.

        Arguments:
            registry: What the names in the spec mean.

        Raises:
            Problems: The spec is wrong.
            UserError: The weights do not fit the spec, or are not finite.
        """
        for name, value in self.state.items():
            if bad := int((~value.isfinite()).sum()):
                raise UserError(f"the weights are no fitted flow's: {bad} of {name} are not finite")
        flow: Flow = build(
            "flow", dict(self.flow), registry, dim=self.dim, context_dim=self.context_dim
        )
        double = any(value.dtype == torch.float64 for value in self.state.values())
        flow = flow.to(torch.float64 if double else torch.float32)
        try:
            flow.load_state_dict(self.state)
        except RuntimeError as error:
            first, *wrong = str(error).strip().splitlines()
            said = (wrong[0].strip() if wrong else first)[:200]
            raise UserError(f"the weights do not fit the flow: {said}") from error
        return flow.eval()


class Importer(ABC):
    """Reads weights under the names of one published code, and says which flow they are of."""

    kind: ClassVar[str] = "importer"
    checks: ClassVar[str] = "flowzoo.conformance.promises.importers"

    @abstractmethod
    def convert(self, weights: Weights) -> Imported:
        """Return the flow that some weights are of, its sizes read off their shapes.

        Raises:
            UserError: They are not of this code: says which name or setting is missing or odd.
        """

    @abstractmethod
    def sample(self) -> Weights:
        """Return small weights under the published names, the same each time, for checks."""
