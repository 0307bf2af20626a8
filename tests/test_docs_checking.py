"""docs/checking.md says what the code does: its tables, its examples."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest

from flowzoo.conformance.check import Check
from flowzoo.conformance.finding import cases, specimens
from flowzoo.conformance.promises import general
from flowzoo.conformance.report import Outcome, Result
from flowzoo.conformance.runner import run
from flowzoo.registry import Registry
from flowzoo.traces import TraceEstimator

PAGE = (Path(__file__).parent.parent / "docs" / "checking.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def rows(heading):
    """Return the rows of the table below a heading, without its head."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line[:3] == "| `"]


def test_the_table_of_everybodys_checks_is_that_of_the_code():
    checks = [value for value in vars(general).values() if isinstance(value, Check)]
    assert rows("What everybody promises") == [[f"`{c.name}`", c.about] for c in checks]
    assert [c.of for c in checks[-2:]] != [object, object]  # "The last two are for modules."
    assert all(c.of is object for c in checks[:-2])


def test_the_outcomes_are_those_of_the_code():
    outcomes = [row[0] for row in rows("What comes of a check")]
    assert outcomes == [f"`{o}`" for o in ("pass", "fail", "expected", "unexpected", "skip")]
    assert {o.strip("`") for o in outcomes} == set(typing.get_args(Outcome))
    for name in Result.__dataclass_fields__:
        assert f"`{name}`" in PAGE


def test_the_example_of_a_new_kind_passes(tmp_path):
    (plugin,) = (block for block in BLOCKS if "flowzoo_components" in block)
    (tmp_path / "warps.py").write_text(plugin)
    registry = Registry().with_files([tmp_path / "warps.py"])
    found = cases(specimens(["power"], registry))
    results = {case.id: run(case.specimen, case.check) for case in found}
    assert {"warp/power-ends", "warp/power#2-ends"} <= results.keys()
    assert {k: r.detail for k, r in results.items() if r.outcome not in ("pass", "skip")} == {}


def test_the_example_of_declarations_is_read():
    (block,) = (block for block in BLOCKS if "expected_failures" in block)
    names: dict = {"TraceEstimator": TraceEstimator}
    exec(block, names)
    declared = names["MyTrace"].expected_failures
    found = specimens(["hutchinson"])[0]
    assert declared.keys() <= {case.check.name for case in cases([found])}


def test_the_three_lines_make_tests(monkeypatch):
    (block,) = (block for block in BLOCKS if "@conformance" in block)
    names: dict = {}
    exec(block.replace("my-trace", "trace/exact"), names)
    (mark,) = names["test_conformance"].pytestmark
    assert mark.args[0] == "check"
    ids = [parameter.id for parameter in mark.args[1]]
    assert "trace/exact-loads" in ids
    assert mark.args[1][0].values[0]() is None


@pytest.mark.parametrize(
    "command", re.findall(r"^(flowzoo check .*?)(?: +#.*)?$", PAGE, re.MULTILINE)
)
def test_every_command_shown_is_one(command):
    from flowzoo.cli.check import check_command

    context = check_command.make_context("check", command.split()[2:])
    assert context.params["names"] or context.params["everything"] or context.params["kind"]
