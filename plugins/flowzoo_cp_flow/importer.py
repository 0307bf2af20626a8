"""An importer for weights of CP-Flow's published code: architectures and sizes from the tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flowzoo.errors import UserError
from flowzoo.importer import Imported, Importer
from flowzoo.weights import Weights
from flowzoo_cp_flow.official import POTENTIAL, parts, renamed

# What the published code calls its activations; its name for the Laplace one gives the Gaussian.
_SMOOTHINGS = {
    "softplus": "logistic",
    "gaussian_softplus": "gaussian",
    "gaussian_softplus2": "gaussian2",
    "laplace_softplus": "gaussian",
    "cauchy_softplus": "cauchy",
}
_SWITCHES = {"zero_softplus": "centred", "symm_act_first": "symmetric"}


class CPFlowImporter(Importer):
    """Weights of CP-Flow's published code: a `DeepConvexFlow`, or a `SequentialFlow` of them.

    Architecture and sizes are those of the tensors. The activation leaves no trace in them: it is
    that of the settings `softplus_type`, `zero_softplus` and `symm_act_first`, and where the file
    has none, that of the published tables' defaults, which `--set activation=gaussian` and the like
    change. The log-determinant is exact.

    References:
        Convex Potential Flows (Huang, Chen, Tsirigotis & Courville, ICLR 2021),
        https://arxiv.org/abs/2012.05942, and its code
    """

    def convert(self, weights: Weights) -> Imported:
        """Return the flow that has these weights.

        Raises:
            UserError: Names, shapes or settings are not those of CP-Flow.
        """
        model = weights.model()
        activation, notes = _activation(weights)
        blocks, sizes = [], []
        for start, own in parts(model).items():
            spec, size = _part(start, {name: model[start + name] for name in own}, activation)
            blocks.append(spec)
            sizes.append(size)
        if not any(spec["name"] == "convex" for spec in blocks):
            raise UserError(f"these are no weights of CP-Flow: {_held(model)}")
        dims = [dim for dim, _ in sizes]
        if len(set(dims)) > 1:
            raise UserError(f"its parts have {', '.join(map(str, dims))} dimensions, not the same")
        return Imported(
            flow=blocks[0] if "" in parts(model) else {"name": "chain", "blocks": blocks},
            state=renamed(model),
            dim=dims[0],
            context_dim=max(context for _, context in sizes),
            title="CP-Flow (published weights)",
            notes=notes,
            ignored=weights.others(),
        )

    def sample(self) -> Weights:
        """Return weights of a normalised flow of two layers in three dimensions."""
        width, dim, flow = 4, 3, "model/flows.1."
        shapes = {f"{flow}w0": (1,), f"{flow}w1": (1,)}
        shapes |= {f"model/flows.{k}.{n}": (1, dim, 1) for k in (0, 2) for n in ("b", "logs")}
        layers: dict[str, tuple[int, ...]] = {"Wzs.0.weight": (width, dim), "Wzs.0.bias": (width,)}
        layers |= {"Wzs.1.weight": (width // 2, width), "Wzs.1.bias": (width // 2,)}
        layers |= {"Wzs.2.weight": (1, width), "Wxs.1.weight": (1, dim)}
        for name in ("Wxs.0", "Wx2s.0"):
            layers |= {f"{name}.weight": (width // 2, dim), f"{name}.bias": (width // 2,)}
        for k, w in enumerate((width // 2, 1)):
            layers |= {f"actnorms.{k}.{n}": (1, w, 1) for n in ("b", "logs")}
        shapes |= {f"{flow}{POTENTIAL}{name}": shape for name, shape in layers.items()}
        generator = torch.Generator().manual_seed(0)
        tensors = {
            name: 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64)
            for name, shape in shapes.items()
        }
        settings = {"softplus_type": "gaussian_softplus", "zero_softplus": True}
        settings |= {"symm_act_first": 1, "data": "none"}
        return Weights(tensors, {f"args/{name}": value for name, value in settings.items()})


def _activation(weights: Weights) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the options that say the activation, and what is to be noted."""
    notes, found, data = [], {}, weights.setting("data")
    if isinstance(data, str):
        notes.append(f"trained on {data}, in its published coordinates")
    kind = weights.setting("softplus_type")
    if kind is not None and kind not in _SMOOTHINGS:
        raise UserError(f"softplus_type is {kind!r}; expected one of {', '.join(_SMOOTHINGS)}")
    found["activation"] = _SMOOTHINGS[kind or "softplus"]
    for name, ours in _SWITCHES.items():
        value = weights.setting(name, False)
        if value not in (True, False):
            raise UserError(f"{name} is {value!r}; expected true or false")
        found[ours] = bool(value)
    missing = [n for n in ("softplus_type", *_SWITCHES) if weights.setting(n) is None]
    if missing:
        notes.append(
            f"the file has no {', '.join(missing)}: assumed are activation={found['activation']}, "
            f"centred={found['centred']}, symmetric={found['symmetric']}"
        )
    return found, tuple(notes)


def _part(
    start: str, own: Mapping[str, Tensor], activation: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[int, int]]:
    """Return the spec of one part of a flow, and the widths of its data and of its context."""
    if set(own) == {"b", "logs"}:
        return {"name": "actnorm"}, (own["b"].numel(), 0)
    inside = {
        n.removeprefix(POTENTIAL): value for n, value in own.items() if n.startswith(POTENTIAL)
    }
    entry, context = inside.get("Wzs.0.weight"), inside.get("Wcs.0.weight")
    if entry is None or not {"w0", "w1"} <= set(own):
        place = start or "the file"
        raise UserError(
            f"these are no weights of CP-Flow: {place} has no w0, w1 and icnn.Wzs.0.weight; "
            f"{_held(own)}"
        )
    if entry.dim() != 2 or (context is not None and context.dim() != 2):
        raise UserError(f"{start}icnn has convolutions; networks of linear layers can be imported")
    found = [re.match(r"Wzs\.(\d+)\.", name) for name in inside]
    layers = max(int(match[1]) for match in found if match)
    width, dim = entry.shape
    name, options = _architecture(inside, width, layers)
    options = {"width": width, "layers": layers, **options}
    if options.get("normalise", True):
        options |= activation
    potential = {"name": name, **options}
    return {"name": "convex", "potential": potential, "trace": "exact"}, (
        dim,
        0 if context is None else context.shape[1],
    )


def _architecture(inside: Mapping[str, Tensor], width: int, layers: int) -> tuple[str, dict]:
    """Return the name of the network that has these tensors, and its own options."""
    lists = {name.partition(".")[0] for name in inside}
    last = inside.get(f"Wzs.{layers}.weight")
    dense = last is not None and last.shape[-1] == width * layers and layers > 1
    if "Wcs" in lists:
        if "Wx2s" in lists and f"Wczs.{layers}.weight" not in inside:
            raise UserError("PICNN2 of CP-Flow's code is none of the networks that are known here")
        film = "film-picnn" if "Wx2s" in lists else "picnn"
        return "dense-picnn" if dense else film, {"gate": "published"}
    if "actnorms" not in lists:
        return "icnn", {"normalise": False}
    if "actnorm0" not in lists:
        return "input-augmented", {}
    if "Wzs.1.0.weight" in inside:
        return "residual-icnn", {}
    return ("dense-icnn" if dense else "icnn"), {}


def _held(names: Mapping[str, Any]) -> str:
    return f"there are {', '.join(list(names)[:4])}, ..."
