"""What is said of flows that were trained block by block: rows, tables, `fit`, progress."""

from __future__ import annotations

import csv
import io
import json
import re
import sys

import pytest
import torch
from rich.console import Console
from tiny_blocks import oval, record, run, stage, write_files

from flowzoo.bench.blocks import block_rows, block_tables, plain_rows, statements
from flowzoo.bench.claims import Claim
from flowzoo.bench.progress import progress_text
from flowzoo.bench.store import PROGRESS, RECORD
from flowzoo.bench.trained import load_trained
from flowzoo.cli import main
from flowzoo.errors import UserError
from flowzoo.flow import Chain
from flowzoo.registry import Registry
from flowzoo.training.progress import Progress, ProgressBar

FLOWS = ["again", "short", "noisy", "whole"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    torch.manual_seed(0)
    return run(tmp_path_factory.mktemp("blocks"), FLOWS)


@pytest.fixture
def flowzoo(monkeypatch, capfd):
    """Return a caller of the command in this process: exit code, standard output and error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["flowzoo", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capfd.readouterr())

    return call


def of(store, label):
    return next(r for r in store.records() if r.label == label)


# --- rows -------------------------------------------------------------------------------------


def test_rows_are_in_the_coordinates_of_the_data(store):
    known = of(store, "short")
    trained = load_trained(store.folder / known.folder)
    (row,) = block_rows(known)
    assert trained.scale is not None
    assert abs(trained.scale.ladj) > 0.1
    nll = -trained.log_prob(torch.tensor(oval(100))).double().mean()
    assert row["nll"] == pytest.approx(float(nll), abs=1e-5)
    nll = -trained.log_prob(torch.tensor(oval(200))).double().mean()
    assert row["train_nll"] == pytest.approx(float(nll), abs=1e-5)
    assert row["kl_decrease"] == known.stages[0]["kl_decrease"]


def test_rows_name_their_pass_and_end_with_the_whole_chain(store):
    known = of(store, "again")
    rows = block_rows(known)
    assert [(row["stage"], row["pass"]) for row in rows] == [
        ("block 1", ""), ("block 2", ""), ("block 3", ""),
        ("block 1, reparametrised 1", "reparametrised 1"),
        ("block 2, reparametrised 1", "reparametrised 1"),
        ("block 3, reparametrised 1", "reparametrised 1"),
        ("all blocks", ""),
    ]  # fmt: skip
    trained = load_trained(store.folder / known.folder)
    assert isinstance(trained.flow, Chain)
    nll = -trained.log_prob(torch.tensor(oval(100))).double().mean()
    assert rows[-1]["nll"] == pytest.approx(float(nll), abs=1e-5)


def test_other_flows_have_no_rows(store):
    assert of(store, "whole").stages
    assert block_rows(of(store, "whole")) == []
    with pytest.raises(UserError, match="no cell was trained block by block"):
        block_tables([of(store, "whole")])


# --- tables -----------------------------------------------------------------------------------


def test_a_table_for_each_cell(store):
    first, second, third = block_tables(store.records())
    assert first.corner == "again on file, seed 0"
    assert [line.label for line in first.lines][:2] == ["block 1", "block 2"]
    columns = ["h", "NLL (nats)", "KL decrease (nats)", "movement", "ratio", "round trip", "steps",
               "training (s)", "NFE forward"]  # fmt: skip
    assert list(first.columns) == columns
    values = [e.summary and e.summary.mean for e in first.lines[0].entries]
    row = block_rows(of(store, "again"))[0]
    names = ["h", "nll", "kl_decrease", "movement", "ratio", "round_trip", "steps", "seconds",
             "nfe_forward"]  # fmt: skip
    assert values == [row[name] for name in names]
    assert first.lines[-1].label == "all blocks"
    texts = [entry.text for entry in first.lines[-1].entries]
    assert texts[0] == texts[2] == texts[5] == "–"
    assert "–" not in (texts[1], texts[6])
    assert len(second.lines) == 1
    assert len(third.lines) == 3


def test_a_table_says_why_there_are_no_more_blocks(store):
    again, short, _ = block_tables(store.records())
    (entry, *_) = short.lines[0].entries
    assert "movement ratio" in short.footnotes[entry.notes[0]]
    assert not again.footnotes


@pytest.mark.parametrize("form", ["terminal", "markdown", "latex"])
def test_the_command_prints_every_cell(store, flowzoo, form):
    code, out, _ = flowzoo("table", store.folder, "--blocks", "--format", form)
    assert code == 0
    for label in ("again", "short", "noisy"):
        assert f"{label} on file, seed 0" in out
    assert "whole" not in out
    assert out.count("block 3") == 3  # twice again, once noisy
    nll = block_rows(of(store, "short"))[0]["nll"]
    assert f"{nll:.3f}" in out


def test_the_command_prints_chosen_cells_and_columns(store, flowzoo):
    code, out, _ = flowzoo("table", store.folder, "--blocks", "--flow", "noisy", "-m", "push_nfe")
    assert code == 0
    assert "again" not in out
    assert len(re.findall(r"block \d +│ +8 ", out)) == 3  # two steps of four stages
    assert "KL" not in out


def test_programs_get_one_list(store, flowzoo):
    expected = plain_rows(store.records())
    assert len(expected) == 11
    assert {row["flow"] for row in expected} == {"again", "short", "noisy"}
    code, out, _ = flowzoo("table", store.folder, "--blocks", "--format", "json")
    assert code == 0
    assert json.loads(out) == expected
    _, out, _ = flowzoo("table", store.folder, "--blocks", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [float(row["nll"]) for row in rows] == [row["nll"] for row in expected]
    assert rows[6]["block"] == ""
    _, out, _ = flowzoo("table", store.folder, "--blocks", "--format", "csv", "-m", "movement")
    assert out.splitlines()[0] == "flow,data,seed,stage,pass,block,movement"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-m", "movment"], "did you mean 'movement'"),
        (["--rows", "seed"], "leave out --rows"),
        (["--flow", "whole"], "no cell was trained block by block"),
        (["-m", "nlll", "--format", "csv"], "did you mean 'nll'"),
    ],
)
def test_what_cannot_be_shown_is_refused(store, flowzoo, arguments, said):
    code, out, err = flowzoo("table", store.folder, "--blocks", *arguments)
    assert (code, out) == (2, "")
    assert said in err


# --- the solver -------------------------------------------------------------------------------


def test_the_solver_and_its_gap_are_said(store):
    solver, gap = statements(of(store, "noisy"), Registry.installed())
    assert "One solver throughout" in solver
    assert "rk4 (steps 2); trace: hutchinson (samples 1)" in solver
    parts = of(store, "noisy").metrics["nll-own"]["parts"]
    assert f"{parts['own_minus_judge']:.2g} ± {parts['own_minus_judge_error']:.1g} nats" in gap
    assert "dopri5 at 1e-05" in gap


def test_a_solver_of_evaluation_is_said():
    spec = {"name": "continuous", "velocity": "mlp", "integrator": {"name": "rk4", "steps": 2}}
    known = record([], composition={"flow": {**spec, "evaluation": {"name": "rk4", "steps": 9}}})
    (said,) = statements(known, Registry.installed())
    assert said.startswith("Solved in training by rk4 (steps 2), in pushing, likelihood and "
                           "sampling by rk4 (steps 9)")  # fmt: skip
    known = record([], composition={"flow": {**spec, "name": "gone"}})
    assert statements(known, Registry.installed()) == []


# --- fit and its progress ---------------------------------------------------------------------


def test_fit_ends_with_the_blocks(flowzoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    common = ("oval.npz", "--recipes", "tiny.yaml", "--device", "cpu", "--out")
    code, out, err = flowzoo("fit", "again", *common, "blocks")
    assert code == 0
    again = json.loads(flowzoo("fit", "again", *common, "blocks", "--json")[1])
    assert len(again["stages"]) == 7
    h = again["stages"][4]["h"]
    assert h != 1.0
    assert re.search(rf"block 2, reparametrised 1 +│ +{h:.3f}", out)
    assert "One solver throughout, in training, pushing, likelihood and sampling: rk4" in out
    assert "Own NLL less the judge's" in out
    assert out.index("block 3") < out.index("\nnll ")
    assert "again all blocks 100% step 12" in err
    code, out, _ = flowzoo("fit", "whole", *common, "whole")
    assert code == 0
    assert out.startswith("nll ")


def test_a_running_cell_says_its_block(store, flowzoo):
    path = store.folder / of(store, "short").folder
    kept = (path / RECORD).read_text()
    said = {"phase": "train", "stage": "block 3, refined 1", "step": 7, "terms": {"movement": 0.5}}
    assert progress_text(said) == "block 3, refined 1  step 7  movement 0.5"
    claim = Claim.take(path)
    try:
        (path / RECORD).unlink()
        (path / PROGRESS).write_text(json.dumps(said))
        _, out, _ = flowzoo("status", store.folder)
    finally:
        (path / RECORD).write_text(kept)
        assert claim is not None
        claim.release()
    assert re.search(r"short .* running +block 3, refined 1", out)


def test_the_longest_stage_fits_a_narrow_terminal():
    text = io.StringIO()
    terms = {"potential": 1.0, "divergence": 0.1, "movement": 0.2}
    at = Progress("block 12, reparametrised 7", 90, 5000, 0.8, 60.0, 9, 9, terms, 2.5, 0.01)
    console = Console(file=text, width=80, force_terminal=True, color_system=None)
    with ProgressBar("jko-iflow", console) as bar:
        bar(at)
        assert bar._bars is not None
        bar._bars.refresh()
        shown = text.getvalue()
    assert "jko-iflow block 12, reparametrised 7" in shown
    assert " 80%" in shown


def test_the_bar_goes_on_over_stages(tmp_path):
    from tiny_flows import BlockByBlock, chain, fitted

    from flowzoo.settings import Budget

    seen = []
    fitted(chain(), BlockByBlock(), Budget(steps=60), observe=seen.append)
    assert [p.stage for p in seen] == ["block 0", "block 1", "block 2"]
    assert [p.fraction for p in seen] == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_a_null_is_a_dash():
    (table,) = block_tables([record([stage("block 1", 1, None, h=None)])])
    assert [entry.text for entry in table.lines[0].entries][:2] == ["–", "–"]
