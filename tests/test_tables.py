"""Tables: numbers, spreads, best and ties, states with their reasons, in five forms."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import subprocess
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from flowzoo.bench.record import STATES, Record
from flowzoo.bench.render import RENDERERS, escape, latex, markdown, plain, terminal
from flowzoo.bench.statistics import Summary, printed, summarise, tied
from flowzoo.bench.tables import REFERENCES, states, table
from flowzoo.errors import UserError


def record(flow="a", data="moons", seed=0, nll=1.0, error=0.01, state="ok", **more):
    measure = {
        "value": nll,
        "error": error,
        "unit": "nats",
        "better": "lower",
        "note": "exact trace",
    }
    base = Record(
        flow,
        data,
        seed,
        state=state,
        metrics={"nll": measure} if state == "ok" else {},
        costs={"train_seconds": 2.0 + seed, "parameters": 1234, "peak_memory": 2**20},
        composition={"budget": {"seconds": 30}},
    )
    return replace(base, **more)


def entry(made, row, column):
    (line,) = [line for line in made.lines if line.label == row]
    return line.entries[made.columns.index(column)]


def text(made, row, column):
    found = entry(made, row, column)
    return f"{found.text} ± {found.spread}" if found.spread else found.text


# Numbers


def test_mean_and_sample_standard_deviation():
    summary = summarise([1.0, 2.0, 4.0], [0.3, None, 0.4])
    assert summary.mean == pytest.approx(7 / 3)
    assert summary.spread == pytest.approx(math.sqrt(7 / 3))
    assert summary.measurement == pytest.approx(math.sqrt(0.125))
    assert summary.error == pytest.approx(math.sqrt(7 / 9 + 0.125))


def test_one_seed_shows_the_error_of_its_measurement():
    summary = summarise([1.0], [0.25])
    assert (summary.spread, summary.shown, summary.error) == (None, 0.25, 0.25)


@pytest.mark.parametrize(
    ("mean", "spread", "measurement", "expected"),
    [
        (1.23456, 0.0345, None, ("1.23", "0.03")),
        (1.23456, 0.0145, None, ("1.235", "0.015")),
        (1.23456, 0.0096, None, ("1.235", "0.010")),
        (-0.55, 0.2, None, ("-0.6", "0.2")),
        (12345.6, 321.0, None, ("12346", "321")),
        (1.23456, 1e-9, 0.02, ("1.235", "1e-09")),
        (2.88713, 0.0003, 0.05, ("2.887", "0.0003")),
        (8.1e-6, 1.04e-5, None, ("0.8e-05", "1.0e-05")),
        (-3.21e-4, None, 2e-6, ("-3.21e-04", "0.02e-04")),
        (5e-5, None, None, ("5e-05", "")),
        (1.23456, None, 0.02, ("1.23", "0.02")),
        (1.23456, None, None, ("1.235", "")),
        (1234.0, None, None, ("1234", "")),
        (0.0, None, None, ("0", "")),
        (-0.001, 0.5, None, ("0.0", "0.5")),
        (1.0, 0.0, None, ("1", "0")),
    ],
)
def test_digits_follow_the_error(mean, spread, measurement, expected):
    assert printed(Summary(mean, 2 if spread is not None else 1, spread, measurement)) == expected


@given(
    mean=st.floats(-1e6, 1e6),
    spread=st.one_of(st.none(), st.floats(0, 1e5)),
    measurement=st.one_of(st.none(), st.floats(0, 1e5)),
)
def test_what_is_printed_is_within_its_last_digit(mean, spread, measurement):
    value, _ = printed(Summary(mean, 2, spread, measurement))
    digits, _, power = value.partition("e")
    unit = 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
    assert abs(float(value) - mean) <= 0.5 * unit + 1e-9 * abs(mean)


def test_ties_are_differences_within_the_combined_error():
    one = Summary(1.0, 4, 0.2)  # error 0.1
    assert tied(one, Summary(1.14, 4, 0.2))
    assert not tied(one, Summary(1.15, 4, 0.2))
    assert not tied(Summary(1.0), Summary(1.0001))


# Tables


def test_means_over_seeds_best_and_ties():
    made = table(
        [
            *(record("a", seed=s, nll=1.0 + 0.1 * s) for s in (0, 1)),
            *(record("b", seed=s, nll=1.05 + 0.1 * s) for s in (0, 1)),
            *(record("c", seed=s, nll=2.0 + 0.1 * s) for s in (0, 1)),
        ]
    )
    assert made.corner == "NLL (nats) ↓"
    assert text(made, "a", "moons") == "1.05 ± 0.07"
    marks = {line.label: (line.entries[0].best, line.entries[0].tied) for line in made.lines}
    assert marks == {"a": (True, False), "b": (False, True), "c": (False, False)}
    for said in ("2 seeds (0, 1)", "30 s", "exact trace", "lower is better", "≈"):
        assert said in made.caption


@pytest.mark.parametrize(("better", "best"), [("lower", "a"), ("higher", "b"), (None, None)])
def test_best_follows_the_direction(better, best):
    def score(flow, value):
        measure = {"value": value, "error": None, "unit": "", "better": better}
        return record(flow, metrics={"score": measure})

    made = table([score("a", 1.0), score("b", 2.0)], metric="score")
    assert [line.label for line in made.lines if line.entries[0].best] == [best] * (
        best is not None
    )


@pytest.mark.parametrize("state", [s for s in STATES if s != "ok"])
def test_every_state_is_shown_with_its_reason(state):
    bad = record("b", state=state, reason="because of it")
    made = table([record("a"), bad])
    found = entry(made, "b", "moons")
    assert found.text == state.replace("not-run", "not run")
    assert found.state == state
    assert "because of it" in made.footnotes[found.notes[0]]
    for name, render in RENDERERS.items():
        assert "because of it" in render(made), name


def test_seeds_that_failed_are_footnoted_beside_those_that_did_not():
    made = table([record(seed=0, nll=1.0), record(seed=1, state="diverged", reason="loss is nan")])
    found = entry(made, "a", "moons")
    assert (found.text, found.spread) == ("1.000", "0.010")
    assert found.summary.n == 1
    assert [made.footnotes[m] for m in found.notes] == ["seed 1: diverged: loss is nan."]


def test_equal_reasons_share_a_footnote():
    bad = [record(flow, state="skipped", reason="no trace") for flow in "abc"]
    made = table(bad)
    assert made.footnotes == {"a": "skipped: no trace."}


def test_many_footnotes_have_different_marks():
    made = table([record(f"f{i}", state="failed", reason=f"{i}") for i in range(60)])
    assert len(made.footnotes) == 60
    assert list(made.footnotes)[25:28] == ["z", "aa", "ab"]


def test_stale_numbers_are_marked():
    made = table([record(stale=("trace exact",))])
    assert "trace exact" in made.footnotes[entry(made, "a", "moons").notes[0]]


def test_a_number_that_is_not_finite_is_no_number():
    measure = {"value": None, "error": None, "unit": "nats", "better": "lower"}
    made = table([record("a", metrics={"nll": measure}), record("b")])
    assert entry(made, "a", "moons").summary is None
    assert entry(made, "b", "moons").best is False  # nothing to be better than


def test_excluded_cells_are_dashes():
    made = table([record("a", "x"), record("b", "y")])
    assert text(made, "a", "y") == "–"


def test_references_stand_apart_and_compete_with_nobody():
    known = {"gaussian": 1.6, "entropy": 0.5}
    made = table([record("a", reference=known), record("b", nll=2.0, reference=known)])
    assert [line.label for line in made.lines if line.reference] == list(REFERENCES.values())
    assert text(made, REFERENCES["gaussian"], "moons") == "1.600"
    assert not any(e.best or e.tied for line in made.lines if line.reference for e in line.entries)
    turned = table([record("a", reference=known)], rows="data", columns="flow")
    assert turned.columns == ("a", *REFERENCES.values())


def test_swaps_are_rows_and_titles_are_headers():
    swapped = record("a", swap="trace=slq", dataset={"name": "moons", "title": "Two moons"})
    made = table([record("a"), swapped])
    assert [line.label for line in made.lines] == ["a", "a [trace=slq]"]
    assert made.columns == ("Two moons",)


def test_axes():
    records = [record(f, seed=s, nll=1.0 + s) for f in "ab" for s in (0, 1)]
    by_metric = table(records, columns="metric")
    assert by_metric.columns == ("NLL (nats) ↓", "training (s) ↓")
    assert text(by_metric, "a", "training (s) ↓") == "2.5 ± 0.7"
    by_seed = table(records, columns="seed")
    assert by_seed.columns == ("seed 0", "seed 1")
    two = table(records, metric=["nll", "peak_memory"])
    assert two.columns == ("moons NLL (nats) ↓", "moons memory (MB) ↓")
    assert text(two, "a", "moons memory (MB) ↓") == "1 ± 0"


def test_columns_of_plugins():
    made = table([record("a")], columns="metric", extra={"twice": lambda r: 2 * r.seed, "t": str})
    assert made.columns[-2:] == ("twice", "t")
    assert text(made, "a", "twice") == "0"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"rows": "flows"}, "did you mean 'flow'"),
        ({"rows": "data"}, "rows and columns are both"),
        ({"metric": "nlll"}, "did you mean 'nll'"),
        ({"columns": "metric"}, "choose the axis 'data'"),
    ],
)
def test_mistakes(arguments, expected):
    with pytest.raises(UserError, match=expected):
        table([record(data="x"), record(data="y")], **arguments)


def test_no_records():
    with pytest.raises(UserError, match="no cells"):
        table([])


def test_states_are_counted():
    records = [record(), record(stale=("frame",)), record(state="failed")]
    assert states(records) == {"ok": 2, "stale": 1, "failed": 1}


# Text


NASTY = r"50%_of $x^2 & {y} #1 ~ \ [a] <b> | \"q"


@pytest.fixture
def made():
    return table(
        [
            record("a", nll=-0.5, reference={"gaussian": 1.5}),
            record("b", nll=1.0),
            record(NASTY, state="failed", reason=NASTY),
        ]
    )


def test_markdown(made):
    lines = markdown(made).splitlines()
    assert lines[0].startswith("| NLL (nats) ↓")
    assert "**-0.500 ± 0.010**" in lines[2]
    assert len({line.replace(r"\|", "").count("|") for line in lines[:6]}) == 1


def test_latex_escapes_everything(made):
    said = latex(made)
    assert r"$\mathbf{-0.500 \pm 0.010}$" in said
    assert escape(NASTY) in said
    for letter in "%&#_$":
        plain = escape(NASTY).replace(f"\\{letter}", "")
        assert letter not in plain.replace("$", "" if letter != "$" else "$")
    assert said.count(r"\toprule") == said.count(r"\bottomrule") == 1
    assert said.count(r"\midrule") == 2


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs LaTeX")
def test_latex_compiles(made, tmp_path):
    source = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{latex(made)}"
    (tmp_path / "t.tex").write_text(source + r"\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_csv_and_json_are_unrounded(made):
    rows = list(csv.DictReader(io.StringIO(RENDERERS["csv"](made))))
    assert float(rows[0]["value"]) == -0.5
    assert (rows[0]["best"], rows[2]["state"], rows[2]["value"]) == ("True", "failed", "")
    assert NASTY in rows[2]["notes"]
    content = json.loads(RENDERERS["json"](made))
    assert content["lines"][1]["entries"][0]["summary"]["mean"] == 1.0


def test_terminal(made):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal(made))
    said = console.export_text()
    for part in ("NLL (nats) ↓", "-0.500 ± 0.010 *", "failed   [a]", "[a] failed: 50%_of"):
        assert part in said
    assert "*: best" in said
    assert "Bold" not in said


@pytest.mark.parametrize("width", [None, 24, 60, 200])
def test_numbers_are_whole_on_every_terminal(made, width):
    said = plain(made, width and Console(width=width, file=io.StringIO()))
    lines = said.splitlines()
    assert any("-0.500 ± 0.010 *" in line for line in lines)
    assert all(line == line.rstrip() and "…" not in line for line in lines)
    assert "\x1b" not in said
    if width != 24:
        assert max(map(len, lines)) <= (width or 80)


@pytest.mark.parametrize("width", range(60, 100, 8))
def test_labels_make_room_for_numbers(width):
    labels = ["one flow [trace=exact]", "another flow [trace=hutchinson]"]
    records = [record(flow, data, nll=nll) for flow, nll in zip(labels, (1.0, 2.0), strict=True)
               for data in ("moons", "8gaussians")]  # fmt: skip
    lines = plain(table(records), Console(width=width, file=io.StringIO())).splitlines()
    assert max(map(len, lines)) <= width
    for label, number in zip(labels, ("1.000 ± 0.010 *", "2.000 ± 0.010"), strict=True):
        (line,) = [line for line in lines if f"│ {label.split()[0]} " in line]
        assert line.count(number) == 2
