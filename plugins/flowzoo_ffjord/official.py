"""Weights of FFJORD's published code, under their names there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from flowzoo.errors import UserError

# Longer names first: `_hyper` alone is the gate of a squash layer.
_NAMES = {
    r"\b_hyper_gate\b": "gate",
    r"\b_hyper_bias\b": "drift",
    r"\b_hypernet\.0\b": "hidden",
    r"\b_hypernet\.2\b": "linear",
    r"\b_hyper\b": "gate",
    r"\b_layer1\b": "linear_end",
    r"\b_layer0?\b": "linear",
    r"\bactivation_fns\b": "activations",
}


def load_official(module: nn.Module, state: Mapping[str, Any], prefix: str = "") -> None:
    """Fill an `ODENet`, one of its layers or a `MovingBatchNorm` with weights by official names.

    Arguments:
        module: What is filled; its layer type and widths must be those of the weights.
        state: Arrays or tensors by official name, e.g. `layers.0._hyper_gate.weight`.
        prefix: Only names that begin with it are read, without it: `chain.0.odefunc.diffeq.` for
            the first block of a checkpoint.

    Raises:
        UserError: Names or shapes are not those of the module.
    """
    ours = {}
    for name, value in state.items():
        # `step` counts the calls of a batch normalisation, for a lag that was never used.
        if name.startswith(prefix) and name != f"{prefix}step":
            ours[_translated(name[len(prefix) :])] = torch.as_tensor(value)
    try:
        module.load_state_dict(ours)
    except RuntimeError as error:
        raise UserError(
            "these weights are not of this network: check its layer type, widths and activation; "
            + " ".join(str(error).split())
        ) from error


def _translated(name: str) -> str:
    for pattern, ours in _NAMES.items():
        name = re.sub(pattern, ours, name)
    return name
