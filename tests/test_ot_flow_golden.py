"""The OT-Flow potential and its flow against golden values of the published code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import F64, gap, gradients

from flowzoo.continuous import Continuous
from flowzoo.errors import UserError
from flowzoo.field import Gradient
from flowzoo.flow import log_normal
from flowzoo.integrators import RK1, RK4
from flowzoo.objective import Batch, Likelihood
from flowzoo.regularizers import HJB, Transport
from flowzoo.traces import Exact
from flowzoo_ot_flow.official import load_official, our_name
from flowzoo_ot_flow.potential import ResNetPotential

GOLDEN = Path(__file__).parent / "golden" / "otflow"
FILES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
COSTS = (Transport(), HJB())


class Golden:
    """The published potential of one file, and the flow along its gradient."""

    def __init__(self, name):
        with np.load(GOLDEN / f"{name}.npz") as file:
            self.values = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
        d, m, layers = (int(self.values[key]) for key in ("d", "m", "nTh"))
        self.potential = ResNetPotential(d, m, layers).to(F64)
        load_official(self.potential, self.values, "param/")
        self.alpha = self.values["alph"].tolist()
        self.velocity = Gradient(self.potential, scale=self.alpha[0])
        self.flow = Continuous(self.velocity, RK4(int(self.values["nt"])), Exact())
        self.x = self.values["x"]

    def __getitem__(self, key):
        return self.values[key]


@pytest.fixture(scope="module", params=FILES)
def golden(request):
    return Golden(request.param)


def test_all_golden_files_are_there():
    assert FILES == ["miniboone", "mnist128", "rand_nTh4_d5_m16", "swissroll"]


def test_golden_values_at_points(golden):
    for i, time in enumerate(golden["t_points"]):
        at = golden.potential.at(time, golden.x)
        first = torch.cat((at.gradient, at.phi_t[:, None]), 1)
        assert gap(golden.potential(time, golden.x), golden["phi"][i]) < 1e-12
        assert gap(first, golden["grad"][i]) < 1e-12
        assert gap(golden.potential.gradient(time, golden.x), golden["grad"][i][:, :-1]) < 1e-12
        assert gap(at.hessian.trace(), golden["tr_hess"][i]) < 1e-12


def test_golden_right_hand_side(golden):
    for i, time in enumerate(golden["t_points"]):
        at = golden.velocity.at(time, golden.x)
        rates = torch.stack([cost.rate(at, None) for cost in COSTS], 1)
        ours = torch.cat((at.v, Exact()(at.jacobian, None)[:, None], rates), 1)
        d = golden.potential.dim
        for block in (slice(0, d), d, d + 1, d + 2):
            assert gap(ours[:, block], golden["rhs"][i][:, block]) < 1e-12


def test_golden_flow(golden):
    with torch.no_grad():
        encoded = golden.flow.encode(golden.x, COSTS)
        back, generated = golden.flow.decode(golden["rk4_zT"]), golden.flow.decode(golden.x)
        stretched = golden.flow.decode(golden["rk4_zT"] * (1 + 1e-14))
        euler = golden.flow.with_numerics(RK1(int(golden["nt"]))).encode(golden.x, COSTS)
    assert gap(encoded.z, golden["rk4_zT"]) < 1e-11
    assert gap(encoded.ladj, golden["rk4_l"]) < 1e-11
    assert gap(encoded.costs[:, 0], golden["rk4_L"]) < 1e-11
    assert gap(encoded.costs[:, 1], golden["rk4_R"]) < 1e-11
    assert gap(-log_normal(encoded.z) - encoded.ladj, golden["nll_per_sample"]) < 1e-11
    # Far from the data mnist128 stretches rounding errors: z (1 + 1e-14) comes back 1e-9 away.
    assert gap(back, golden["rk4_inv_x"]) < 1e-11 + gap(stretched, back)
    assert gap(generated, golden["gen_from_x"]) < 1e-11
    assert gap(torch.column_stack((euler.z, euler.ladj, euler.costs)), golden["rk1_zlLR"]) < 1e-11


def objective(golden, flow):
    a = golden.alpha
    return Likelihood(a[1], [Transport(a[0]), HJB(a[2])]).loss(flow, Batch(golden.x))


def test_golden_objective_and_its_gradient(golden):
    loss = objective(golden, golden.flow)
    terms = torch.stack([loss.terms[name] for name in ("Transport", "nll", "HJB")])
    assert gap(loss.total.detach(), golden["J"]) < 1e-12
    assert gap(terms, golden["mean_L_C_R"]) < 1e-12
    names = dict(golden.potential.named_parameters())
    ours = dict(zip(names, gradients(loss.total, names.values()), strict=True))
    official = [key[3:] for key in golden.values if key.startswith("dJ/") and key != "dJ/c.bias"]
    assert {our_name(key) for key in official} == set(ours)
    for key in official:
        expected = golden[f"dJ/{key}"].reshape(ours[our_name(key)].shape)
        assert gap(ours[our_name(key)], expected) < 1e-10, key


@pytest.mark.parametrize("name", ["swissroll", "rand_nTh4_d5_m16"])
def test_recomputation_gives_the_same_gradient(name):
    golden = Golden(name)
    parameters = list(golden.potential.parameters())
    again = golden.flow.with_numerics(RK4(int(golden["nt"]), recompute=True))
    expected = gradients(objective(golden, golden.flow).total, parameters)
    found = gradients(objective(golden, again).total, parameters)
    for a, b in zip(found, expected, strict=True):
        assert gap(a, b) < 1e-12


def test_official_weights_that_do_not_fit_are_refused(places):
    golden = Golden("swissroll")
    state = {k[6:]: v for k, v in golden.values.items() if k.startswith("param/")}
    with pytest.raises(UserError, match="width"):
        load_official(ResNetPotential(2, 16), state)
    with pytest.raises(UserError, match="layers"):
        load_official(ResNetPotential(2, 32, 3), state)
    with pytest.raises(UserError, match="hello"):
        load_official(ResNetPotential(2, 32), {**state, "hello": torch.zeros(1)})
