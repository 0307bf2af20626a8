"""Weights of CP-Flow's published code, imported: the same flow, clear refusals."""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import pytest
import torch
from cp_flow_oracles import CASES, GOLDEN, golden, off

from flowzoo.errors import UserError
from flowzoo.flow import log_normal
from flowzoo.registry import Registry
from flowzoo.weights import Weights, read_weights
from flowzoo_cp_flow.importer import CPFlowImporter

NAMES = {"ICNN": "icnn", "InputAugmented": "input-augmented", "ResidualICNN": "residual-icnn"}
NAMES |= {"DenseICNN": "dense-icnn", "PICNN": "picnn", "FilmPICNN": "film-picnn"}
NAMES |= {"DensePICNN": "dense-picnn"}
KINDS = {"logistic": "softplus", "gaussian": "gaussian_softplus"}
KINDS |= {"gaussian2": "gaussian_softplus2", "cauchy": "cauchy_softplus"}


def published(name):
    """Return the weights of a golden file, with the settings that they were made by."""
    options = CASES[name][4]
    settings = {
        "softplus_type": KINDS[options.get("activation", "logistic")],
        "zero_softplus": int(options.get("centred", False)),
        "symm_act_first": bool(options.get("symmetric", False)),
    }
    read = read_weights(GOLDEN / f"{name}.npz")
    return replace(read, settings={f"args/{key}": value for key, value in settings.items()})


@pytest.mark.parametrize("name", CASES)
def test_the_flow_is_the_published_one(name):
    where, dim, width, layers, options = CASES[name]
    made = CPFlowImporter().convert(published(name))
    spec = made.flow["potential"]
    assert spec["name"] == NAMES[where.split(":")[1]]
    assert (made.dim, spec["width"], spec["layers"]) == (dim, width, layers)
    assert made.context_dim == options.get("context_dim", 0)
    assert made.notes == ()
    values, flow = golden(name), made.build(Registry.installed())
    with torch.no_grad():
        encoded = flow.encode(values["x"], context=values.get("context"))
    tight = 2e-8 if name == "resicnn2_d4" else 1e-12
    assert off(encoded.z, values["grad"]) < tight
    assert off(encoded.ladj, values["logdet"]) < tight
    flow.train().encode(3 + values["x"], context=values.get("context"))
    encoded = flow.encode(values["x"], context=values.get("context"))
    assert off(encoded.z, values["grad"]) < tight, "a training batch must not set it again"


def test_a_stacked_flow_is_the_published_one():
    even = {"softplus_type": "gaussian_softplus", "zero_softplus": True, "symm_act_first": True}
    read = read_weights(GOLDEN / "flow_5x3x32_d2.npz")
    made = CPFlowImporter().convert(replace(read, settings=even))
    assert [block["name"] for block in made.flow["blocks"]] == [
        "actnorm",
        *["convex", "actnorm"] * 5,
    ]
    flow, values = made.build(Registry.installed()), golden("flow_5x3x32_d2")
    with torch.no_grad():
        encoded = flow.encode(values["x"])
    assert off(encoded.z, values["z"]) < 1e-12
    assert off(log_normal(encoded.z) + encoded.ladj, values["logp_std_normal"]) < 1e-12
    assert {"x", "z", "after_init/flows.0.b"} <= set(made.ignored)


def test_a_checkpoint_of_the_published_training(tmp_path):
    """`torch.save({'args': args, 'model': model.state_dict(), 'optim': ...})`."""
    sample = CPFlowImporter().sample()
    args = {name.removeprefix("args/"): value for name, value in sample.settings.items()}
    saved = {"args": argparse.Namespace(**args), "model": sample.model()}
    saved["optim"] = {"state": {0: {"exp_avg": torch.ones(2)}}}
    torch.save(saved, tmp_path / "checkpt.pth")
    found = CPFlowImporter().convert(read_weights(tmp_path / "checkpt.pth"))
    expected = CPFlowImporter().convert(sample)
    assert found.flow == expected.flow
    assert all(torch.equal(found.state[k], v) for k, v in expected.state.items())
    assert found.ignored == ("optim/state/0/exp_avg",)
    potential = found.flow["blocks"][1]["potential"]
    assert potential["activation"] == "gaussian"
    assert (potential["centred"], potential["symmetric"]) == (True, True)
    assert found.notes == ("trained on none, in its published coordinates",)


def test_arrays_without_a_prefix_or_settings(tmp_path):
    model = {name: value.numpy() for name, value in CPFlowImporter().sample().model().items()}
    np.savez(tmp_path / "w.npz", **model)
    made = CPFlowImporter().convert(read_weights(tmp_path / "w.npz"))
    potential = made.flow["blocks"][1]["potential"]
    assert potential["activation"] == "logistic"
    assert (potential["centred"], potential["symmetric"]) == (False, False)
    (said,) = made.notes
    assert "no softplus_type, zero_softplus, symm_act_first: assumed are" in said
    assert "activation=logistic, centred=False, symmetric=False" in said


def test_the_name_of_the_laplace_activation_gives_the_gaussian_one_as_published():
    sample = CPFlowImporter().sample()
    changed = {**sample.settings, "args/softplus_type": "laplace_softplus"}
    made = CPFlowImporter().convert(replace(sample, settings=changed))
    assert made.flow["blocks"][1]["potential"]["activation"] == "gaussian"


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("softplus_type", "relu", "softplus_type is 'relu'; expected one of softplus"),
        ("softplus_type", 3, "softplus_type is 3"),
        ("zero_softplus", "yes", "zero_softplus is 'yes'; expected true or false"),
        ("symm_act_first", 2, "symm_act_first is 2; expected true or false"),
    ],
)
def test_odd_settings_are_refused(setting, value, said):
    sample = CPFlowImporter().sample()
    changed = {**sample.settings, f"args/{setting}": value}
    with pytest.raises(UserError, match=said):
        CPFlowImporter().convert(replace(sample, settings=changed))


FLOW = "flows.1."


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({f"{FLOW}w0": None}, r"flows\.1\. has no w0, w1 and icnn\.Wzs\.0\.weight; there are"),
        ({f"{FLOW}icnn.Wzs.0.weight": None}, r"flows\.1\. has no w0"),
        ({f"{FLOW}icnn.Wzs.0.weight": torch.ones(4, 3, 3, 3)}, "has convolutions"),
        ({"hello": torch.ones(1)}, "hello is in no part of the flow"),
        ({"flows.7.weight": torch.ones(3, 3)}, r"flows\.7\. has no w0"),
        ({"flows.2.b": None}, r"flows\.2\. has no w0"),
        (dict.fromkeys(("flows.0.b", "flows.0.logs"), torch.ones(1, 4, 1)), "have 4, 3, 3 dim"),
    ],
)
def test_weights_that_are_not_of_cp_flow_are_refused(changed, said):
    tensors = CPFlowImporter().sample().model() | changed
    kept = {name: value for name, value in tensors.items() if value is not None}
    with pytest.raises(UserError, match=said):
        CPFlowImporter().convert(Weights(kept))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({f"{FLOW}icnn.Wzs.1.bias": None}, r"positive\.0\.bias"),
        ({f"{FLOW}icnn.Wxs.0.weight": torch.ones(2, 7)}, r"skips\.0\.weight"),
        ({f"{FLOW}icnn.hello.weight": torch.ones(2)}, "hello"),
    ],
)
def test_weights_that_do_not_fit_each_other_are_refused(changed, said):
    tensors = CPFlowImporter().sample().model() | changed
    kept = {name: value for name, value in tensors.items() if value is not None}
    with pytest.raises(UserError, match=f"do not fit the flow: .*{said}"):
        CPFlowImporter().convert(Weights(kept)).build(Registry.installed())


def test_only_normalisations_are_no_flow_of_it():
    tensors = {"flows.0.b": torch.zeros(1, 2, 1), "flows.0.logs": torch.zeros(1, 2, 1)}
    with pytest.raises(UserError, match="no weights of CP-Flow: there are flows"):
        CPFlowImporter().convert(Weights(tensors))


def test_an_architecture_that_is_not_known_is_refused():
    weights = published("picnnfw_d3_c2")
    tensors = {k: v for k, v in weights.tensors.items() if "Wczs.3" not in k}
    with pytest.raises(UserError, match="PICNN2 of CP-Flow's code is none of the networks"):
        CPFlowImporter().convert(replace(weights, tensors=tensors))
