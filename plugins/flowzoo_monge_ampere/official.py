"""Weights of the Monge-Ampere flow's published code (`Simple_MLP`), under their names there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowzoo.weights import fill
from flowzoo_monge_ampere.potential import MongeAmpere

_NAMES = {"fc1.weight": "opening.weight", "fc1.bias": "opening.bias", "fc2.weight": "a"}


def load_official(potential: MongeAmpere, state: Mapping[str, Any], prefix: str = "") -> None:
    """Fill a potential with weights under their official names.

    Arguments:
        potential: What is filled; its dim, width and symmetry must be those of the weights.
        state: Arrays or tensors by official name: `fc1.weight`, `fc1.bias` (where not symmetric)
            and `fc2.weight`.
        prefix: Only names that begin with it are read, without it; `net.` in a saved flow.

    Raises:
        UserError: Names or shapes are not those of the potential.
    """
    ours = {our_name(k.removeprefix(prefix)): v for k, v in state.items() if k.startswith(prefix)}
    fill(potential, ours, "potential: check its dim, width and symmetric")


def our_name(official: str) -> str:
    """Return the name that a parameter has here."""
    return _NAMES.get(official, official)
