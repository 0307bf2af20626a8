"""A table does not set apart what its solver cannot tell apart, and shows own beside judged."""

from __future__ import annotations

import pytest

from flowzoo.bench.record import Record
from flowzoo.bench.render import RENDERERS
from flowzoo.bench.statistics import Summary, resolved, summarise
from flowzoo.bench.tables import table


def record(flow, nll, solver, seed=0, error=None, **metrics):
    measure = {
        "value": nll,
        "error": solver if error is None else error,
        "unit": "nats",
        "better": "lower",
        "parts": {"sampling": 0.0, "solver": solver},
    }
    return Record(flow, "moons", seed, state="ok", metrics={"nll": measure, **metrics})


def entries(made):
    return {line.label: line.entries[0] for line in made.lines}


@pytest.mark.parametrize(
    ("solver", "bold"),
    [({"a": 0.04, "b": 0.0}, True), ({"a": 0.06, "b": 0.0}, False), ({"a": 0.0, "b": 0.06}, True)],
    ids=["smaller than the distance", "larger", "larger, but of the other"],
)
def test_bold_needs_a_distance_beyond_the_solvers_error(solver, bold):
    made = table([record("a", 1.0, solver["a"]), record("b", 1.05, solver["b"])])
    best = entries(made)["a"]
    assert (best.best, best.tied) == (bold, not bold)
    said = [made.footnotes[mark] for mark in best.notes]
    assert bool(said) != bold
    if not bold:
        assert "0.06" in said[0]
        for name, render in RENDERERS.items():
            assert said[0] in render(made) or name in ("latex", "terminal"), name


def test_the_distance_is_that_to_the_next_not_to_any_other():
    flows = {"a": 1.0, "b": 2.0, "c": 1.01}
    made = table([record(flow, nll, 0.05) for flow, nll in flows.items()])
    found = entries(made)
    assert [found[k].best for k in "abc"] == [False, False, False]
    assert [found[k].tied for k in "abc"] == [True, False, True]
    assert not found["b"].notes


def test_higher_is_better_is_treated_alike():
    flows = {"a": 1.0, "b": 1.05}
    records = [record(flow, nll, 0.06) for flow, nll in flows.items()]
    for each in records:
        each.metrics["nll"]["better"] = "higher"
    assert [e.best for e in entries(table(records)).values()] == [False, False]


def test_seeds_do_not_average_out_what_the_solver_is_off_by():
    assert summarise([1.0, 1.2], [0.1, 0.1], [0.01, 0.3]).solver == 0.3
    made = table(
        [
            record(f, nll + 0.001 * s, 0.3 * s, s)
            for f, nll in (("a", 1), ("b", 1.2))
            for s in (0, 1)
        ]
    )
    assert not entries(made)["a"].best
    assert resolved(Summary(1.0, solver=0.19), Summary(1.2))
    assert not resolved(Summary(1.0, solver=0.21), Summary(1.2))


def test_what_the_own_numerics_report_stands_beside_the_judge_without_competing():
    own = {"value": 0.2, "error": 0.9, "unit": "nats", "better": None, "parts": {"solver": 0.8}}
    made = table(
        [record("a", 1.0, 0.0, **{"nll-own": own}), record("b", 1.5, 0.0)],
        metric=["nll", "nll-own"],
    )
    assert made.columns == ("moons NLL (nats) ↓", "moons NLL, own numerics (nats)")
    a, b = (line.entries for line in made.lines)
    assert (a[0].text, a[1].text, a[1].spread) == ("1", "0.2", "0.9")
    assert (a[0].best, a[1].best) == (True, False)
    assert b[1].text == "–"
