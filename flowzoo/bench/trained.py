"""A trained flow on disk: its weights with everything needed to use them on data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import Tensor

from flowzoo.bench.cells import Cell, read_cell
from flowzoo.bench.files import replace_file
from flowzoo.bench.store import FLOW
from flowzoo.build import build
from flowzoo.data import Standardisation
from flowzoo.errors import UserError
from flowzoo.flow import Flow

_KEY = "flowzoo"  # where the facts stand in the file's metadata


@dataclass(frozen=True)
class Trained:
    """A trained flow in the coordinates of its data.

    Arguments:
        cell: What was trained.
        flow: The flow, in eval mode; its data are standardised where `scale` is given.
        scale: The map from the data's coordinates to the flow's.
        facts: What was noted with the weights.
    """

    cell: Cell
    flow: Flow
    scale: Standardisation | None
    facts: dict[str, Any]

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return log p(x) as (n,), in nats, for x (n, d) in the data's coordinates."""
        like = self._like()
        z = x if self.scale is None else self.scale.forward(x)
        context = None if context is None else context.to(like)
        with torch.no_grad():
            log_prob = self.flow.log_prob(z.to(like), context)
        return log_prob + (0.0 if self.scale is None else self.scale.ladj)

    def sample(
        self, n: int, context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw (n, d) samples in the data's coordinates."""
        context = None if context is None else context.to(self._like())
        with torch.no_grad():
            z = self.flow.sample(n, context, generator)
        return z if self.scale is None else self.scale.inverse(z)

    def _like(self) -> Tensor:
        return next(iter(self.flow.parameters()), torch.empty(0))


def save_flow(
    folder: Path, flow: Flow, scale: Standardisation | None, facts: Mapping[str, Any]
) -> None:
    """Store a flow's weights with what is known of them, in one step.

    Raises:
        DiskFull: There is no space.
    """
    like = next(iter(flow.parameters()), torch.empty(0))
    known = {
        **facts,
        "dim": flow.dim,
        "context_dim": flow.context_dim,
        "dtype": str(like.dtype).removeprefix("torch."),
        "mean": None if scale is None else scale.mean.tolist(),
        "std": None if scale is None else scale.std.tolist(),
    }
    metadata = {_KEY: json.dumps(known)}
    replace_file(folder / FLOW, lambda path: save_model(flow, str(path), metadata))


def load_trained(folder: str | Path, device: str = "cpu") -> Trained:
    """Return the trained flow of a cell's folder.

    Raises:
        UserError: There is none, or the file is damaged or of another composition.
    """
    folder = Path(folder)
    cell, facts = read_cell(folder), flow_facts(folder)
    if facts is None:
        raise UserError(f"{folder} holds no trained flow: it has no {FLOW}, or a damaged one")
    given = {"dim": facts["dim"], "context_dim": facts["context_dim"]}
    flow: Flow = build("flow", cell.flow_spec, cell.registry(), **given)
    flow = flow.to(device=device, dtype=getattr(torch, facts["dtype"]))
    try:
        load_model(flow, str(folder / FLOW), device=device)
    except (RuntimeError, SafetensorError) as error:
        said = str(error).strip().partition("\n")[0]
        raise UserError(f"{folder / FLOW} does not fit its recipe any more: {said}") from error
    scale = None
    if facts["mean"] is not None:
        mean, std = (torch.tensor(facts[k], dtype=torch.float64) for k in ("mean", "std"))
        scale = Standardisation(mean, std)
    return Trained(cell, flow.eval(), scale, facts)


def load_flow(folder: str | Path, device: str = "cpu") -> Flow:
    """Return the trained flow of a cell's folder, in its own coordinates and in eval mode.

    Raises:
        UserError: There is none, or the file is damaged or of another composition.
    """
    return load_trained(folder, device).flow


def flow_facts(folder: Path) -> dict[str, Any] | None:
    """Return what was noted with a folder's weights; None where there are none that can be read."""
    try:
        with safe_open(folder / FLOW, "pt") as file:
            return json.loads(file.metadata()[_KEY])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
