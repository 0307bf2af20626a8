"""An importer for weights of OT-Flow's published code: sizes from shapes, weights from settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flowzoo.errors import UserError
from flowzoo.importer import Imported, Importer
from flowzoo.weights import Weights
from flowzoo_ot_flow.official import NAMES, load_official
from flowzoo_ot_flow.potential import ResNetPotential

_PLACE = "velocity.potential."  # of the potential, in a continuous flow along its gradient
_STEPS = 8  # where a file does not say how many it was trained with


class OTFlowImporter(Importer):
    """Weights of OT-Flow's published code, from its .pth files or arrays of the same names.

    Dimension, width, layers and rank are those of the tensors `A` and `N.layers.i.weight`. Of the
    settings, `nt` is the number of RK4 steps in training, and `alph` the weights (a0, a1, a2) of
    transport cost, likelihood and HJB residual; a0 also divides the velocity. The dimension is that
    of the data as published, so the rows must be in those coordinates.

    References:
        OT-Flow (Onken, Wu Fung, Li & Ruthotto, AAAI 2021), https://arxiv.org/abs/2006.00104,
        and its code
    """

    def convert(self, weights: Weights) -> Imported:
        """Return the flow along the gradient of the potential that has these weights.

        Raises:
            UserError: Names, shapes or settings are not those of OT-Flow.
        """
        model = {name: value for name, value in weights.model().items() if name != "alph"}
        dim, width, layers, rank = _sizes(model)
        alpha, steps, notes = _settings(weights)
        potential = ResNetPotential(dim, width, layers, rank).to(model["A"].dtype)
        load_official(potential, model)
        sizes = {"width": width, "layers": layers, "rank": rank}
        flow = {
            "name": "continuous",
            "velocity": {
                "name": "gradient",
                "potential": {"name": "ot-flow", **sizes},
                "scale": alpha[0],
            },
            "integrator": {"name": "rk4", "steps": steps},
            "trace": "exact",
        }
        # There the HJB residual is that of Phi, here that of Phi / a0.
        costs = [
            {"name": "transport", "weight": alpha[0]},
            {"name": "hjb", "weight": alpha[0] * alpha[2]},
        ]
        return Imported(
            flow=flow,
            state={_PLACE + name: value for name, value in potential.state_dict().items()},
            dim=dim,
            objective={"name": "likelihood", "weight": alpha[1], "regularizers": costs},
            title="OT-Flow (published weights)",
            notes=notes,
            ignored=weights.others(),
        )

    def sample(self) -> Weights:
        """Return weights of three layers in three dimensions, with settings that are not usual."""
        generator = torch.Generator().manual_seed(0)
        dim, width, rank, layers = 3, 5, 2, 3
        shapes = {"A": (rank, dim + 1), "c.weight": (1, dim + 1), "c.bias": (1,)}
        shapes |= {"w.weight": (1, width), "N.layers.0.weight": (width, dim + 1)}
        shapes |= {f"N.layers.{i}.weight": (width, width) for i in range(1, layers)}
        shapes |= {f"N.layers.{i}.bias": (width,) for i in range(layers)}
        tensors = {
            f"state_dict/{name}": 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64)
            for name, shape in shapes.items()
        }
        return Weights(tensors, {"args/alph": [2.0, 30.0, 15.0], "args/nt": 4, "args/data": "none"})


def _sizes(model: Mapping[str, Tensor]) -> tuple[int, int, int, int]:
    """Return dim, width, layers and rank of the potential that has these weights."""
    layers = [name for name in model if re.fullmatch(r"N\.layers\.\d+\.weight", name)]
    missing = [n for n in (*NAMES, "N.layers.0.weight", "N.layers.1.weight") if n not in model]
    if missing:
        held = ", ".join(list(model)[:4])
        raise UserError(
            f"these are no weights of OT-Flow: there is no {missing[0]}; there are {held}, ..."
        )
    for name in ("A", "N.layers.0.weight"):
        if model[name].dim() != 2 or min(model[name].shape) < 1 or model[name].shape[1] < 2:
            shape = tuple(model[name].shape)
            raise UserError(f"these are no weights of OT-Flow: {name} has the shape {shape}")
    if not model["A"].is_floating_point():
        raise UserError(f"these are no weights of OT-Flow: A is of type {model['A'].dtype}")
    width, inputs = model["N.layers.0.weight"].shape
    return inputs - 1, width, len(layers), len(model["A"])


def _settings(weights: Weights) -> tuple[list[float], int, tuple[str, ...]]:
    """Return alph, nt and what is to be noted about them."""
    notes, data = [], weights.setting("data")
    if isinstance(data, str):
        notes.append(f"trained on {data}, in its published coordinates")
    alpha, steps = weights.setting("alph"), weights.setting("nt")
    if alpha is None:
        notes.append("the file has no alph: its weights of the objective are taken as 1, 1, 1")
        alpha = [1.0, 1.0, 1.0]
    if steps is None:
        notes.append(f"the file has no nt: {_STEPS} steps of RK4 are assumed")
        steps = _STEPS
    if not _three_weights(alpha):
        raise UserError(f"alph is {alpha!r}; expected three numbers, none negative, the first > 0")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise UserError(f"nt is {steps!r}; expected a number of steps, at least 1")
    return [float(a) for a in alpha], steps, tuple(notes)


def _three_weights(alpha: Any) -> bool:
    return (
        isinstance(alpha, list)
        and len(alpha) == 3
        and all(isinstance(a, int | float) and 0 <= a < float("inf") for a in alpha)
        and alpha[0] > 0
    )
