"""Every registered metric gives numbers that can be stored, and every number is explained."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from judge_subjects import SMALL, Scale, all_metrics, gaussian, optimal
from oracles import F64, Drift, GaussianOT, make, names

from flowzoo.continuous import Continuous
from flowzoo.data.oracles import Modes
from flowzoo.field import Gradient
from flowzoo.flow import Chain
from flowzoo.judge import Measure, evaluate
from flowzoo.judge.measure import quantile
from flowzoo.traces import Hutchinson

ROOT = Path(__file__).parents[1]


SUBJECTS = {
    "continuous": lambda dataset: optimal(dataset, torch.float32),
    "hutchinson": lambda dataset: optimal(dataset, trace=Hutchinson()),
    "gradient": lambda dataset: Continuous(Gradient(GaussianOT(dataset.dim, 1.3))),
    "chain": lambda dataset: Chain([optimal(dataset), Continuous(Drift(dataset.dim))]),
    "closed form": lambda dataset: Scale(dataset.dim),
}


# A root or another function of a mean; its interval is mapped with it.
NO_MEANS = {"map-error", "velocity-error", "matching-velocity-error"}
# What has nothing to say of a flow without trajectories, or of more than one.
NOTHING = {
    "closed form": {
        "transport",
        "path-energy",
        "straightness",
        "nfe",
        "velocity-error",
        "trace-error",
    },
    "chain": {"velocity-error"},
}
ELSEWHERE = {"elbo"}  # measures a probability flow alone: tests/test_score_sde_elbo.py
CLOCK = "repeatable"  # the check that a metric of times says it fails


def everything_known():
    """Return data of which all is known that a metric may ask for."""
    dataset = gaussian(2)
    oracle, data = dataset.oracle, dataset.load()
    modes = Modes(torch.ones(1, dtype=F64), oracle.mean[None], 1.0)
    known = {name: getattr(oracle, name) for name in ("transport", "matching_velocity")}
    return dataset, replace(
        data,
        oracle=SimpleNamespace(modes=modes, **known),
        bits_per_dim=lambda nll, x: nll / x.shape[1] / math.log(2) + 8,
    )


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("name", names("metric"))
def test_every_metric_gives_measures_that_can_be_stored(name, subject):
    dataset, data = everything_known()
    flow, metric = SUBJECTS[subject](dataset), make("metric", name, **SMALL)
    measures = evaluate(flow, data, metrics=[metric])
    again = evaluate(flow, data, metrics=[metric])
    if CLOCK in getattr(metric, "expected_failures", {}):
        assert measures.keys() == again.keys()
    else:
        assert measures == again
    assert (not measures) == (name in NOTHING.get(subject, ()) or name in ELSEWHERE)
    for key, measure in measures.items():
        assert measure.finite
        assert type(measure.value) is float
        assert measure.better in ("lower", "higher", None)
        assert isinstance(measure.unit, str)
        assert measure.note
        assert all(type(part) is float for part in measure.parts.values())
        assert Measure(**json.loads(json.dumps(asdict(measure), allow_nan=False))) == measure
        if measure.error is None:  # an exact count
            assert measure.unit in ("evaluations", "products")
            continue
        assert type(measure.error) is float
        assert measure.error >= 0
        errors = {k: measure.parts.get(k, 0.0) for k in ("sampling", "trace", "solver")}
        if key in NO_MEANS:
            assert measure.error >= max(errors.values())
        elif "solver" in measure.parts:
            random = quantile(len(data.test)) * math.hypot(errors["sampling"], errors["trace"])
            assert measure.error == pytest.approx(random + errors["solver"])


def test_every_number_is_explained():
    text = (ROOT / "docs" / "judging.md").read_text(encoding="utf-8")
    dataset, data = everything_known()
    measures = evaluate(optimal(dataset), data, metrics=all_metrics())
    assert len(measures) >= len(names("metric"))
    for name, measure in measures.items():
        for word in (name, *measure.parts):
            assert f"`{word}`" in text
