"""Every registered metric gives numbers that can be stored, and every number is explained."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from judge_subjects import Scale, all_metrics, gaussian, optimal
from oracles import Drift, GaussianOT, make, names

from flowzoo.continuous import Continuous
from flowzoo.field import Gradient
from flowzoo.flow import Chain
from flowzoo.judge import Measure, evaluate
from flowzoo.traces import Hutchinson

ROOT = Path(__file__).parents[1]


SUBJECTS = {
    "continuous": lambda dataset: optimal(dataset, torch.float32),
    "hutchinson": lambda dataset: optimal(dataset, trace=Hutchinson()),
    "gradient": lambda dataset: Continuous(Gradient(GaussianOT(dataset.dim, 1.3))),
    "chain": lambda dataset: Chain([optimal(dataset), Continuous(Drift(dataset.dim))]),
    "closed form": lambda dataset: Scale(dataset.dim),
}


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("name", names("metric"))
def test_every_metric_gives_measures_that_can_be_stored(name, subject):
    dataset = gaussian(2)
    flow, metric = SUBJECTS[subject](dataset), make("metric", name)
    measures = evaluate(flow, dataset.load(), metrics=[metric])
    assert measures == evaluate(flow, dataset.load(), metrics=[metric])
    assert measures or subject == "closed form"
    for measure in measures.values():
        assert measure.finite
        assert type(measure.value) is float
        assert type(measure.error) is float
        assert measure.error >= 0
        assert measure.better in ("lower", "higher", None)
        assert isinstance(measure.unit, str)
        assert measure.note
        assert all(type(part) is float for part in measure.parts.values())
        errors = [measure.parts[k] for k in ("sampling", "solver") if k in measure.parts]
        assert measure.error == pytest.approx(math.hypot(*errors))
        assert Measure(**json.loads(json.dumps(asdict(measure), allow_nan=False))) == measure


def test_every_number_is_explained():
    text = (ROOT / "docs" / "judging.md").read_text(encoding="utf-8")
    dataset = gaussian(2)
    measures = evaluate(optimal(dataset), dataset.load(), metrics=all_metrics())
    assert len(measures) >= len(names("metric"))
    for name, measure in measures.items():
        for word in (name, *measure.parts):
            assert f"`{word}`" in text
