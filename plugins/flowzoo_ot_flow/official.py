"""Weights of OT-Flow's published code, under their names there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from flowzoo.errors import UserError
from flowzoo_ot_flow.potential import ResNetPotential

NAMES = {"A": "A", "c.weight": "b", "c.bias": "c", "w.weight": "w"}


def load_official(potential: ResNetPotential, state: Mapping[str, Any], prefix: str = "") -> None:
    """Fill a potential with weights under their official names.

    Arguments:
        potential: What is filled; its dim, width, layers and rank must be those of the weights.
        state: Arrays or tensors by official name: `A`, `c.weight`, `c.bias`, `w.weight`,
            `N.layers.0.weight`, `N.layers.0.bias`, `N.layers.1.weight`, ...
        prefix: Only names that begin with it are read, without it.

    Raises:
        UserError: Names or shapes are not those of the potential.
    """
    ours = {}
    for name, value in state.items():
        if name.startswith(prefix):
            key, value = our_name(name[len(prefix) :]), torch.as_tensor(value)
            # Linear maps to a number there, vectors and a number here.
            ours[key] = (
                value.flatten() if key in ("b", "w") else value.reshape(()) if key == "c" else value
            )
    try:
        potential.load_state_dict(ours)
    except RuntimeError as error:
        raise UserError(
            "these weights are not of this potential: check its dim, width, layers and rank; "
            + " ".join(str(error).split())
        ) from error


def our_name(official: str) -> str:
    """Return the name that a parameter has here."""
    found = re.fullmatch(r"N\.layers\.(\d+)\.(weight|bias)", official)
    if found is None:
        return NAMES.get(official, official)
    layer = int(found[1])
    return f"hidden.{layer - 1}.{found[2]}" if layer else f"opening.{found[2]}"
