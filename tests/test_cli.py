"""The command: what it prints, how it ends, what it says when it is used wrongly."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flowzoo.cli import COMMANDS, cli, main
from flowzoo.recipes import load_recipes
from flowzoo.registry import Registry

QUICKSTART = Path(__file__).parent.parent / "benchmarks" / "quickstart.yaml"
FAKES = Path(__file__).parent / "bench_fakes" / "fakes.py"
GAUSSIAN = "{name: gaussian, dim: 2, train: 200, val: 50, test: 100}"
TINY = ("--set", "training.validate_every=10", "--set", "training.batch_size=50", "--device", "cpu")


class Said(NamedTuple):
    """What a call of the command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def flowzoo(monkeypatch, capfd):
    """Return a caller of the command in this process; whatever it says has no traceback."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["flowzoo", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = Said(ended.value.code or 0, *capfd.readouterr())
        assert "Traceback" not in said.out + said.err
        assert "\x1b" not in said.out + said.err  # no escape codes where there is no terminal
        return said

    return call


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(said):
    """Return the lines of a refusal, each without its `error: `."""
    assert said.code == 2
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines
    assert all(line.startswith("error: ") for line in lines), said.err
    return [line.removeprefix("error: ") for line in lines]


# What there is


def test_help_and_lists_do_not_import_torch():
    quick = [["--help"], ["--version"], ["list"], ["list", "trace"], ["list", "recipe"]]
    quick += [["list", "--json"], ["show", "ot-flow-moons", "--json"], ["plan", str(QUICKSTART)]]
    quick += [[name, "--help"] for name in COMMANDS]
    program = (
        "import json, sys\n"
        "from flowzoo.cli import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['flowzoo', *arguments]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as ended:\n"
        "        assert not ended.code, arguments\n"
        "    assert 'torch' not in sys.modules, arguments\n"
    )
    command = [sys.executable, "-c", program, json.dumps(quick)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_help_has_examples_on_lines_of_their_own(flowzoo):
    for name in COMMANDS:
        said = flowzoo(name, "--help")
        assert said.code == 0
        examples = said.out.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
        assert examples, name
        assert all(line.startswith(f"    flowzoo {name} ") or line == f"    flowzoo {name}"
                   for line in examples), said.out  # fmt: skip
        assert max(map(len, said.out.splitlines())) <= 80


def test_no_arguments_show_the_commands(flowzoo):
    said = flowzoo()
    assert said.code == 0
    assert said.out == flowzoo("--help").out
    for name in COMMANDS:
        (line,) = re.findall(rf"^  {name} .*$", said.out, re.MULTILINE)
        assert line.endswith("."), "a summary that had to be cut"


def test_list_has_every_kind_name_and_recipe(flowzoo):
    said = flowzoo("list")
    words = set(re.split(r"[\s,]+", said.out))
    registry = Registry.installed()
    assert {*registry.kinds(), *(c.name for c in registry.components()), *load_recipes()} <= words
    for kind in [*registry.kinds(), "recipe"]:
        names = [*load_recipes()] if kind == "recipe" else registry.names(kind)
        rows = json.loads(flowzoo("list", kind, "--json").out)
        assert sorted(row["name"] for row in rows) == sorted(names)
        assert all(row["about"] and row["origin"] and row["state"] == "ok" for row in rows)
        text = flowzoo("list", kind).out
        assert all(re.search(rf"^{re.escape(name)} ", text, re.MULTILINE) for name in names)


def test_show_says_what_a_name_means(flowzoo):
    said = flowzoo("show", "ot-flow").out  # a recipe and a potential
    assert "recipe ot-flow" in said
    assert "potential ot-flow" in said
    (shown,) = json.loads(flowzoo("show", "trace/hutchinson", "--json").out)
    assert {option["name"]: option["default"] for option in shown["options"]} == {
        "noise": "rademacher", "samples": "1", "redraw": "solve"
    }  # fmt: skip
    assert "References:" in shown["about"]


def test_plugins_counts_what_works(flowzoo):
    said = flowzoo("plugins", "--json")
    assert said.code == int(any(row["state"] != "ok" for row in json.loads(said.out)))
    mine = [row for row in json.loads(said.out) if row["origin"].startswith("flowzoo ")]
    assert {row["state"] for row in mine} == {"ok"}
    assert f"{len(mine)} ok, 0 broken" in flowzoo("plugins").out


def test_plan_lists_the_cells(flowzoo, here):
    rows = json.loads(flowzoo("plan", QUICKSTART, "--json").out)
    assert {row["state"] for row in rows} == {"not-run"}
    assert len({row["folder"] for row in rows}) == len(rows)
    said = flowzoo("plan", QUICKSTART).out
    assert f"Quickstart: {len(rows)} cells" in said
    assert all(re.search(rf"^{row['flow']} +{row['data']} ", said, re.MULTILINE) for row in rows)
    assert not [*here.iterdir()]


# Refusals


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("lst", "unknown command 'lst'; did you mean 'list'?"),
        ("list trac", "unknown kind 'trac'; did you mean 'trace'?"),
        ("list --plugin absent.py", "cannot read the plugin file .*absent.py"),
        ("show hutchinsn", "unknown name 'hutchinsn'; did you mean 'hutchinson'?"),
        ("show trace/exat", "unknown trace 'exat'; did you mean 'exact'?"),
        ("show trac/exact", "unknown kind 'trac'; did you mean 'trace'?"),
        ("plan absent.yaml", "cannot read absent.yaml: No such file"),
        ("plan folder", "cannot read folder: Is a directory"),
        ("plan empty.yaml", "empty.yaml: expected a mapping with flows and data"),
        ("plan list.yaml", "list.yaml: expected a mapping with flows and data"),
        ("plan binary.yaml", "binary.yaml: not valid YAML"),
        ("plan open.yaml", "open.yaml: line 2: not valid YAML"),
        ("run right.yaml --jobs 0", "'--jobs'.* 0 is not in the range"),
        ("run right.yaml --device banana", "unknown device 'banana'; use auto, cpu, cuda"),
        ("run right.yaml --rerun oks", "cannot rerun 'oks'; did you mean 'ok'?"),
        ("run right.yaml --out empty.yaml", "cannot use empty.yaml"),
        ("status absent", "absent holds no run"),
        ("table .", "holds no run"),
        ("draw folder", "folder holds no run"),
        ("table absent --format pdf", "'pdf' is not one of 'terminal'"),
        ("fit ot-flw moons --out f", "RECIPE: unknown recipe 'ot-flw'; did you mean 'ot-flow'?"),
        ("fit ot-flow mons --out f", "DATA: unknown dataset 'mons'; did you mean 'moons'?"),
        ("fit ot-flow {name:moons,trian:3} --out f", "DATA trian: .* did you mean 'train'?"),
        ("fit ot-flow {name:moons --out f", "DATA: .*not valid YAML"),
        ("fit ot-flow absent.csv --out f", "no file .*absent.csv"),
        ("fit ot-flow nan.csv --out f", "nan.csv.* row 5"),
        ("fit ot-flow moons", "Missing option '--out'; see flowzoo fit --help"),
        ("fit ot-flow moons --out f --set lr", "--set lr: expected KEY=VALUE"),
        ("fit ot-flow moons --out f --set =1", "--set =1: expected KEY=VALUE"),
        ("fit ot-flow moons --out f --set a=[1", "--set a: .*not valid YAML"),
        ("fit ot-flow moons --out f --set trac=exact", "--set trac: .* no part 'trac'"),
        ("fit ot-flow moons --out f --set flow.trace=exat", "--set.*did you mean 'exact'"),
        ("fit ot-flow moons --out f --set training.batch_size=many", "got 'many'"),
        ("fit ot-flow moons --out f --steps 0", "'--steps': 0 is not in the range"),
        ("fit ot-flow moons --out f --seed -1", "'--seed': -1 is not in the range"),
        ("fit ot-flow moons --out f --device banana", "unknown device 'banana'"),
        ("fit ot-flow moons --out f --recipes absent.yaml", "--recipes: cannot read .*absent.yaml"),
        ("fit ot-flow moons --out f --plugin absent.py", "--plugin: cannot read .*absent.py"),
        ("fit ot-flow moons --out empty.yaml", "cannot use empty.yaml"),
        ("fit flow-matching moons --out f --set trace=slq", "SLQ needs symmetric of the velocity"),
        ("fit ffjord moons --out f --set objective.regularizers=[hjb]", "HJB needs phi_t"),
        ("sample absent", "absent holds no trained flow"),
        ("sample folder", "folder holds no trained flow"),
        ("score folder", "folder holds no trained flow"),
        ("sample folder -n 0", "0 is not in the range"),
    ],
)
def test_a_mistake_is_one_sentence(flowzoo, here, arguments, expected):
    (here / "folder").mkdir()
    (here / "empty.yaml").touch()
    (here / "list.yaml").write_text("[1, 2]\n")
    (here / "open.yaml").write_text("flows: [ot-flow\n")
    (here / "binary.yaml").write_bytes(bytes(range(256)))
    (here / "right.yaml").write_text(f"flows: [ot-flow]\ndata: [{GAUSSIAN}]\n")
    rows = np.random.default_rng(0).normal(size=(100, 2))
    rows[4, 1] = np.nan
    np.savetxt(here / "nan.csv", rows, delimiter=",")
    words = [re.sub("[:,]", r"\g<0> ", w) if "{" in w else w for w in arguments.split()]
    (line,) = refusal(flowzoo(*words))
    assert re.search(expected.replace("?", r"\?"), line), line


def test_all_mistakes_of_a_matrix_are_said_at_once(flowzoo, here):
    (here / "m.yaml").write_text(
        "flows: [otflow, {recipe: ffjord, set: {flow.trac: exact, training.batch_sise: 3}}]\n"
        "data: [mons, {name: moons, trian: 3}, {name: gaussian, dim: two}]\n"
        "seeds: x\nfoo: 1\nmetrics: [nll, nlll]\nresources: {treads: 1}\nplugins: [absent.py]\n"
    )
    for command in ("plan", "run"):
        lines = refusal(flowzoo(command, "m.yaml"))
        assert all(line.startswith("m.yaml: ") for line in lines)
        assert sorted(line.split(": ")[1] for line in lines) == sorted(
            ["flows.0", "flows.1.set.flow.trac", "flows.1.set.training.batch_sise", "data.0",
             "data.1.trian", "data.2.dim", "seeds", "foo", "metrics.1", "resources.treads",
             "plugins"]
        )  # fmt: skip
        meant = {name for line in lines for name in re.findall(r"did you mean '(.+?)'", line)}
        assert {"ot-flow", "moons", "train", "nll", "threads", "batch_size"} <= meant
    (here / "m.yaml").write_text("recipes: [absent.yaml]\nflows: [mine]\ndata: [mons]\n")
    lines = refusal(flowzoo("plan", "m.yaml"))
    assert [line.split(": ")[1] for line in lines] == ["recipes", "data.0"]


def test_bad_data_of_a_matrix_is_refused_before_anything_runs(flowzoo, here):
    (here / "nan.csv").write_text("a,b\n" + "1,2\n3,4\n" * 50 + "nan,1\n")
    (here / "m.yaml").write_text(
        "flows: [flow-matching]\ndata: [moons, {name: file, path: nan.csv}]\n"
    )
    (line,) = refusal(flowzoo("run", "m.yaml", "--device", "cpu"))
    assert line.startswith("m.yaml: data.1: ")
    assert "nan.csv" in line
    assert "row 102" in line
    assert not [*here.rglob("record.json")]


# One flow


def test_fit_sample_score(flowzoo, here, monkeypatch):
    fit = ("fit", "flow-matching", GAUSSIAN, "--out", "flow", "--steps", 30, *TINY)
    first = flowzoo(*fit)
    assert first.code == 0
    assert "30 steps" in first.out
    assert "entropy 2.8379" in first.out
    weights = (here / "flow" / "flow.safetensors").read_bytes()
    record = json.loads((here / "flow" / "record.json").read_text())
    assert record["state"] == "ok"
    assert record["costs"]["steps"] == 30
    assert record["environment"]["device"] == "cpu"

    again = flowzoo(*fit, "--json")
    assert (here / "flow" / "flow.safetensors").read_bytes() == weights
    assert json.loads(again.out)["metrics"] == record["metrics"]
    (line,) = refusal(flowzoo(*fit, "--seed", 1))
    assert "another flow (flow-matching on gaussian, seed 0)" in line
    assert (here / "flow" / "flow.safetensors").read_bytes() == weights

    monkeypatch.chdir(here.parent)  # a flow's folder can be used from anywhere
    flow = here / "flow"
    scores = json.loads(flowzoo("score", flow, "--json").out)
    assert scores == record["metrics"]
    assert "kl" in scores
    scores = json.loads(flowzoo("score", flow, "moons", "-m", "nll", "--json").out)
    assert list(scores) == ["nll", "nll-own"]
    assert re.search(r"^nll +\d+\.\d+ +± 0\.\d+ +nats", flowzoo("score", flow, "-m", "nll").out)
    shown = flowzoo("score", flow, "-m", "nll", "--parts", "--tolerance", 1e-3).out
    assert "dopri5 at 0.001" in shown
    for part in ("sampling", "solver", "trace", "inverse"):
        assert re.search(rf"\d +{part}$", shown, re.MULTILINE), part
    (line,) = refusal(flowzoo("score", flow, "-m", "nll", "--tolerance", 5))
    assert "tolerance must lie in [1e-10, 1], got 5.0" in line
    (line,) = refusal(flowzoo("score", flow, "-m", "nlll"))
    assert "did you mean 'nll'" in line
    (line,) = refusal(flowzoo("score", flow, "{name: gaussian, dim: 3}"))
    assert "3 columns, but the flow has 2" in line


def test_samples_go_to_files_or_to_the_terminal(flowzoo, here):
    assert flowzoo("fit", "flow-matching", GAUSSIAN, "--out", "f", "--steps", 2, *TINY).code == 0
    printed = np.loadtxt(flowzoo("sample", "f", "-n", 7).out.splitlines(), delimiter=",")
    for name, load in (("s.npy", np.load), ("s.csv", lambda p: np.loadtxt(p, delimiter=","))):
        assert "wrote 7 rows" in flowzoo("sample", "f", "-n", 7, "--out", name).err
        np.testing.assert_allclose(load(name), printed, rtol=1e-5, atol=1e-6)
    assert not np.allclose(
        np.loadtxt(flowzoo("sample", "f", "-n", 7, "--seed", 1).out.splitlines(), delimiter=","),
        printed,
    )
    (line,) = refusal(flowzoo("sample", "f", "--out", "s.txt"))
    assert "ending in .csv or .npy" in line
    (line,) = refusal(flowzoo("sample", "f", "--out", "absent/s.csv"))
    assert "absent/s.csv" in line


def test_damaged_folders_are_refused_or_made_anew(flowzoo, here):
    fit = ("fit", "flow-matching", GAUSSIAN, "--out", "f", "--steps", 2, *TINY)
    flowzoo(*fit)
    path = here / "f" / "flow.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    path.write_bytes(path.read_bytes()[:100])
    for command in ("sample", "score"):
        (line,) = refusal(flowzoo(command, "f"))
        assert "holds no trained flow: it has no flow.safetensors, or a damaged one" in line
    assert flowzoo(*fit).code == 0
    torch.testing.assert_close(load_file(path), weights, rtol=0, atol=0)
    (here / "f" / "cell.yaml").write_text("42\n")
    (line,) = refusal(flowzoo("sample", "f"))
    assert "cell.yaml describes no cell" in line


def test_a_user_s_table_is_standardised_and_scored_in_its_own_units(flowzoo, here):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 2)) * np.array([100.0, 0.01]) + np.array([1000.0, 0.0])
    with open(here / "mine.csv", "w", newline="") as file:
        csv.writer(file).writerows([["mass", "width"], *rows.tolist()])
    assert (
        flowzoo("fit", "flow-matching", "mine.csv", "--out", "f", "--steps", 100, *TINY).code == 0
    )
    record = json.loads((here / "f" / "record.json").read_text())
    nll = record["metrics"]["nll"]["value"]
    assert record["dataset"]["standardised"]["mean"][0] == pytest.approx(1000, rel=0.05)
    entropy = np.log(2 * np.pi * np.e) + np.log(100 * 0.01)
    assert nll == pytest.approx(entropy, abs=0.6)
    assert json.loads(flowzoo("score", "f", "--json").out)["nll"]["value"] == nll
    # On a file of other rows: the flow's own scale, not the file's, and the same law.
    np.save(here / "other.npy", rows[:200] + np.array([50.0, 0.0]))
    moved = json.loads(flowzoo("score", "f", "other.npy", "-m", "nll", "--json").out)["nll"]
    assert moved["value"] > nll
    sample = np.loadtxt(flowzoo("sample", "f", "-n", 500).out.splitlines(), delimiter=",")
    np.testing.assert_allclose((sample.mean(0) - [1000, 0]) / [100, 0.01], 0, atol=0.5)


# Runs


MATRIX = f"""
title: Tiny
flows:
  - {{recipe: flow-matching, set: {{budget.steps: 10}}}}
  - {{recipe: ot-flow, set: {{budget.steps: 3}}}}
  - {{recipe: flow-matching, as: by-slq, set: {{flow.trace: slq}}}}
data: [{GAUSSIAN}]
training: {{batch_size: 50, validate_every: 5}}
metrics: [nll, transport]
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Run a tiny matrix in a process of its own, as a user does; return folder and what it said."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "tiny.yaml").write_text(MATRIX)
    command = [sys.executable, "-c", "from flowzoo.cli import main; main()"]
    environment = {**os.environ, "COLUMNS": "80"}
    said = subprocess.run([*command, "run", "tiny.yaml", "--jobs", "2", "--device", "cpu"],
                          capture_output=True, text=True, cwd=folder, env=environment,
                          timeout=300)  # fmt: skip
    return folder, Said(said.returncode, said.stdout, said.stderr)


@pytest.fixture
def run(done, monkeypatch):
    """Work beside the finished run."""
    monkeypatch.chdir(done[0])
    return Path("runs/tiny")


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_run_ends_with_table_and_pictures(done):
    folder, said = done
    assert said.code == 0, said.err
    assert re.search(r"│ flow-matching +│ +\d\.\d+ ± \d\.\d+ . +│", said.out)
    assert "*: best." in " ".join(said.out.split())
    assert len(re.findall(r"\d \*", said.out)) == 1
    assert "Bold" not in said.out
    assert "skipped   [a]" in said.out
    assert "[a] skipped: flow: SLQ needs symmetric of the velocity" in said.out
    for name in re.findall(r"^picture: (.*)$", said.out, re.MULTILINE):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert {"densities.png", "curves.png"} <= {p.name for p in (folder / "runs/tiny").iterdir()}
    assert "the run is in runs/tiny" in said.out
    assert "3/3" in said.err
    assert "\x1b" not in said.out + said.err


def test_the_same_command_does_nothing_more(flowzoo, run):
    before = {p: c for p, c in everything(run).items() if p.parent != run}
    said = flowzoo("run", "tiny.yaml", "--device", "cpu", "--json")
    assert said.code == 0
    assert sorted(r["state"] for r in json.loads(said.out)) == ["ok", "ok", "skipped"]
    assert {p: c for p, c in everything(run).items() if p.parent != run} == before
    states = [row["state"] for row in json.loads(flowzoo("plan", "tiny.yaml", "--json").out)]
    assert states == ["ok", "ok", "skipped"]


def test_status_and_tables(flowzoo, run):
    said = flowzoo("status", run)
    assert said.out.startswith("Tiny: 2 ok, 1 skipped\n")
    assert "SLQ needs" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    records = json.loads(flowzoo("status", run, "--json").out)
    nll = {r["flow"]: r["metrics"]["nll"]["value"] for r in records if r["state"] == "ok"}
    best = min(nll, key=nll.__getitem__)
    made = json.loads(flowzoo("table", run, "--format", "json").out)
    shown = {line["label"]: line["entries"][0] for line in made["lines"]}
    assert {name: shown[name]["summary"]["mean"] for name in nll} == pytest.approx(nll)
    assert [name for name in shown if shown[name]["best"]] == [best]
    rows = list(csv.DictReader(flowzoo("table", run, "--format", "csv").out.splitlines()))
    assert {r["row"]: float(r["value"]) for r in rows if r["row"] in nll} == pytest.approx(nll)
    assert re.search(rf"\| {best} +\| \*\*\d", flowzoo("table", run, "--format", "markdown").out)
    assert rf"{best} & $\mathbf{{" in flowzoo("table", run, "--format", "latex").out
    wrote = flowzoo("table", run, "--format", "latex", "--out", "table.tex")
    assert wrote.err == "wrote table.tex\n"
    assert Path("table.tex").read_text().startswith("\\begin{table}")
    assert {"NLL", "transport", "training"} <= set(
        flowzoo("table", run, "--columns", "metric").out.split()
    )
    one = flowzoo("table", run, "--flow", "ot-flow").out
    assert "ot-flow" in one
    assert "flow-matching" not in one
    for wrong, expected in [
        (("--metric", "nlll"), "did you mean 'nll'"),
        (("--rows", "flows"), "did you mean 'flow'"),
        (("--data", "gausian"), "did you mean 'gaussian'"),
        (("--out", "absent/table.txt"), "absent/table.txt"),
    ]:
        (line,) = refusal(flowzoo("table", run, *wrong))
        assert expected in line


def test_a_cell_of_a_run_can_be_sampled_and_scored(flowzoo, run):
    records = json.loads(flowzoo("status", run, "--json").out)
    cell = next(r for r in records if r["flow"] == "ot-flow")
    scores = json.loads(flowzoo("score", run / cell["folder"], "--json", "-m", "nll").out)
    assert scores["nll"] == cell["metrics"]["nll"]
    (line,) = refusal(flowzoo("sample", run))
    assert "name one of its cells" in line


def test_chosen_states_are_run_again(flowzoo, done, here):
    shutil.copytree(done[0] / "runs", here / "runs")
    (here / "tiny.yaml").write_text(MATRIX.replace("  - {recipe: flow-matching, set", "  # - {", 1))
    before = everything(here / "runs")
    assert flowzoo("run", "tiny.yaml", "--device", "cpu", "--rerun", "ok", "--json").code == 0
    after = everything(here / "runs")
    touched = {p.parent.name for p in after if after[p] != before.get(p)} - {"tiny"}
    assert len(touched) == 1
    assert "ot-flow" in touched.pop()
    said = flowzoo("status", "runs/tiny").out
    assert "results of recipes that the matrix no longer has: flow-matching" in said


def test_a_cell_that_fails_ends_the_command_with_1(flowzoo, here):
    shutil.copy(FAKES, here)
    (here / "mine.yaml").write_text(
        "recipes: {affine: {flow: affine, objective: likelihood, budget: {steps: 5}}}\n"
    )
    (here / "m.yaml").write_text(
        "flows: [{recipe: affine, set: {flow.fate: diverge}}]\ndata: [blob]\n"
        "recipes: [mine.yaml]\nplugins: [fakes.py]\n"
    )
    said = flowzoo("run", "m.yaml", "--device", "cpu")
    assert said.code == 1
    assert re.search(r"\[a\] diverged: .*the loss is nan at step 3", " ".join(said.out.split()))
    fit = ("fit", "affine", "blob", "--recipes", "mine.yaml", "--plugin", "fakes.py", "--out", "f")
    said = flowzoo(*fit, "--set", "flow.fate=diverge")
    assert said.code == 1
    assert re.search("^diverged: .*the loss is nan at step 3$", said.err, re.MULTILINE)


def test_every_command_is_a_command():
    assert list(COMMANDS) == cli.list_commands(None)[: len(COMMANDS)]
