"""YAML as plain data, recipes that extend each other, and parts swapped for others."""

from __future__ import annotations

import math

import pytest
import toy_zoo

from flowzoo import recipes
from flowzoo.build import build, resolved
from flowzoo.errors import UserError
from flowzoo.recipes import (
    Problems,
    Recipe,
    load_recipes,
    load_yaml,
    recipe_problems,
    swap,
)
from flowzoo.registry import Registry


@pytest.fixture
def write(tmp_path):
    def write(text, name="my.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def refused(file, *others):
    """Return the lines that a file is refused with, without its name."""
    with pytest.raises(Problems) as raised:
        load_recipes(*others, file, builtin=False)
    lines = str(raised.value).splitlines()
    assert all(line.startswith(f"{file}: ") for line in lines)
    return [line.removeprefix(f"{file}: ") for line in lines]


# --- YAML ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.5E+2", 150.0),
        (".5", 0.5),
        ("2.", 2.0),
        ("-1_000", -1000),
        ("010", 10),
        ("0x1F", 31),
        (".inf", math.inf),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2024-01-31", "2024-01-31"),
        ("true", True),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("{a: &x {b: 1}, c: {<<: *x, d: 2}}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        ("[1, a]", [1, "a"]),
    ],
)
def test_scalars_are_what_they_look_like(write, text, value):
    found = load_yaml(write(f"x: {text}"))["x"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: [1, 2\nc: 3", "line 3: not valid YAML: while parsing a flow sequence, "),
        ("a: 1\n\tb: 2", "line 2: not valid YAML: "),
        (
            "a: 1\nb: !!python/object/apply:os.system [ls]",
            "line 2: not valid YAML: the tag tag:yaml.org,2002:python/object/apply:os.system is",
        ),
        ("a: &x\n  b: *x", "found unconstructable recursive node"),
        ("a: 1\n---\nb: 2", "but found another document"),
        ("? [1]\n: 2", "found unhashable key"),
        ("a: \x00", "not valid YAML: "),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_file_and_line(write, text, said):
    file = write(text)
    with pytest.raises(UserError) as raised:
        load_yaml(file)
    assert str(raised.value).startswith(f"{file}: ")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_duplicate_key_is_named(write):
    file = write("a: 1\nb:\n  c: 1\n  c: 2\na: 3")
    with pytest.raises(Problems) as raised:
        load_yaml(file)
    assert sorted(str(raised.value).splitlines()) == [
        f"{file}: line 4: the key 'c' is given twice, first in line 3",
        f"{file}: line 5: the key 'a' is given twice, first in line 1",
    ]


def test_a_missing_file_is_refused_with_its_neighbours(write):
    near = write("a: 1", "matrix.yaml")
    with pytest.raises(UserError, match=r"matrx.yaml: No such file .*did you mean 'matrix.yaml'\?"):
        load_yaml(near.with_name("matrx.yaml"))


# --- recipes -------------------------------------------------------------------------------------

BASE = """
recipes:
  base:
    title: The base
    paper: A paper
    flow:
      name: train
      cars:
        repeat: 2
        of: {name: cart, wheels: [plain], spare: {name: plain, spokes: 3}}
    objective: plain
    training: {optimizer: {name: adam, lr: 1e-2}, clip: 1}
    budget: {steps: 100}
"""


def test_a_recipe_is_read(write):
    file = write(BASE)
    recipe = load_recipes(file, builtin=False)["base"]
    assert (recipe.name, recipe.title, recipe.paper) == ("base", "The base", "A paper")
    assert recipe.objective == "plain"
    assert recipe.training["optimizer"]["lr"] == 1e-2
    assert recipe.source == str(file)


def test_the_built_in_recipes_come_first(write, monkeypatch):
    monkeypatch.setattr(recipes, "BUILTIN", write(BASE, "builtin.yaml"))
    mine = write("recipes:\n  mine: {extends: base, notes: mine}")
    found = load_recipes(mine)
    assert list(found) == ["base", "mine"]
    assert found["mine"].flow == found["base"].flow
    assert (found["mine"].title, found["mine"].notes) == ("mine", "mine")
    assert found["base"].source != found["mine"].source


@pytest.mark.parametrize("recipe", load_recipes().values(), ids=lambda r: r.name)
def test_every_built_in_recipe_is_right_and_can_be_built(recipe):
    registry = Registry.installed()
    assert recipe_problems(recipe, registry) == []
    assert recipe_problems(recipe, registry, deep=True) == []
    assert build("flow", recipe.flow, registry, dim=2).dim == 2
    build("objective", recipe.objective, registry)
    again = resolved("flow", recipe.flow, registry)
    assert resolved("flow", again, registry) == again


def test_mappings_merge_and_everything_else_replaces(write):
    text = (
        BASE
        + """
  child:
    extends: base
    flow:
      cars: {of: {wheels: [], spare: {colour: green}}}
    objective: {spokes: 1}
    training: {optimizer: {name: adamw}, clip: null}
  grandchild:
    extends: child
    flow:
      cars: {repeat: 5, of: {spare: sized}}
  other:
    extends: child
    flow: {name: cart, wheels: []}
"""
    )
    found = load_recipes(write(text), builtin=False)
    car = {"name": "cart", "wheels": [], "spare": {"name": "plain", "spokes": 3, "colour": "green"}}
    child = found["child"]
    assert child.flow == {"name": "train", "cars": {"repeat": 2, "of": car}}
    assert child.objective == {"name": "plain", "spokes": 1}
    assert child.training == {"optimizer": {"name": "adamw", "lr": 1e-2}, "clip": None}
    assert child.budget == {"steps": 100}
    assert (child.title, child.paper) == ("child", "A paper")
    again = {"name": "train", "cars": {"repeat": 5, "of": {**car, "spare": "sized"}}}
    assert found["grandchild"].flow == again
    assert found["other"].flow == {"name": "cart", "wheels": []}
    assert found["base"].training["clip"] == 1


def test_a_parent_may_stand_below_its_child(write):
    text = BASE.replace("recipes:\n", "recipes:\n  first: {extends: base}\n")
    found = load_recipes(write(text), builtin=False)
    assert found["first"].flow == found["base"].flow


def test_a_component_of_another_name_replaces_wholly(write):
    text = (
        BASE
        + """
  child:
    extends: base
    flow: {cars: {of: {spare: {name: sized}}}}
  list:
    extends: base
    flow: {cars: {of: {spare: {repeat: 2, of: plain}}}}
"""
    )
    found = load_recipes(write(text), builtin=False)
    assert found["child"].flow["cars"]["of"]["spare"] == {"name": "sized"}
    assert found["list"].flow["cars"]["of"]["spare"] == {"repeat": 2, "of": "plain"}


def test_a_user_s_file_changes_a_recipe_only_on_purpose(write):
    base = write(BASE, "base.yaml")
    same = write("recipes:\n  base: {flow: a, objective: b}")
    assert refused(same, base) == [
        f"recipes.base: {base} already has a recipe 'base'; choose another name, or say "
        "`extends: base` to change it"
    ]
    changed = write("recipes:\n  base: {extends: base, budget: {steps: 7}}", "changed.yaml")
    recipe = load_recipes(base, changed, builtin=False)["base"]
    assert (recipe.budget, recipe.title, recipe.source) == ({"steps": 7}, "The base", str(changed))


def test_all_problems_of_a_file_are_said_at_once(write):
    text = (
        BASE
        + """
  orphan: {extends: bse}
  one: {extends: two}
  two: {extends: one}
  self: {extends: self}
  number: 3
  empty: {}
  typo: {flow: cart, objective: plain, traning: {}}
  values: {flow: 3, objective: {spokes: 1}, training: {clip: x}, budget: {stps: 1}, notes: 2}
  heir: {extends: values, training: {ema: y}}
recipe: {}
"""
    )
    said = refused(write(text))
    expected = [
        "recipe: expected the one top key `recipes`",
        "recipes.orphan.extends: unknown recipe 'bse'; did you mean 'base'? (available: base, ",
        "recipes.two.extends: a recipe extends itself: one -> two -> one",
        "recipes.self.extends: a recipe extends itself: self -> self",
        "recipes.number: expected a mapping with flow, objective, title, training, budget, ",
        "recipes.empty: recipe needs the option 'flow' (a string or a mapping)",
        "recipes.empty: recipe needs the option 'objective' (a string or a mapping)",
        "recipes.typo.traning: recipe has no option 'traning'; did you mean 'training'?",
        "recipes.values.flow: expected a string or a mapping, got 3",
        "recipes.values.objective: expected a name or a mapping with a `name`",
        "recipes.values.training.clip: expected a number, got 'x'",
        "recipes.values.budget.stps: budget has no option 'stps'; did you mean 'steps'?",
        "recipes.values.notes: expected a string, got 2",
        "recipes.heir.training.ema: expected a number, got 'y'",
    ]
    assert len(said) == len(expected), said
    for line in expected:
        assert any(s.startswith(line) for s in said), line


@pytest.mark.parametrize("text", ["[1]", "3", "recipes: [a]", "flow: x"])
def test_a_file_without_recipes_is_refused(write, text):
    assert len(refused(write(text))) == 1


@pytest.mark.parametrize("text", ["", "recipes:\n", "recipes: {}"])
def test_an_empty_file_has_no_recipes(write, text):
    assert load_recipes(write(text), builtin=False) == {}


def test_components_of_a_recipe_are_checked_against_a_registry(write):
    text = BASE.replace("spokes: 3", "spoks: 3").replace("objective: plain", "objective: likelihod")
    file = write(text)
    recipe = load_recipes(file, builtin=False)["base"]
    registry = Registry([*toy_zoo.zoo().components(), *Registry.installed().components()])
    flow = {"name": "continuous", "velocity": "mlp", "trace": {"name": "hutchinson", "sample": 2}}
    for deep in (False, True):
        found = recipe_problems(
            Recipe("r", "R", flow, "likelihod", source="f.yaml"), registry, deep
        )
        assert [str(p).partition(";")[0] for p in found] == [
            "f.yaml: recipes.r.flow.trace.sample: trace 'hutchinson' has no option 'sample'",
            "f.yaml: recipes.r.objective: unknown objective 'likelihod'",
        ]
    assert recipe_problems(recipe, registry)[0].file == str(file)


# --- swap ----------------------------------------------------------------------------------------


def recipe():
    block = {"name": "continuous", "velocity": "mlp", "trace": "exact"}
    return Recipe(
        "r",
        "R",
        {"name": "chain", "blocks": {"repeat": 2, "of": [block, {**block, "end_time": 0.5}]}},
        {"name": "likelihood", "regularizers": ["transport", {"name": "hjb", "weight": 2}]},
        training={"batch_size": 64, "optimizer": {"lr": 0.1}},
        budget={"steps": 10},
    )


def test_a_name_is_swapped_wherever_it_stands():
    swapped = swap(recipe(), "trace", {"name": "hutchinson", "samples": 2})
    for block in swapped.flow["blocks"]["of"]:
        assert block["trace"] == {"name": "hutchinson", "samples": 2}
    assert swapped.objective == recipe().objective
    assert recipe().flow["blocks"]["of"][0]["trace"] == "exact"
    assert swap(recipe(), "regularizers", []).objective == {
        "name": "likelihood",
        "regularizers": [],
    }


def test_how_often_a_part_is_repeated_can_be_set():
    swapped = swap(recipe(), "flow.blocks.repeat", 3)
    assert swapped.flow["blocks"] == {**recipe().flow["blocks"], "repeat": 3}


def test_who_sets_a_name_is_told_to_set_the_part():
    with pytest.raises(UserError, match=r"set 'flow.blocks.of.1.trace' to its name"):
        swap(recipe(), "flow.blocks.of.1.trace.name", "slq")


def test_a_path_is_swapped_where_it_leads():
    swapped = swap(recipe(), "flow.blocks.of.1.trace", "slq")
    assert [b["trace"] for b in swapped.flow["blocks"]["of"]] == ["exact", "slq"]
    assert swap(recipe(), "objective.regularizers.1.weight", 5).objective["regularizers"] == [
        "transport",
        {"name": "hjb", "weight": 5},
    ]
    assert swap(recipe(), "objective", "likelihood").objective == "likelihood"
    changed = swap(recipe(), "training.clip", 1.0).training
    assert changed == {"batch_size": 64, "optimizer": {"lr": 0.1}, "clip": 1.0}
    assert swap(recipe(), "training.optimizer.lr", 0.2).training["optimizer"] == {"lr": 0.2}


def test_an_option_left_at_its_default_is_a_part_for_a_registry():
    registry = Registry.installed()
    with pytest.raises(UserError, match="has no part 'integrator'"):
        swap(recipe(), "integrator", "rk1")
    swapped = swap(recipe(), "integrator", "rk1", registry)
    assert [b["integrator"] for b in swapped.flow["blocks"]["of"]] == ["rk1", "rk1"]
    named = Recipe(
        "n", "N", {"name": "continuous", "velocity": "mlp", "trace": "slq"}, "likelihood"
    )
    assert swap(named, "flow.trace.samples", 3, registry).flow["trace"] == {
        "name": "slq",
        "samples": 3,
    }
    assert swap(named, "regularizers", ["hjb"], registry).objective == {
        "name": "likelihood",
        "regularizers": ["hjb"],
    }


def test_a_part_that_is_not_there_is_refused_with_those_that_are():
    said = r"recipe 'r' has no part 'trce'; did you mean 'trace'\? \(parts: .*regularizers, trace"
    with pytest.raises(UserError, match=said):
        swap(recipe(), "trce", "exact")
    said = r"no part 'objective.regularizer'; did you mean 'objective.regularizers'\?"
    with pytest.raises(UserError, match=said):
        swap(recipe(), "objective.regularizer", [], Registry.installed())
    with pytest.raises(UserError, match=r"no part 'training.clp'; did you mean 'training.clip'\?"):
        swap(recipe(), "training.clp", 1)


def test_a_number_that_does_not_fit_is_refused():
    with pytest.raises(Problems, match=r"recipes.r.training.clip: expected a number, got 'x'"):
        swap(recipe(), "training.clip", "x")
