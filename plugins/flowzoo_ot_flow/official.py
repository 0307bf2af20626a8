"""Weights of OT-Flow's published code, under their names there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flowzoo.weights import fill
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
    ours = {our_name(k.removeprefix(prefix)): v for k, v in state.items() if k.startswith(prefix)}
    fill(potential, ours, "potential: check its dim, width, layers and rank")


def our_name(official: str) -> str:
    """Return the name that a parameter has here."""
    found = re.fullmatch(r"N\.layers\.(\d+)\.(weight|bias)", official)
    if found is None:
        return NAMES.get(official, official)
    layer = int(found[1])
    return f"hidden.{layer - 1}.{found[2]}" if layer else f"opening.{found[2]}"
