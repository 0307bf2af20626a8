"""What the README shows is run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flowzoo.bench import load_matrix
from flowzoo.bench.cell import run_cell

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, marker: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return next(text for text in blocks if marker in text)


def test_the_python_example_runs():
    names: dict = {}
    exec(block("python", "load_recipes").replace("steps=200", "steps=3"), names)
    assert names["log_p"].shape == (5,)
    assert names["x"].shape == (1000, 2)


def test_the_idea_is_twenty_lines_and_runs_beside_its_matrix(tmp_path):
    plugin, matrix = block("python", "flowzoo_components"), block("yaml", "idea.yaml")
    assert len(plugin.splitlines()) <= 20
    (tmp_path / "flowzoo_plugins.py").write_text(plugin)
    (tmp_path / "idea.yaml").write_text(matrix.replace("steps: 200", "steps: 2"))
    cells = load_matrix(tmp_path / "idea.yaml").cells()
    record = run_cell(next(c for c in cells if "kick" in c.flow), tmp_path)
    assert record.state == "ok", record.reason


def test_the_matrix_example_is_valid(tmp_path):
    (tmp_path / "my.yaml").write_text(block("yaml", "my.yaml"))
    assert len(load_matrix(tmp_path / "my.yaml").cells()) == 3 * 3 * 3 * 2


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("matrix", sorted((ROOT / "benchmarks").glob("*.yaml")))
def test_every_matrix_of_ours_is_valid(matrix):
    assert load_matrix(matrix).cells()
