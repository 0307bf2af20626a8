"""Weights of OT-Flow's published code, imported: the same flow and objective, clear refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import F64, gap

from flowzoo.build import build
from flowzoo.errors import UserError
from flowzoo.objective import Batch
from flowzoo.registry import Registry
from flowzoo.weights import Weights, read_weights
from flowzoo_ot_flow.importer import OTFlowImporter

GOLDEN = Path(__file__).parent / "golden" / "otflow"
FILES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
SIZES = {"swissroll": (2, 32, 2, 3), "miniboone": (43, 256, 2, 10), "mnist128": (128, 128, 2, 10)}
SIZES["rand_nTh4_d5_m16"] = (5, 16, 4, 6)


@pytest.fixture(scope="module", params=FILES)
def golden(request):
    weights = read_weights(GOLDEN / f"{request.param}.npz")
    return request.param, weights, OTFlowImporter().convert(weights)


def test_sizes_come_from_shapes(golden):
    name, _, made = golden
    dim, width, layers, rank = SIZES[name]
    spec = made.flow["velocity"]["potential"]
    assert made.dim == dim
    assert spec == {"name": "ot-flow", "width": width, "layers": layers, "rank": rank}
    assert made.flow["integrator"] == {"name": "rk4", "steps": 16}
    assert "x" in made.ignored
    assert not any(name.startswith("param/") for name in made.ignored)


def test_the_flow_is_the_published_one(golden):
    _, weights, made = golden
    flow = made.build(Registry.installed())
    with torch.no_grad():
        encoded = flow.encode(weights.tensors["x"])
        nll = -flow.log_prob(weights.tensors["x"])
    assert gap(encoded.z, weights.tensors["rk4_zT"]) < 1e-10
    assert gap(nll, weights.tensors["nll_per_sample"]) < 1e-10


def test_the_objective_is_the_published_one(golden):
    _, weights, made = golden
    registry = Registry.installed()
    objective = build("objective", made.objective, registry)
    with torch.no_grad():
        loss = objective.loss(made.build(registry), Batch(weights.tensors["x"]))
    assert abs(float(loss.total) / weights.setting("J") - 1) < 1e-11


def published(alpha, **settings):
    """Return small weights whose settings are given."""
    sample = OTFlowImporter().sample()
    return replace(sample, settings={"args/alph": alpha, "args/nt": 4, **settings})


def test_a0_scales_velocity_and_residual():
    """v = -grad Phi / a0; its HJB residual is that of Phi / a0, so a2 counts a0 times as much."""
    registry, x = Registry.installed(), torch.randn(6, 3, dtype=F64)
    made = OTFlowImporter().convert(published([2.0, 30.0, 15.0]))
    flow = made.build(registry)
    at = flow.velocity.at(torch.tensor(0.3, dtype=F64), x)
    phi = flow.velocity.potential.at(torch.tensor(0.3, dtype=F64), x)
    assert gap(at.v, -phi.gradient / 2) < 1e-14
    residual = (-phi.phi_t + 2.0 * 0.5 * at.v.square().sum(-1)).abs()
    hjb = build("objective", made.objective, registry).costs.running[1]
    assert gap(hjb.weight * hjb.rate(at, None), 15.0 * residual) < 1e-13


def test_what_a_file_does_not_say_is_noted():
    sample = replace(OTFlowImporter().sample(), settings={})
    made = OTFlowImporter().convert(sample)
    assert made.flow["integrator"]["steps"] == 8
    assert made.flow["velocity"]["scale"] == 1.0
    said = "; ".join(made.notes)
    assert "no alph" in said
    assert "no nt" in said
    made = OTFlowImporter().convert(published([1.0, 2.0, 3.0], **{"args/data": "gas"}))
    assert made.notes == ("trained on gas, in its published coordinates",)


ODD = [[1.0, 2.0], "1,2,3", 3.0, [0.0, 1.0, 1.0], [1.0, -1.0, 1.0], [1.0, "2", 1.0]]


@pytest.mark.parametrize("alpha", [*ODD, [1.0, math.inf, 1.0], [1.0, math.nan, 1.0]])
def test_odd_weights_of_the_objective_are_refused(alpha):
    with pytest.raises(UserError, match=r"alph is .*expected three numbers"):
        OTFlowImporter().convert(published(alpha))


@pytest.mark.parametrize("steps", [0, -1, 2.5, "8", True])
def test_an_odd_number_of_steps_is_refused(steps):
    with pytest.raises(UserError, match=r"nt is .*at least 1"):
        OTFlowImporter().convert(published([1.0, 1.0, 1.0], **{"args/nt": steps}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"A": None}, "there is no A; there are c.weight"),
        ({"N.layers.1.weight": None}, "there is no N.layers.1.weight"),
        ({"N.layers.2.bias": None}, r"check its dim, width, layers and rank.*hidden\.1\.bias"),
        ({"A": torch.ones(2)}, r"A has the shape \(2,\)"),
        ({"N.layers.0.weight": torch.ones(5, 1)}, r"N\.layers\.0\.weight has the shape \(5, 1\)"),
        ({"A": torch.ones(2, 9)}, "check its dim, width, layers and rank"),
        ({"A": torch.ones(2, 4, dtype=torch.int64)}, "A is of type torch.int64"),
        ({"hello": torch.ones(1)}, "hello"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changed, said):
    tensors = OTFlowImporter().sample().model() | changed
    kept = {name: value for name, value in tensors.items() if value is not None}
    with pytest.raises(UserError, match=said):
        OTFlowImporter().convert(Weights(kept))


def test_arrays_without_a_prefix(tmp_path):
    """`numpy.savez("w.npz", alph=alph, nt=nt, **state)`."""
    sample = OTFlowImporter().sample()
    arrays = {name: value.numpy() for name, value in sample.model().items()}
    np.savez(tmp_path / "w.npz", alph=np.array([2.0, 30.0, 15.0]), nt=4, **arrays)
    found = OTFlowImporter().convert(read_weights(tmp_path / "w.npz"))
    expected = OTFlowImporter().convert(sample)
    assert found.flow == expected.flow
    assert found.objective == expected.objective
    assert all(torch.equal(found.state[name], value) for name, value in expected.state.items())
