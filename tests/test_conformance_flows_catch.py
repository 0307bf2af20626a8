"""The checks of flows: each wrong flow fails the check meant for it, the right ones fail none."""

from __future__ import annotations

import pytest
import wrong_flow_manners
import wrong_flows
from right_flows import Density, Right

from flowzoo.conformance.check import Check
from flowzoo.conformance.finding import specimens
from flowzoo.conformance.promises import flows
from flowzoo.conformance.runner import run
from flowzoo.conformance.specimen import Specimen
from flowzoo.flow import Flow
from flowzoo.registry import Registry

CHECKS = [value for value in vars(flows).values() if isinstance(value, Check)]
WRONG = [
    cls
    for module in (wrong_flows, wrong_flow_manners)
    for cls in vars(module).values()
    if getattr(cls, "fails", ()) and cls.__module__ == module.__name__
]
NET = {"name": "mlp", "hidden": [8]}
EXAMPLES = {
    "plain": {"velocity": NET},
    "gradient": {"velocity": {"name": "gradient", "potential": NET}, "train_end_time": True},
    "adaptive": {"velocity": NET, "integrator": "dopri5", "trace": "hutchinson"},
    "adjoint": {"velocity": NET, "integrator": "adjoint", "end_time": 0.5},
    "recomputed": {
        "velocity": NET,
        "integrator": {"name": "rk4", "recompute": True},
        "trace": {"name": "hutchinson", "redraw": "stage"},
    },
    "kinked": {"velocity": {**NET, "activation": "relu"}},
}


def results(specimen):
    return {check.name: run(specimen, check) for check in CHECKS}


def failures(found):
    return {name: result for name, result in found.items() if result.outcome == "fail"}


def said(found):
    return "\n".join(f"{r.check}: {r.detail} {r.traceback}" for r in found.values())


@pytest.mark.parametrize("wrong", WRONG, ids=lambda cls: cls.__name__)
def test_a_wrong_flow_is_caught_by_the_check_meant_for_it(wrong):
    specimen, *_ = specimens([wrong])  # the first of the examples that it inherits
    failed = failures(results(specimen))
    allowed = {*wrong.fails, *getattr(wrong, "may_fail", ())}
    assert set(wrong.fails) <= set(failed) <= allowed, said(failed)


@pytest.mark.parametrize("right", [Right, Density], ids=lambda cls: cls.__name__)
def test_a_right_flow_keeps_all_promises(right):
    (specimen,) = specimens([right])
    found = results(specimen)
    assert not failures(found), said(failures(found))
    skipped = {name for name, result in found.items() if result.outcome == "skip"}
    latent = {"round-trip", "ladj", "ladj-inverse"}
    assert skipped == {"own-noise", "numerics", *(() if right.latent else latent)}


@pytest.mark.parametrize("example", EXAMPLES)
def test_continuous_flows_keep_all_promises(example):
    registry = Registry.installed()
    spec = {"name": "continuous", **EXAMPLES[example]}
    cls = registry.load("flow", "continuous")
    failed = failures(results(Specimen("flow", example, spec, cls, registry)))
    assert not failed, said(failed)


@pytest.mark.parametrize("name", ["chain", "moving-batch-norm"])
def test_flows_of_several_kinds_keep_all_promises(name):
    registry = Registry.installed()
    blocks = ["moving-batch-norm", {"name": "continuous", "velocity": NET}]
    spec = {"name": name, **({"blocks": blocks} if name == "chain" else {})}
    cls = registry.load("flow", name)
    failed = failures(results(Specimen("flow", name, spec, cls, registry)))
    assert not failed, said(failed)


def test_every_check_catches_something():
    assert {wrong.fails[0] for wrong in WRONG} == {check.name for check in CHECKS}


def test_every_check_says_what_is_promised():
    assert len({check.name for check in CHECKS}) == len(CHECKS) == 24
    for check in CHECKS:
        assert check.kind == Flow.kind
        assert check.about.endswith(".")
