"""Convex networks, their log-determinants and stacks against values of the published code."""

from __future__ import annotations

import pytest
import torch
from cp_flow_oracles import CASES, GOLDEN, chain, flow, golden, off
from torch.nn.functional import softplus

from flowzoo.errors import UserError
from flowzoo.flow import log_normal
from flowzoo_cp_flow import activations
from flowzoo_cp_flow.activations import Softplus
from flowzoo_cp_flow.official import load_official, our_names

KINDS = {
    "softplus": "logistic",
    "gaussian_softplus": "gaussian",
    "gaussian_softplus2": "gaussian2",
    "cauchy_softplus": "cauchy",
}
# A few arguments of the residual network's softplus exceed 20, where torch's is the identity.
TIGHT, CUT = 1e-12, 2e-8


@pytest.fixture(params=list(CASES))
def case(request):
    return request.param, flow(request.param), golden(request.param)


@pytest.fixture
def published_softplus(monkeypatch):
    """Take softplus for the identity beyond 20, as the published code does."""

    def values(a):
        slope = torch.where(a > 20, torch.ones_like(a), torch.sigmoid(a))
        return softplus(a), slope, slope * (1 - slope)

    monkeypatch.setattr(activations._Logistic, "values", staticmethod(values))


def test_all_golden_files_are_there():
    files = {path.stem for path in GOLDEN.glob("*.npz")}
    assert files == {*CASES, "activations", "flow_5x3x32_d2"}


def test_the_potential_and_its_derivatives(case):
    name, flow, golden = case
    tight = CUT if name == "resicnn2_d4" else TIGHT
    point = flow.at(golden["x"], golden.get("context"))
    assert off(point.value, golden["potential"][:, 0]) < tight
    assert off(point.gradient, golden["grad"]) < tight
    assert off(point.hessian.dense(), golden["hessian"]) < tight
    probe, expected = golden["probe_rademacher"], golden["hvp_probe"]
    for product in (point.hessian.vjp, point.hessian.jvp):
        assert off(product(probe), expected) < tight
        assert off(product(torch.stack([probe, -2 * probe]))[1], -2 * expected) < tight


def test_the_log_determinant_and_all_its_gradients(case):
    name, flow, golden = case
    tight = CUT if name == "resicnn2_d4" else TIGHT
    ladj = flow.encode(golden["x"], context=golden.get("context")).ladj
    assert off(ladj, golden["logdet"]) < tight
    gradients_agree(flow, ladj, golden, 10 * tight)


def test_the_residual_network_is_the_published_one_up_to_its_softplus(published_softplus):
    flow_, values = flow("resicnn2_d4"), golden("resicnn2_d4")
    point = flow_.at(values["x"])
    assert off(point.value, values["potential"][:, 0]) < TIGHT
    assert off(point.gradient, values["grad"]) < TIGHT
    assert off(point.hessian.dense(), values["hessian"]) < TIGHT
    ladj = flow_.encode(values["x"]).ladj
    assert off(ladj, values["logdet"]) < TIGHT
    gradients_agree(flow_, ladj, values, 10 * TIGHT)


def gradients_agree(flow, ladj, golden, tight):
    """Compare the gradients of the mean of ladj in all parameters, each to its own size."""
    weights = dict(flow.named_parameters())
    names = our_names([k.removeprefix("param/") for k in golden if k.startswith("param/")])
    assert set(names.values()) == set(weights)
    ladj.mean().backward()
    compared = 0
    for official, ours in names.items():
        key, found = f"logdet_grad/{official}", weights[ours].grad
        assert (key in golden) == weights[ours].requires_grad
        if key not in golden:  # the frozen shift of an output
            continue
        expected = golden[key].flatten()
        found = torch.zeros_like(expected) if found is None else found.flatten()
        size = expected.abs().max().clamp_min(1e-8)
        assert ((found - expected).abs().max() / size).item() < tight, official
        compared += int(expected.abs().max() > 0)
    assert compared > 0.7 * len(names)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_activations(kind, centred, symmetric):
    values, s = golden("activations"), Softplus(KINDS[kind], centred, symmetric)
    t = values["t"]
    # The published softplus is the identity from 20 on.
    kept = t.abs() < 19 if kind == "softplus" else slice(None)
    name = f"{kind}_zero{int(centred)}_symm{int(symmetric)}"
    for found, suffix in zip(s.derivatives(t), ("", "_d1", "_d2"), strict=True):
        torch.testing.assert_close(found[kept], values[name + suffix][kept], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found, values[name + suffix], rtol=0, atol=3e-9)


def test_the_laplace_activation():
    """The function: its name gives another one in the published code."""
    values = golden("activations")
    inside = values["t"] != 0  # automatic differentiation there picks a subgradient of |t|
    for found, suffix in zip(Softplus("laplace").derivatives(values["t"]), ("", "_d1", "_d2"),
                             strict=True):  # fmt: skip
        expected = values[f"laplace_function{suffix}"]
        torch.testing.assert_close(found[inside], expected[inside], rtol=1e-12, atol=1e-14)


def test_a_stacked_flow():
    values = golden("flow_5x3x32_d2")
    encoded = chain().encode(values["x"])
    assert off(encoded.z, values["z"]) < TIGHT
    assert off(encoded.ladj, values["logdet"]) < TIGHT
    assert off(log_normal(encoded.z) + encoded.ladj, values["logp_std_normal"]) < TIGHT


def test_the_first_training_batch_sets_all_normalisations_as_published():
    values = golden("flow_5x3x32_d2")
    flow, expected = chain("before_init/"), chain("after_init/").state_dict()
    waiting(flow)
    flow.eval().encode(values["init_x"])
    flow.train().encode(values["init_x"][:1])
    assert not any(v.item() for k, v in flow.state_dict().items() if k.endswith("ready"))
    flow.encode(values["init_x"])
    changed = 0
    for name, value in flow.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-11, atol=1e-12, msg=name)
        changed += name.endswith(("shift", "log_scale"))
    assert changed == 2 * (6 + 5 * 3)
    flow.encode(3 + 2 * values["init_x"])
    assert all(torch.equal(v, flow.state_dict()[k]) for k, v in flow.state_dict().items())


def waiting(flow):
    """Let the normalisations of a flow wait for a batch again."""
    state = flow.state_dict()
    flow.load_state_dict({k: v & False if k.endswith("ready") else v for k, v in state.items()})


def test_official_weights_of_another_flow_are_refused():
    values = golden("icnn3_cauchy_d4")
    with pytest.raises(UserError, match="check its architecture, dim, width and layers"):
        load_official(flow("icnn3_gauss_symm_d43"), values, "param/")
    without = {k: v for k, v in values.items() if k != "param/icnn.Wzs.1.bias"}
    with pytest.raises(UserError, match=r"potential\.positive\.0\.bias"):
        load_official(flow("icnn3_cauchy_d4"), without, "param/")
    with pytest.raises(UserError, match="hello"):
        load_official(flow("icnn3_cauchy_d4"), {**values, "param/hello": torch.ones(1)}, "param/")
