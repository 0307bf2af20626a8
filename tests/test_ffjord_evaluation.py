"""FFJORD trained with one tolerance and evaluated with another."""

from __future__ import annotations

import pytest
import torch
from oracles import gap

from flowzoo.build import build
from flowzoo.flow import Chain
from flowzoo.integrators import RK4
from flowzoo.objective import Batch, Likelihood
from flowzoo.registry import Registry
from flowzoo.settings import Budget, Optimizer, Training
from flowzoo.training import fit

LOOSE = {"name": "adjoint", "rtol": 1e-3, "atol": 1e-3}
FINE = {"name": "adjoint", "rtol": 1e-7, "atol": 1e-7}


def flow_of(**options):
    torch.manual_seed(3)
    spec = {
        "name": "continuous",
        "velocity": {"name": "odenet", "hidden": [8, 8]},
        "trace": "exact",
        "end_time": 0.5,
        **options,
    }
    flow = build("flow", spec, Registry.installed(), dim=2).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.mul_(4)
    return flow


@pytest.fixture
def flows():
    return {
        "both": flow_of(integrator=LOOSE, evaluation=FINE),
        "loose": flow_of(integrator=LOOSE),
        "fine": flow_of(integrator=FINE),
    }


def test_each_mode_has_its_tolerance(flows, places):
    x = 2 * places(20, 2)
    with torch.no_grad():
        exact = flows["loose"].with_numerics(RK4(400)).log_prob(x)
        for mode, like in ((True, "loose"), (False, "fine")):
            both = flows["both"].train(mode)
            other = flows[like].train(mode)
            assert torch.equal(both.log_prob(x), other.log_prob(x))
            assert torch.equal(both.decode(x), other.decode(x))
            assert both.encode(x).nfe == other.encode(x).nfe
        off = {mode: gap(flows["both"].train(mode).log_prob(x), exact) for mode in (True, False)}
    assert off[False] < 1e-6 < 1e-5 < off[True]
    judged = flows["both"].eval().with_numerics(RK4(3))
    assert torch.equal(judged.log_prob(x), flows["fine"].with_numerics(RK4(3)).log_prob(x))


def test_a_chain_hands_the_mode_on(flows, places):
    x = places(5, 2)
    for mode, like in ((True, "loose"), (False, "fine")):
        pair = Chain([flows["both"], flows["both"]]).train(mode)
        other = Chain([flows[like], flows[like]]).train(mode)
        assert torch.equal(pair.log_prob(x), other.log_prob(x))


def test_training_steps_and_validation_use_their_own(flows, places):
    """Two fits differ in what validation measures, and in nothing that training does."""
    data, validation = Batch(places(50, 2).double()), Batch(2 * places(20, 2, 1))
    settings = Training(
        batch_size=20,
        optimizer=Optimizer(lr=1e-3),
        validate_every=3,
        precision="float64",
        keep="last",
    )
    measured = {}
    for name in ("both", "loose", "fine"):
        fitted = fit(
            flows[name], Likelihood(), data, validation, training=settings, budget=Budget(steps=3)
        )
        measured[name] = fitted.curve[-1]["validation"]
    trained = {name: list(flow.parameters()) for name, flow in flows.items()}
    assert gap(trained["both"], trained["loose"]) == 0
    assert gap(trained["both"], trained["fine"]) > 0
    exact = -flows["both"].with_numerics(RK4(200)).log_prob(validation.x).mean().item()
    assert measured["both"] == pytest.approx(exact, abs=1e-6)
    assert measured["loose"] != pytest.approx(exact, abs=1e-6)
