"""Checks of importers: what a file holds arrives, all of it, and what does not fit is refused.

They convert the importer's own `sample`: small weights under the published names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowzoo.conformance.check import Failed, check, require
from flowzoo.conformance.probes.portrait import portrait
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import FlowzooError, Incompatible, UserError
from flowzoo.importer import Imported, Importer
from flowzoo.registry.component import reason
from flowzoo.weights import Weights

_ROWS = 8


@check("importer")
def fits(specimen: Specimen) -> str:
    """Its sample gives a flow of the stated dimension, whose weights are all and only the state."""
    importer: Importer = specimen.make()
    found = importer.convert(importer.sample())
    flow = _built(specimen, found)
    require(flow.dim == found.dim, f"the flow has {flow.dim} dimensions, not {found.dim}")
    require(
        flow.context_dim == found.context_dim,
        f"the flow has a context of width {flow.context_dim}, not {found.context_dim}",
    )
    return f"{len(found.state)} tensors, {found.dim} dimensions"


@check("importer")
def runs(specimen: Specimen) -> str:
    """The flow gives finite densities and finite samples."""
    importer: Importer = specimen.make()
    found = importer.convert(importer.sample())
    flow = _built(specimen, found)
    like = next(flow.parameters())
    x = specimen.points(_ROWS, found.dim).to(like)
    context = specimen.points(_ROWS, found.context_dim, seed=1).to(like)
    given = context if found.context_dim else None
    with torch.no_grad():
        log_prob = flow.log_prob(x, given)
        samples = flow.sample(_ROWS, given, specimen.generator())
    for what, values in (("densities", log_prob), ("samples", samples)):
        require(bool(values.isfinite().all()), f"its {what} are not all finite")
    return f"{_ROWS} densities and samples"


@check("importer")
def everything(specimen: Specimen) -> str:
    """Every tensor of its sample changes the flow, unless it is said to be ignored."""
    importer: Importer = specimen.make()
    weights = importer.sample()
    before = importer.convert(weights)
    strange = [name for name in before.ignored if name not in weights.tensors]
    require(not strange, f"it says that it ignores {', '.join(strange)}, which is not there")
    used = [name for name in weights.tensors if name not in before.ignored]
    require(bool(used), "it ignores all tensors of its sample")
    for name in used:
        value = weights.tensors[name]
        other = value * 1.25 + 0.125 if value.is_floating_point() else value + 1
        after = _tried(specimen, _with(weights, {name: other}))
        require(
            after is None or portrait(_content(after)) != portrait(_content(before)),
            f"{name} changes nothing and is not said to be ignored",
        )
    return f"{len(used)} tensors used, {len(before.ignored)} ignored"


@check("importer")
def repeatable(specimen: Specimen) -> str:
    """The same weights give the same flow, and are left as they were."""
    importer: Importer = specimen.make()
    weights = importer.sample()
    before = portrait(dict(weights.tensors))
    one = portrait(_content(importer.convert(weights)))
    require(portrait(dict(weights.tensors)) == before, "converting weights changes them")
    two = portrait(_content(specimen.make().convert(specimen.make().sample())))
    require(one == two, "two conversions of its sample differ")
    return "twice the same"


@check("importer")
def precision(specimen: Specimen) -> str:
    """Weights arrive in the precision they have."""
    importer: Importer = specimen.make()
    sample = importer.sample()
    for dtype in (torch.float32, torch.float64):
        cast = {k: v.to(dtype) for k, v in sample.tensors.items() if v.is_floating_point()}
        found = importer.convert(_with(sample, cast))
        wrong = [k for k, v in found.state.items() if v.is_floating_point() and v.dtype != dtype]
        require(not wrong, f"of {dtype} weights, {', '.join(wrong)} arrive in another precision")
    return "float32 and float64"


@check("importer")
def refuses(specimen: Specimen) -> str:
    """Foreign weights, and its own without one tensor, are refused in a sentence or do not pass."""
    importer: Importer = specimen.make()
    sample = importer.sample()
    before = importer.convert(sample)
    foreign = Weights({"somebody.else": torch.ones(2)})
    require(_tried(specimen, foreign) is None, "weights of somebody else are converted")
    used = [name for name in sample.tensors if name not in before.ignored]
    refused = 0
    for name in used:
        rest = {key: value for key, value in sample.tensors.items() if key != name}
        after = _tried(specimen, replace(sample, tensors=rest))
        same = after is not None and portrait(dict(after.flow)) == portrait(dict(before.flow))
        require(not same, f"without {name} the same flow is made")
        refused += after is None
    return f"{refused} of {len(used)} missing tensors refused"


def _built(specimen: Specimen, found: Imported) -> Any:
    try:
        return found.build(specimen.registry)
    except (UserError, Incompatible) as error:
        raise Failed(f"what it makes of its sample cannot be built: {error}") from error


def _tried(specimen: Specimen, weights: Weights) -> Imported | None:
    """Return what is made of weights; None where they, or the flow, are refused as they should be.

    Raises:
        Failed: Something else than a sentence is raised.
    """
    importer: Importer = specimen.make()
    try:
        found = importer.convert(weights)
        found.build(specimen.registry)
        return found
    except FlowzooError as error:
        require(len(str(error).split()) >= 4, f"weights are refused by '{error}'")
        return None
    except Exception as error:
        raise Failed(f"odd weights raise {reason(error)}, expected a UserError") from error


def _with(weights: Weights, changed: Mapping[str, Tensor]) -> Weights:
    return replace(weights, tensors={**weights.tensors, **changed})


def _content(found: Imported) -> dict[str, Any]:
    """Return what a conversion gives, apart from what is said about it."""
    return {"flow": dict(found.flow), "state": dict(found.state), "objective": found.objective}
