"""A matrix file becomes cells with stable keys, or one list of everything that is wrong with it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flowzoo.bench.cells import Cell, read_cell
from flowzoo.bench.matrix import load_matrix
from flowzoo.bench.resources import Resources, duration_seconds, duration_text, memory_bytes
from flowzoo.bench.store import Store
from flowzoo.errors import UserError
from flowzoo.registry.reader import Problems

FAKES = Path(__file__).parent / "bench_fakes" / "fakes.py"
RECIPES = """
recipes:
  affine:
    title: Affine
    flow: {name: affine, fate: ""}
    objective: likelihood
    training: {batch_size: 50, optimizer: {lr: 0.01}}
    budget: {steps: 60}
"""


@pytest.fixture
def write(tmp_path):
    """Return a writer of a matrix file, with recipes and plugin beside it."""
    shutil.copy(FAKES, tmp_path / "fakes.py")
    (tmp_path / "mine.yaml").write_text(RECIPES)

    def write(text, name="m.yaml"):
        path = tmp_path / name
        path.write_text("recipes: [mine.yaml]\nplugins: [fakes.py]\n" + text)
        return path

    return write


def messages(path):
    with pytest.raises(Problems) as caught:
        load_matrix(path)
    return str(caught.value).splitlines()


def test_the_grid_is_flows_times_data_times_seeds_times_swaps(write):
    path = write(
        """
title: Trial
flows: [affine, {recipe: affine, as: slow, set: {flow.sleep: 0.5, training.batch_size: 7}}]
data: [blob, {name: blob, dim: 3}, {name: blob, dim: 4, as: four}]
seeds: [3, 5]
swap: {at: [1, 2], fate: ["", raise]}
exclude: [{flow: slow, data: four}, {seed: 5, flow: slow}]
"""
    )
    matrix = load_matrix(path)
    cells = matrix.cells()
    assert matrix.title == "Trial"
    assert matrix.name == "m"
    # 2 flows x 4 swaps x 3 data x 2 seeds, less slow on four (8), less slow with seed 5 on the rest
    assert len(cells) == 48 - 8 - 8
    assert {c.data for c in cells} == {"blob", "blob(dim=3)", "four"}
    assert {c.label for c in cells if c.flow == "slow"} == {
        f"slow [at={at}, fate={fate}]" for at in (1, 2) for fate in ("", "raise")
    }
    slow = next(c for c in cells if c.flow == "slow")
    assert slow.flow_spec["sleep"] == 0.5
    assert slow.training == {"batch_size": 7, "optimizer": {"lr": 0.01}}
    assert len({c.folder for c in cells}) == len(cells)
    assert all(re.fullmatch(r"[\w.=+,@-]+", c.folder, re.ASCII) for c in cells)


def test_numbers_of_the_matrix_go_over_those_of_the_recipe(write):
    cells = load_matrix(
        write(
            """
flows: [affine, {recipe: affine, as: longer, set: {budget.seconds: 9}}]
data: [blob]
seeds: 1
budget: {seconds: 4}
training: {optimizer: {weight_decay: 0.1}}
"""
        )
    ).cells()
    assert [c.budget for c in cells] == [{"seconds": 4}, {"seconds": 9}]
    assert cells[0].training["optimizer"] == {"lr": 0.01, "weight_decay": 0.1}


def test_key_depends_on_what_determines_the_result_and_on_nothing_else(write):
    def key(text, name="m.yaml"):
        (cell,) = load_matrix(write(text, name)).cells()
        return cell.key

    plain = key("flows: [affine]\ndata: [blob]\n")
    same = [
        "title: Other\nflows: [{recipe: affine, as: other}]\ndata: [{name: blob, as: b}]\n",
        "flows: [affine]\ndata: [blob]\nresources: {threads: 2, timeout: 1h, memory: 8G}\n",
        "flows: [{recipe: affine, set: {training.ema: null}}]\ndata: [blob]\nseeds: [0]\n",
        "flows: [{recipe: affine, set: {training.optimizer.lr: 1e-2}}]\ndata: [blob]\n",
    ]
    for i, text in enumerate(same):
        text = text.replace("data: [{name: blob, as: b}]", "data: [blob]")
        assert key(text, f"same{i}.yaml") == plain, text
    other = [
        "flows: [affine]\ndata: [{name: blob, offset: 2.0}]\n",
        "flows: [affine]\ndata: [blob]\nseeds: [1]\n",
        "flows: [affine]\ndata: [blob]\nbudget: {steps: 61}\n",
        "flows: [affine]\ndata: [blob]\ntraining: {precision: float64}\n",
        "flows: [affine]\ndata: [blob]\nswap: {at: [5]}\n",
        "flows: [affine]\ndata: [blob]\nmetrics: [nll, odd]\n",
    ]
    keys = [key(text, f"other{i}.yaml") for i, text in enumerate(other)]
    assert len({plain, *keys}) == 1 + len(other)


def test_a_cell_survives_its_file(write, tmp_path):
    matrix = load_matrix(write("flows: [affine]\ndata: [blob]\nswap: {at: [1, 2]}\n"))
    store = Store(tmp_path / "run")
    for cell in store.plan(matrix):
        again = read_cell(store.path(cell))
        assert again.to_mapping() == cell.to_mapping()
        assert again.key == cell.key
        assert isinstance(again, Cell)


def test_every_mistake_is_reported_at_once_with_file_path_and_suggestion(write):
    path = write(
        """
flows:
  - afine
  - {recipe: affine, sett: {}}
  - {recipe: affine, as: x, set: {flow.fat: raise, training.batch_sise: 3}}
data: [blobb, {name: blob, dims: 3}, {name: blob, as: again, dim: two}]
seeds: [0, -1]
swap: {trase: [exact]}
budget: {step: 10}
metrics: [nll, oddd]
resources: {memory: lots, timout: 3}
exclude: [{flow: nobody}]
sedes: 3
"""
    )
    said = messages(path)
    expected = [
        "unknown key 'sedes'; did you mean 'seeds'?",
        "unknown recipe 'afine'; did you mean 'affine'?",
        "unknown key 'sett'; did you mean 'set'?",
        "flow.fat",
        "batch_sise",
        "unknown dataset 'blobb'; did you mean 'blob'?",
        "has no option 'dims'; did you mean 'dim'?",
        "expected an integer, got 'two'",
        "none negative",
        "no part 'trase'",
        "has no option 'step'; did you mean 'steps'?",
        "unknown metric 'oddd'; did you mean 'odd'?",
        "has no option 'timout'; did you mean 'timeout'?",
        "there is no flow 'nobody'",
    ]
    for part in expected:
        assert any(part in line for line in said), (part, said)
    assert all(line.startswith(str(path)) for line in said)
    assert any(line.startswith(f"{path}: data.1.dims: ") for line in said)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: [blob]\n", "flows: expected at least one entry"),
        ("flows: [affine, affine]\ndata: [blob]\n", "flows.1: the label 'affine' is taken"),
        ("flows: affine\ndata: [blob]\n", "flows: expected a list"),
        ("flows: [affine]\ndata: [blob]\nresources: {memory: lots}\n", "memory is 'lots'"),
        ("flows: [affine]\ndata: [blob]\nresources: {threads: 0}\n", "threads is 0"),
        ("flows: [affine]\ndata: [blob]\nbudget: {steps: 0}\n", "steps must be positive"),
        ("flows: [affine]\ndata: [blob]\nseeds: 0\n", "at least one integer"),
        ("flows: [affine]\ndata: [blob]\nswap: {fate: [3]}\n", "expected a string, got 3"),
    ],
)
def test_single_mistakes(write, text, expected):
    assert any(expected in line for line in messages(write(text)))


def test_a_recipe_without_a_budget_is_refused_unless_the_matrix_gives_one(write, tmp_path):
    (tmp_path / "mine.yaml").write_text(RECIPES.replace("    budget: {steps: 60}\n", ""))
    assert "sets no limit" in messages(write("flows: [affine]\ndata: [blob]\n"))[0]
    assert load_matrix(write("flows: [affine]\ndata: [blob]\nbudget: {steps: 1}\n")).cells()


def test_missing_files_are_named(write, tmp_path):
    with pytest.raises(UserError, match=r"nothing\.yaml"):
        load_matrix(tmp_path / "nothing.yaml")
    path = tmp_path / "m.yaml"
    path.write_text("plugins: [absent.py]\nflows: [ffjord]\ndata: [moons]\n")
    assert any("absent.py" in line for line in messages(path))
    path.write_text("recipes: [absent.yaml]\nflows: [ffjord]\ndata: [moons]\n")
    with pytest.raises(UserError, match=r"absent\.yaml"):
        load_matrix(path)


def test_a_plugin_file_beside_the_matrix_is_found_by_itself(write, tmp_path):
    shutil.copy(FAKES, tmp_path / "flowzoo_plugins.py")
    path = tmp_path / "m.yaml"
    path.write_text("recipes: [mine.yaml]\nflows: [affine]\ndata: [blob]\n")
    (cell,) = load_matrix(path).cells()
    assert cell.plugins == (str(tmp_path / "flowzoo_plugins.py"),)


def test_a_swap_that_fits_one_flow_only_skips_the_others(write, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        RECIPES
        + "  cnf:\n    flow: {name: continuous, velocity: mlp}\n    objective: likelihood\n"
        + "    budget: {steps: 3}\n"
    )
    matrix = load_matrix(write("flows: [affine, cnf]\ndata: [blob]\nswap: {trace: [exact]}\n"))
    skips = {cell.flow: cell.skip for cell in matrix.cells()}
    assert "no part 'trace'" in skips["affine"]
    assert skips["cnf"] == ""


def test_planning_does_not_import_torch(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text("flows: [ffjord]\ndata: [moons]\nseeds: 3\nswap: {trace: [exact, slq]}\n")
    program = (
        "import sys; from flowzoo.bench import Store, load_matrix, tables;"
        f"m = load_matrix({str(path)!r}); s = Store({str(tmp_path / 'run')!r}); s.plan(m);"
        "assert len(s.missing()) == 6; s.records(); tables.table(s.records());"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("text", "seconds"), [("10m", 600.0), ("1h30m", 5400.0), (90, 90.0), ("45", 45.0), (None, None)]
)
def test_durations(text, seconds):
    assert duration_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-3", "10 parsecs", "nan"])
def test_bad_durations(text):
    with pytest.raises(UserError, match="positive duration"):
        duration_seconds(text)


@pytest.mark.parametrize(
    ("text", "amount"), [("4G", 2**32), ("500M", 500 * 2**20), (1000, 1000), ("1.5GiB", 3 * 2**29)]
)
def test_memory(text, amount):
    assert memory_bytes(text) == amount


def test_durations_in_words():
    assert [duration_text(s) for s in (None, 0.5, 45, 600, 5400, 7200)] == [
        "no limit", "0.5 s", "45 s", "10 min", "1 h 30 min", "2 h"
    ]  # fmt: skip


def test_resources_hold_numbers():
    limits = Resources(memory="2G", timeout="1m")
    assert (limits.bytes, limits.seconds) == (2**31, 60.0)
