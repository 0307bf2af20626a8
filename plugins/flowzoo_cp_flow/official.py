"""Weights of CP-Flow's published code, under their names there."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from flowzoo.errors import UserError
from flowzoo.flow import Flow
from flowzoo.weights import fill

# Lists of layers that have the same order and length here.
_LISTS = {
    "Wxs": "skips",
    "Wx2s": "augments",
    "Wczs": "output_gates",
    "Wcxs": "input_gates",
    "Wcx2s": "augment_gates",
    "Wccs": "shifts",
    "actnorm2s": "augment_norms",
}
_NORM = {"b": "shift", "logs": "log_scale"}
_FLOW = {"w0": "raw_quadratic", "w1": "raw_weight"}
POTENTIAL = "icnn."


def load_official(flow: Flow, state: Mapping[str, Any], prefix: str = "") -> None:
    """Fill a `ConvexFlow`, an `ActNorm` or a `Chain` of them with weights by official names.

    The normalisations are then taken as set, whether the file says so or not: in the published code
    that is no part of the state, and weights that are loaded there are lost in the first batch.

    Arguments:
        flow: What is filled; its architecture and sizes must be those of the weights.
        state: Arrays or tensors by official name, e.g. `icnn.Wzs.0.weight` of a `DeepConvexFlow`,
            `b` and `logs` of an `ActNorm`, and either after `flows.3.` in a `SequentialFlow`.
        prefix: Only names that begin with it are read, without it.

    Raises:
        UserError: Names or shapes are not those of the flow.
    """
    given = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    fill(flow, renamed(given), "flow: check its architecture, dim, width and layers")


def renamed(official: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state that a flow has here, all normalisations set, from weights of a flow there.

    Raises:
        UserError: A name belongs to no part of a flow.
    """
    state = {}
    for name, ours in our_names(official).items():
        value, (owner, _, own) = torch.as_tensor(official[name]), ours.rpartition(".")
        if own in _NORM.values():  # (1, w, 1) there
            state[f"{owner}.ready"], value = torch.tensor(True), value.flatten()
        elif own in _FLOW.values() and value.numel() == 1:  # (1,) there
            value = value.reshape(())
        state[ours] = value
    return state


def our_names(official: Collection[str]) -> dict[str, str]:
    """Return the names that the parameters of a flow have here, by their official ones."""
    names = {}
    for start, own in parts(official).items():
        at = re.sub(r"^flows\b", "blocks", start)
        inside = potential_names([n for n in own if n.startswith(POTENTIAL)])
        for name in own:
            ours = _FLOW.get(name) or inside.get(name) or f"norm.{_NORM.get(name, name)}"
            names[start + name] = at + ours
    return names


def parts(official: Collection[str]) -> dict[str, list[str]]:
    """Return the names within each part of a flow, by what stands before them, first to last."""
    found: dict[int, list[str]] = {}
    for name in official:
        at = re.match(r"flows\.(\d+)\.", name)
        found.setdefault(int(at[1]) if at else -1, []).append(name[at.end() :] if at else name)
    if len(found) > 1 and -1 in found:
        raise UserError(
            f"these are no weights of CP-Flow: {found[-1][0]} is in no part of the flow"
        )
    return {"" if k < 0 else f"flows.{k}.": found[k] for k in sorted(found)}


def potential_names(official: Collection[str]) -> dict[str, str]:
    """Return the names that the parameters of a potential have here, within the convex flow."""
    inside = {name: name.removeprefix(POTENTIAL) for name in official}
    lists = {name.partition(".")[0] for name in inside.values()}
    # The first normalisation is one of the list here.
    first = int("actnorm0" in lists)
    # A gated network contains the plain one, unless its gates are feature-wise.
    plain = "plain." if "Wcs" in lists and "Wx2s" not in lists else ""
    return {name: "potential." + _layer(own, first, plain) for name, own in inside.items()}


def _layer(official: str, first: int, plain: str) -> str:
    owner, *rest = official.split(".")
    last = _NORM.get(rest[-1], rest[-1]) if rest else ""
    if owner == "Wzs":
        return plain + _positive(rest)
    if owner in ("actnorm0", "actnorms"):
        k = int(rest[0]) + first if owner == "actnorms" else 0
        return f"{plain}norms.{k}.{last}"
    if owner == "Wcs":
        return f"features.linear.{last}"
    if owner == "actnormc":
        return f"features.norm.{last}"
    ours = _LISTS.get(owner, owner)
    return (plain if ours == "skips" else "") + ".".join([ours, *rest[:-1], last])


def _positive(rest: list[str]) -> str:
    """Return the name of a layer z -> a: the entry, a positive one, or a part of a residual one."""
    k, *inner, kind = rest
    if k == "0":
        return f"entry.{kind}"
    kind = "raw" if kind == "weight" else _NORM.get(kind, kind)
    owner = {"0": "inner", "1": "inner_norms"}.get(inner[0] if inner else "", "positive")
    return f"{owner}.{int(k) - 1}.{kind}"
