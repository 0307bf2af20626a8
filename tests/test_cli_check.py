"""`flowzoo check`: tables, exit codes, JSON, badges, and what it says when it is used wrongly."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import conformance_fakes
import pytest

from flowzoo.cli import main

FAKES = ("--plugin", conformance_fakes.__file__, "--kind", "widget")
ONE = ("--check", "positive", "--jobs", "1")


class Said(NamedTuple):
    """What a call of the command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def check(monkeypatch, capfd):
    """Return a caller of the command in this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["flowzoo", "check", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = Said(ended.value.code or 0, *capfd.readouterr())
        assert "\x1b" not in said.out + said.err  # no escape codes where there is no terminal
        return said

    return call


def test_a_component_gets_a_table_and_a_tally(check):
    said = check("plain", *FAKES)
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    row = next(line for line in lines if line.startswith("positive "))
    assert row.split() == ["positive", "pass", "weighs", "1"]
    assert "widget/plain: 11 passed, 1 skipped" in lines
    assert not any(line.endswith(" ") for line in lines)


def test_failures_are_shown_in_full_at_the_end(check):
    said = check("plain", "raising", "declared", "outdated", *FAKES, *ONE)
    assert said.code == 1
    table, _, rest = said.out.partition("widget/raising positive: ")
    assert "widget/declared: 1 expected failure" in table
    assert "it owes (the weight is -1" in table
    assert rest.startswith("raised ZeroDivisionError: division by zero\npromised: A weight is pos")
    assert "Traceback" in rest
    assert "in weigh" in rest
    assert "widget/outdated positive: passes (weighs 1), but is declared to fail" in rest
    tally = "4 components: 1 passed, 1 failed, 1 unexpected pass, 1 expected failure"
    assert said.out.splitlines()[-1] == tally


def test_a_kind_gets_a_line_for_each_component_and_no_tables(check):
    said = check(*FAKES, *ONE)
    assert said.code == 1
    assert "widget/plain: 1 passed\nwidget/quitting: 1 failed\n" in said.out
    assert "weighs 1\n" not in said.out
    assert "weighs 1\n" in check(*FAKES, *ONE, "--verbose").out


def test_one_broken_component_is_one_failure(check, tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        Path(conformance_fakes.__file__).read_text() + "\nPlain.checks = 'flowzoo_no_such_module'\n"
    )
    said = check("plain", "debtor", "--plugin", plugin, "--kind", "widget", "--json")
    found = {(r["name"], r["check"]): r["outcome"] for r in json.loads(said.out)}
    assert found["widget/plain", "loads"] == "fail"
    assert [name for name, _ in found].count("widget/plain") == 1
    assert found["widget/debtor", "positive"] == "fail"


def test_json_is_a_list_of_results(check):
    said = check("random", "several", *FAKES, *ONE, "--json")
    found = json.loads(said.out)
    assert [r["name"] for r in found] == ["widget/random", "widget/several", "widget/several#2"]
    keys = {"kind", "name", "check", "about", "outcome", "detail", "seconds", "traceback"}
    assert all(r.keys() == keys for r in found)
    assert (said.code, found[2]["detail"]) == (0, "weighs 3")


@pytest.mark.parametrize(("name", "colour", "code"), [("plain", "brightgreen", 0),
                                                      ("declared", "yellow", 0),
                                                      ("debtor", "red", 1)])  # fmt: skip
def test_a_badge_is_one_line_of_markdown(check, name, colour, code):
    said = check(name, *FAKES, *ONE, "--badge")
    assert said.code == code
    assert said.out.startswith("![flowzoo check ")
    assert said.out.endswith(f"-{colour})\n")


def test_checks_are_listed_by_kind_with_what_they_promise(check):
    said = check("--list", *FAKES)
    assert said.code == 0
    everyones, _, own = said.out.partition("\nwidget\n")
    assert everyones.startswith("every kind\n")
    assert "loads " in everyones
    assert [line.split(maxsplit=1) for line in own.splitlines() if line] == [
        ["positive", "A weight is positive."],
        ["plain", "A plain widget weighs what it is told."],
    ]
    rows = json.loads(check("--list", *FAKES, "--json").out)
    assert {"kind": "widget", "check": "positive", "about": "A weight is positive."} in rows


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name what to check, or say --all"),
        (["exact", "--all"], "leave out the names, or --all"),
        (["exact", "--json", "--badge"], "leave one of them out"),
        (["exakt"], "unknown name 'exakt'; did you mean 'exact'"),
        (["--kind", "tracer"], "unknown kind 'tracer'; did you mean 'trace'"),
        (["exact", "--check", "load"], "unknown check 'load'; did you mean 'loads'"),
        (["exact", "--plugin", "nowhere.py"], "cannot read the plugin file"),
        (["exact", "--jobs", "0"], "Invalid value for '--jobs'"),
    ],
)
def test_wrong_usage_is_one_sentence(check, arguments, said):
    found = check(*arguments)
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith("error: ")
    assert found.err.count("\n") == 1
    assert said in found.err
