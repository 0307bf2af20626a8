"""The Monge-Ampere potential and its flow against golden values of the published code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import F64, gap, gradients

from flowzoo.continuous import Continuous
from flowzoo.errors import UserError
from flowzoo.field import Gradient
from flowzoo.integrators import RK4
from flowzoo.objective import Batch, Likelihood
from flowzoo.traces import Exact
from flowzoo_monge_ampere.official import load_official, our_name
from flowzoo_monge_ampere.potential import MongeAmpere

GOLDEN = Path(__file__).parent / "golden" / "ffjord"
FILES = sorted(path.stem for path in GOLDEN.glob("monge_ampere_*.npz"))


class Golden:
    """The published potential of one file, and the flow along its gradient."""

    def __init__(self, name):
        with np.load(GOLDEN / f"{name}.npz") as file:
            self.values = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
        width, dim = self["w::fc1.weight"].shape
        self.potential = MongeAmpere(dim, width, symmetric=bool(self["use_z2"])).to(F64)
        load_official(self.potential, self.values, "w::")
        self.x, self.flow = self["x"], self.flow_along(1.0)

    def flow_along(self, scale):
        """Return the flow with v = -grad u / scale, solved with the published steps."""
        steps, size = int(self["Nsteps"]), float(self["epsilon"])
        velocity = Gradient(self.potential, scale)
        return Continuous(velocity, RK4(steps), Exact(), end_time=steps * size)

    def __getitem__(self, key):
        return self.values[key]


@pytest.fixture(scope="module", params=FILES)
def golden(request):
    return Golden(request.param)


def test_both_golden_files_are_there():
    assert FILES == ["monge_ampere_simple_mlp_z20", "monge_ampere_simple_mlp_z21"]
    assert [Golden(name).potential.symmetric for name in FILES] == [False, True]


def test_golden_values_at_points(golden):
    t = torch.tensor(0.3, dtype=F64)
    at = golden.potential.at(t, golden.x)
    assert gap(golden.potential(t, golden.x), golden["u"]) < 1e-13
    assert gap(at.gradient, golden["grad_u"]) < 1e-13
    assert gap(golden.potential.gradient(t, golden.x), golden["grad_u"]) < 1e-13
    assert gap(at.hessian.trace(), golden["laplacian_u"]) < 1e-13


def test_golden_likelihood_and_its_gradient(golden):
    loss = Likelihood().loss(golden.flow, Batch(golden.x)).total
    assert gap(-golden.flow.log_prob(golden.x), golden["nll"]) < 1e-13
    names = dict(golden.potential.named_parameters())
    ours = dict(zip(names, gradients(loss, names.values()), strict=True))
    official = {key[6:]: value for key, value in golden.values.items() if key[:6] == "grad::"}
    assert {our_name(key) for key in official} == set(ours)
    for key, expected in official.items():
        found = ours[our_name(key)]
        assert gap(found, expected.reshape(found.shape)) < 1e-12, key


def test_the_published_code_generates_along_plus_the_gradient(golden):
    with torch.no_grad():
        pushed = golden.flow_along(-1.0).encode(golden.x)
        back = golden.flow.encode(golden["push_x"])
        assert gap(golden.flow.decode(golden.x), golden["push_x"]) < 1e-13
    assert gap(pushed.z, golden["push_x"]) < 1e-13
    assert gap(-pushed.ladj, golden["push_logp"]) < 1e-13  # what the log-density gains on the way
    # The way back has stages of its own: equal up to the error of the solver.
    assert gap(back.z, golden.x) < 1e-8
    assert gap(back.ladj, golden["push_logp"]) < 1e-6


def test_official_weights_of_a_saved_flow_are_read():
    golden = Golden(FILES[0])
    state = {f"net.{k[3:]}": v for k, v in golden.values.items() if k.startswith("w::")}
    again = MongeAmpere(golden.potential.dim, golden.potential.a.shape[0]).to(F64)
    load_official(again, {**state, "step": torch.ones(1)}, "net.")
    for name, value in golden.potential.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


@pytest.mark.parametrize(
    ("potential", "more", "said"),
    [
        (MongeAmpere(5, 7), {}, "width"),
        (MongeAmpere(5, 11, symmetric=True), {}, "symmetric.*opening.bias"),
        (MongeAmpere(5, 11), {"hello": torch.zeros(1)}, "hello"),
    ],
)
def test_official_weights_that_do_not_fit_are_refused(potential, more, said):
    state = {k[3:]: v for k, v in Golden(FILES[0]).values.items() if k.startswith("w::")}
    with pytest.raises(UserError, match=said):
        load_official(potential, {**state, **more})
