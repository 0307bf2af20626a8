"""Values of CP-Flow's published code, and flows with its weights; see golden/cpflow/README.md."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from flowzoo_cp_flow.flow import ConvexFlow
from flowzoo_cp_flow.official import load_official

GOLDEN = Path(__file__).parent / "golden" / "cpflow"
F64 = torch.float64
EVEN = {"activation": "gaussian", "centred": True, "symmetric": True}
LOGISTIC = {"activation": "logistic", "centred": False, "symmetric": False}

# Class (module:name), dim, width, layers, options.
CASES = {
    "icnn_d2": ("icnn:ICNN", 2, 16, 3, {"normalise": False}),
    "icnn2_softplus_d5": ("icnn:ICNN", 5, 16, 3, {}),
    "icnn2_gauss_symm_d8": ("icnn:ICNN", 8, 24, 4, EVEN),
    "icnn3_gauss_symm_d2_depth20": ("icnn:InputAugmented", 2, 32, 20, EVEN),
    "icnn3_gauss_symm_d43": ("icnn:InputAugmented", 43, 64, 5, EVEN),
    "icnn3_cauchy_d4": ("icnn:InputAugmented", 4, 12, 3, {**LOGISTIC, "activation": "cauchy"}),
    "icnn3_gauss2_symm_d4": ("icnn:InputAugmented", 4, 12, 3, {**EVEN, "activation": "gaussian2"}),
    "resicnn2_d4": ("residual:ResidualICNN", 4, 12, 3, {}),
    "denseicnn2_d4": ("dense:DenseICNN", 4, 12, 3, {}),
}
GATED = {**EVEN, "context_dim": 2, "gate": "published"}
CONDITIONAL = {
    "picnn_d3_c2": ("picnn:PICNN", 3, 12, 3, GATED),
    "picnnfw_d3_c2": ("film:FilmPICNN", 3, 12, 3, GATED),
    "densepicnn_d3_c2": ("dense:DensePICNN", 3, 12, 3, GATED),
}
PLAIN, CASES = tuple(CASES), {**CASES, **CONDITIONAL}


@cache
def golden(name):
    """Return all arrays of a file as tensors, by name; not to be written to."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}


def potential(name, **more):
    """Return the network of a file with weights of its own, in float64."""
    where, dim, width, layers, options = CASES[name]
    module, cls = where.split(":")
    made = getattr(import_module(f"flowzoo_cp_flow.{module}"), cls)
    return made(dim, width, layers, **{**options, **more}).to(F64)


def flow(name, **options):
    """Return the convex flow of a file, in float64; options are `ConvexFlow`'s (trace, ...)."""
    made = ConvexFlow(potential(name), **options).to(F64)
    load_official(made, golden(name), "param/")
    return made.eval()


def network(name):
    """Return the network of a file with its weights, in float64."""
    return flow(name).potential


def chain(start="param/"):
    """Return the five blocks of `flow_5x3x32_d2` with one of its three sets of weights."""
    from flowzoo.flow import Chain
    from flowzoo_cp_flow.actnorm import ActNorm
    from flowzoo_cp_flow.icnn import InputAugmented

    blocks = [ActNorm(2)]
    for _ in range(5):
        blocks += [ConvexFlow(InputAugmented(2, 32, 3, **EVEN)), ActNorm(2)]
    made = Chain(blocks).to(F64)
    load_official(made, golden("flow_5x3x32_d2"), start)
    return made.eval()


def off(a, b):
    """Return the largest difference of two tensors, relative to the largest entry of the second."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return ((a - b).abs().max() / b.abs().max()).item()
