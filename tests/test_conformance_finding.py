"""What is checked by what: names, classes, recipes, examples; what cannot be checked, and why."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import conformance_fakes
import pytest

from flowzoo.conformance.check import check
from flowzoo.conformance.finding import cases, checks_for, specimens
from flowzoo.conformance.runner import run
from flowzoo.errors import UserError
from flowzoo.recipes import load_recipes
from flowzoo.registry import Component, Registry
from flowzoo.traces import Hutchinson, TraceEstimator

FAKES = Path(conformance_fakes.__file__)


@pytest.fixture(scope="module")
def fakes():
    return Registry().with_files([FAKES])


# What is found


def named(*arguments, **more):
    """Return the components among some specimens, whatever their examples."""
    return list(dict.fromkeys(s.name.partition("#")[0] for s in specimens(*arguments, **more)))


def test_a_component_is_found_by_its_name_or_with_its_kind():
    assert named(["exact"]) == ["trace/exact"]
    assert named(["trace/exact"]) == ["trace/exact"]
    assert named(["mlp", "velocity/mlp"]) == ["potential/mlp", "velocity/mlp"]
    assert named(["mlp"], kind="velocity") == ["velocity/mlp"]


def test_of_a_recipe_the_flow_is_checked():
    (found,) = specimens(["recipe/ffjord"])
    assert (found.kind, found.name) == ("flow", "recipe/ffjord")
    assert found.spec == load_recipes()["ffjord"].flow
    assert named(["ot-flow"]) == ["importer/ot-flow", "potential/ot-flow", "recipe/ot-flow"]


def test_everything_is_every_component_and_every_different_recipe():
    found = {s.name for s in specimens()}
    assert {f"{c.kind}/{c.name}" for c in Registry.installed().components()} <= found
    assert {"recipe/ot-flow", "recipe/ffjord", "recipe/rnode"} <= found
    assert "recipe/ot-flow-power" not in found  # differs from ot-flow in width and steps
    assert {s.kind for s in specimens(kind="trace")} == {"trace"}
    recipes = {s.name for s in specimens(kind="recipe")}
    assert recipes == {name for name in found if name.startswith("recipe/")}
    assert recipes < {s.name for s in specimens(kind="flow")}


def test_examples_are_numbered(fakes):
    found = specimens(["several"], fakes)
    assert [s.name for s in found] == ["widget/several", "widget/several#2"]
    assert [s.make().weight for s in found] == [2.0, 3.0]


def test_a_class_is_a_name(fakes):
    (found,) = specimens([conformance_fakes.Plain], fakes)
    assert (found.name, found.cls) == ("widget/Plain", conformance_fakes.Plain)
    assert run(found, checks_for(found.cls)[0]).outcome == "pass"
    assert named([Hutchinson]) == ["trace/hutchinson"]
    with pytest.raises(UserError, match="declares no `kind`"):
        specimens([dict])


@pytest.mark.parametrize(
    ("names", "kind", "said"),
    [
        (["hutchison"], None, "unknown name 'hutchison'; did you mean 'hutchinson'"),
        (["trace/exakt"], None, "unknown trace 'exakt'; did you mean 'exact'"),
        (["recipe/ot-flo"], None, "unknown recipe 'ot-flo'; did you mean 'ot-flow'"),
        (["exact"], "tracer", "unknown kind 'tracer'; did you mean 'trace'"),
        (["exact"], "flow", "'exact' is a name of kind trace, not of the kinds asked for"),
        ([], "recipes", "did you mean 'recipe'"),
    ],
)
def test_unknown_names_are_refused(names, kind, said):
    with pytest.raises(UserError, match=said):
        specimens(names, kind=kind)


def test_unknown_checks_are_refused(fakes):
    with pytest.raises(UserError, match="unknown check 'postive'; did you mean 'positive'"):
        cases(specimens(["plain"], fakes), ["postive"])


def test_checks_are_everybodys_the_kinds_and_those_of_the_interface(fakes):
    names = {c.name for c in checks_for(fakes.load("widget", "plain"))}
    assert {"loads", "documented", "positive", "plain"} <= names
    assert "registered" not in names  # is for modules
    assert "plain" not in {c.name for c in checks_for(fakes.load("widget", "debtor"))}
    assert {"loads", "unbiased"} <= {
        c.name for c in checks_for(Registry.installed().load("trace", "exact"))
    }


def test_checks_of_one_name_are_a_clash(monkeypatch):
    def loads(specimen):
        """Mine."""

    monkeypatch.setattr(conformance_fakes, "mine", check("widget")(loads), raising=False)
    with pytest.raises(UserError, match=r"has a check 'loads' of widget.*taken"):
        checks_for(conformance_fakes.Plain)


# Broken ones


class Wrong(conformance_fakes.Plain):
    """A widget."""

    examples = ({"weigth": 1.0},)


class Needy(conformance_fakes.Plain):
    """A widget that says nothing of how it is made."""

    def __init__(self, weight: float, height: float) -> None:
        super().__init__(weight)


class Careless(conformance_fakes.Plain):
    """A widget."""

    expected_failures = ["positive"]  # noqa: RUF012


class Odd(conformance_fakes.Plain):
    """A widget."""

    examples = (["weight"],)


class Odder(conformance_fakes.Plain):
    """A widget."""

    examples = {"weight": 2.0}  # noqa: RUF012


class Lost(conformance_fakes.Plain):
    """A widget."""

    checks = "no.such.module"


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (Wrong, "no option 'weigth'; did you mean 'weight'"),
        (Needy, "needs the option 'height'"),
        (Careless, "must map names of checks to reasons"),
        (Odd, "`examples` of Odd must be a list of mappings"),
        (Odder, "`examples` of Odder must be a list of mappings"),
        (Lost, "no.such.module cannot be imported"),
    ],
)
def test_what_cannot_be_checked_fails_once(cls, said):
    (case,) = cases(specimens([cls], Registry()))
    found = run(case.specimen, case.check)
    assert (found.check, found.outcome) == ("loads", "fail")
    assert said in found.detail


def test_a_broken_plugin_and_a_clash_fail_alone():
    good = Component("trace", "good", "flowzoo.traces:Exact", "ours 1")
    bad = Component("trace", "bad", "no_such_module:Trace", "theirs 1")
    twice = [Component("trace", "twice", "flowzoo.traces:Exact", f"{who} 1") for who in "ab"]
    found = [
        run(c.specimen, c.check)
        for c in cases(specimens(registry=Registry([good, bad, *twice]), kind="trace"))
        if c.check.name == "loads"
    ]
    assert {r.name: r.outcome for r in found} == {
        "trace/bad": "fail", "trace/good": "pass", "trace/twice": "fail"
    }  # fmt: skip
    assert "no_such_module" in found[0].detail
    assert "offered by a 1" in found[2].detail


class WithExamples(TraceEstimator):
    """An estimator that is checked with two examples."""

    examples: ClassVar = ({}, {"samples": 3})

    def __init__(self, samples: int = 1) -> None:
        self.samples = samples

    def probes(self, x, generator=None):
        return None

    def __call__(self, a, probes, fn=None):
        return a.dense().diagonal(dim1=-2, dim2=-1).sum(-1)


class SameOptions(WithExamples):
    """It takes what its base takes."""


class OtherOptions(WithExamples):
    """It takes something else."""

    def __init__(self, size: int = 1) -> None:
        super().__init__(size)


@pytest.mark.parametrize(("cls", "count"), [(WithExamples, 2), (SameOptions, 2), (OtherOptions, 1)])
def test_examples_are_inherited_with_the_options_that_they_give(cls, count):
    found = specimens([cls])
    assert len(found) == count
    assert not any(each.broken for each in found)
