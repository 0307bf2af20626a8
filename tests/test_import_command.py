"""`flowzoo import`: published numbers from published weights, and a folder like one of `fit`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml

from flowzoo.cli import main

GOLDEN = Path(__file__).parent / "golden" / "otflow"
ROLL = GOLDEN / "swissroll.npz"
FEW = "{name: swissroll, train: 100, val: 100, test: 1000}"


class Said(NamedTuple):
    """What a call of the command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def flowzoo(monkeypatch, capfd, tmp_path):
    """Return a caller of the command in this process and an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["flowzoo", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = Said(ended.value.code or 0, *capfd.readouterr())
        assert "Traceback" not in said.out + said.err
        return said

    return call


def checkpoint(path, state=None, **settings):
    """Write the swiss-roll weights as the published code does."""
    with np.load(ROLL) as file:
        own = {k[6:]: torch.from_numpy(file[k]) for k in file.files if k.startswith("param/")}
    given = {"alph": [1.0, 30.0, 15.0], "nt": 12, "data": "swissroll", **settings}
    torch.save({"state_dict": own | (state or {}), "args": argparse.Namespace(**given)}, path)


def test_the_published_swiss_roll(flowzoo):
    """C = 2.677 on 20,000 fresh points, whose standard error is 0.0054 (the authors' code)."""
    rows = "{name: swissroll, test: 4000}"
    said = flowzoo("import", "ot-flow", ROLL, rows, "--out", "f", "--steps", 12, "--json")
    assert said.code == 0, said.err
    metrics = json.loads(said.out)["metrics"]
    nll = metrics["nll"]
    ours, theirs = nll["parts"]["sampling"], 0.0054
    assert ours < 0.015
    assert abs(nll["value"] - 2.677) < 3 * (ours**2 + theirs**2) ** 0.5
    # The authors' code on these very points: with 128 steps, and with the 12 of the checkpoint.
    assert abs(nll["value"] - 2.6995014314) < 1e-4
    assert abs(metrics["nll-own"]["value"] - 2.6995009059) < 1e-4  # 1,000 points, paired
    assert abs(metrics["transport"]["value"] - 0.2921369532) < 1e-4
    assert 0.005 < metrics["kl"]["value"] < 0.03


def test_the_published_miniboone(flowzoo):
    """The authors' code on the first 20 test rows, with 256 and with 18 steps."""
    weights, rows = GOLDEN / "miniboone.npz", "{name: miniboone, rows: 100}"
    said = flowzoo("import", "ot-flow", weights, rows, "--out", "f", "--steps", 18, "--json")
    metrics = json.loads(said.out)["metrics"]
    assert abs(metrics["nll"]["value"] - 8.9663884939) < 2e-3
    assert abs(metrics["nll-own"]["value"] - 8.9661536324) < 1e-9
    assert abs(metrics["transport"]["value"] - 17.4734864153) < 1e-3
    assert metrics["nll"]["error"] > 1  # twenty rows say little


def test_a_checkpoint_becomes_a_folder_like_one_of_fit(flowzoo, tmp_path):
    checkpoint("c.pth")
    said = flowzoo("import", "ot-flow", "c.pth", FEW, "--out", "f", "--device", "cpu")
    assert said.code == 0, said.err
    assert "OT-Flow (published weights): 2 dimensions, 1228 parameters, float64" in said.out
    assert "trained on swissroll, in its published coordinates" in said.out
    assert re.search(r"^nll +2\.67\d+ +± 0\.0\d+ +nats", said.out, re.MULTILINE)
    cell = yaml.safe_load((tmp_path / "f" / "cell.yaml").read_text())
    assert cell["flow_spec"]["integrator"] == {"name": "rk4", "steps": 12}
    record = json.loads((tmp_path / "f" / "record.json").read_text())
    assert record["state"] == "ok"
    scores = json.loads(flowzoo("score", "f", "--json").out)
    assert scores == record["metrics"]
    rows = np.loadtxt(flowzoo("sample", "f", "-n", 50).out.splitlines(), delimiter=",")
    assert rows.shape == (50, 2)
    assert np.abs(rows).max() < 5


def test_again_it_is_the_same_and_another_is_refused(flowzoo, tmp_path):
    checkpoint("c.pth")
    call = ("import", "ot-flow", "c.pth", FEW, "--out", "f")
    assert flowzoo(*call).code == 0
    before = (tmp_path / "f" / "flow.safetensors").read_bytes()
    assert flowzoo(*call).code == 0
    assert flowzoo(*call, "--steps", 3).err == (
        "error: f holds another flow; choose another folder or remove it\n"
    )
    checkpoint("c.pth", {"A": torch.zeros(3, 3, dtype=torch.float64)})
    assert flowzoo(*call).code == 2
    assert "holds another flow" in flowzoo("fit", "ot-flow", "moons", "--out", "f").err
    assert (tmp_path / "f" / "flow.safetensors").read_bytes() == before


def test_rows_are_not_standardised_again(flowzoo, tmp_path):
    rows = 3.0 + 2.0 * np.random.default_rng(0).normal(size=(1000, 2))
    np.save(tmp_path / "rows.npy", rows)
    said = flowzoo("import", "ot-flow", ROLL, "rows.npy", "--out", "f", "--json")
    record = json.loads(said.out)
    assert record["dataset"]["standardised"] is None
    assert record["dataset"]["spec"]["standardise"] is False
    assert json.loads(flowzoo("score", "f", "--json").out) == record["metrics"]
    # Such points are far from the swiss roll; standardised they would be near its middle.
    assert record["metrics"]["nll"]["value"] > 10


def test_parts_can_be_changed(flowzoo, tmp_path):
    changes = ("--steps", 5, "--set", "trace=hutchinson", "--set", "scale=1.5")
    assert flowzoo("import", "ot-flow", ROLL, FEW, "--out", "f", *changes).code == 0
    spec = yaml.safe_load((tmp_path / "f" / "cell.yaml").read_text())["flow_spec"]
    assert spec["integrator"]["steps"] == 5
    assert spec["trace"] == "hutchinson"
    assert spec["velocity"]["scale"] == 1.5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("otflow c.pth swissroll", "IMPORTER: unknown importer 'otflow'; did you mean 'ot-flow'?"),
        ("ot-flow absent.pth swissroll", "there is no file absent.pth"),
        ("ot-flow c.h5 swissroll", "c.h5 is no file of weights"),
        ("ot-flow other.pth swissroll", "these are no weights of OT-Flow: there is no A"),
        ("ot-flow nan.pth swissroll", "1 of velocity.* are not finite"),
        ("ot-flow c.pth swisroll", "DATA: unknown dataset 'swisroll'; did you mean 'swissroll'?"),
        ("ot-flow c.pth miniboone", "miniboone has 43 columns, but the weights are of 2 dim"),
        ("ot-flow c.pth absent.csv", "no file .*absent.csv"),
        ("ot-flow c.pth swissroll --set trac=exact", "no part 'trac'; did you mean 'trace'?"),
        ("ot-flow c.pth swissroll --set trace=exat", "flow.trace: .*did you mean 'exact'?"),
        ("ot-flow c.pth swissroll --set trace", "--set trace: expected KEY=VALUE"),
        ("ot-flow c.pth swissroll --set width=33", "the weights do not fit the flow: size mism"),
        ("ot-flow c.pth swissroll --set steps=0", "at least one step, got steps=0"),
        ("ot-flow c.pth swissroll --steps 0", "'--steps': 0 is not in the range"),
        ("ot-flow c.pth swissroll --device banana", "unknown device 'banana'"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(flowzoo, tmp_path, arguments, expected):
    checkpoint("c.pth")
    checkpoint(
        "nan.pth", {"w.weight": torch.full((1, 32), 1.0).index_fill(1, torch.tensor(3), torch.nan)}
    )
    torch.save({"hello": torch.ones(1)}, "other.pth")
    Path("c.h5").write_text("x")
    said = flowzoo("import", *arguments.split(), "--out", "f")
    assert said.code == 2
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert re.search(expected.replace("?", r"\?"), line), line
    assert not (tmp_path / "f").exists()


def test_numbers_that_cannot_be_had_are_told(flowzoo, tmp_path):
    checkpoint("c.pth", {"A": torch.full((3, 3), 1e200, dtype=torch.float64)})
    said = flowzoo("import", "ot-flow", "c.pth", FEW, "--out", "f")
    assert said.code == 1
    assert said.err.startswith("diverged: ")
    assert json.loads((tmp_path / "f" / "record.json").read_text())["state"] == "diverged"


def test_the_example_of_the_docs(flowzoo, tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "importing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (plugin,) = (text for text in blocks if "flowzoo_components" in text)
    Path("mine.py").write_text(plugin)
    own = {"first.weight": (4, 3), "first.bias": 4, "last.weight": (2, 4), "last.bias": 2}
    np.savez("w.npz", **{name: np.full(shape, 0.1) for name, shape in own.items()}, steps=5)
    call = ("import", "my-code", "w.npz", FEW, "--out", "f", "--plugin", "mine.py")
    said = flowzoo(*call)
    assert said.code == 0, said.err
    assert "my-code-imported: 2 dimensions, 26 parameters, float64" in said.out
    cell = yaml.safe_load((tmp_path / "f" / "cell.yaml").read_text())
    assert cell["plugins"] == [str(tmp_path / "mine.py")]
    assert flowzoo("check", "my-code", "--plugin", "mine.py", "--jobs", 1).code == 0
    assert flowzoo("score", "f", "-m", "nll").code == 0
