"""Specs: every kind of option, every sentence, the same with and without importing the classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest
import toy_zoo
import yaml
from toy_zoo import Cart, Plain, Sized, Solid, Train, Wheel

from flowzoo.build import (
    Problem,
    Problems,
    build,
    build_dataclass,
    check_value,
    convert,
    dataclass_problems,
    describe,
    parts,
    plain,
    problems,
    resolved,
    shallow_problems,
)
from flowzoo.errors import Incompatible
from flowzoo.registry import Registry
from flowzoo.registry.signature import class_options, type_text
from flowzoo.registry.source import source_options
from flowzoo.settings import Budget, Training

ZOO = toy_zoo.zoo()


# --- construction --------------------------------------------------------------------------------


def test_a_name_is_a_spec():
    wheel = build("wheel", "plain", ZOO)
    assert type(wheel) is Plain
    assert (wheel.spokes, wheel.colour) == (8, "red")


def test_options_are_constructor_arguments_wherever_they_are_inherited():
    assert build("wheel", {"name": "inherited", "spokes": 3}, ZOO).spokes == 3
    solid = build("wheel", {"name": "solid", "weight": 2, "holes": [1, 2]}, ZOO)
    assert solid == Solid(2.0, [1.0, 2.0])
    assert build("wheel", {"name": "solid", "weight": 2}, ZOO).holes == []


def test_nested_specs_become_components():
    spec = {
        "name": "cart",
        "wheels": ["plain", {"name": "plain", "spokes": 5}],
        "spare": {"name": "solid", "weight": 1},
    }
    cart = build("vehicle", spec, ZOO)
    assert [w.spokes for w in cart.wheels] == [8, 5]
    assert cart.spare == Solid(1.0)
    assert cart.solid is None


def test_plain_options_become_what_the_annotation_says():
    spec = {
        "name": "cart",
        "wheels": [],
        "load": "1e-3",
        "sizes": [3, 1e3],
        "weights": {"a": 1},
        "log": "here/log.txt",
        "paint": {"colour": "green", "mix": [1, 0]},
        "either": [1, 2],
        "anything": {"x": [1]},
        "spare": None,
    }
    cart = build("vehicle", spec, ZOO)
    assert (cart.load, cart.sizes, cart.weights) == (1e-3, (3, 1000), {"a": 1.0})
    assert isinstance(cart.weights["a"], float)
    assert cart.log == Path("here/log.txt")
    assert cart.paint == toy_zoo.Paint("green", 1, (1.0, 0.0))
    assert (cart.either, cart.anything, cart.spare) == ([1, 2], {"x": [1]}, None)


def test_repetition_makes_fresh_objects_in_order():
    spec = {"name": "cart", "wheels": {"repeat": 2, "of": ["plain", "inherited"]}}
    wheels = build("vehicle", spec, ZOO).wheels
    assert [type(w).__name__ for w in wheels] == ["Plain", "Inherited"] * 2
    assert len({id(w) for w in wheels}) == 4
    one = build("vehicle", {"name": "cart", "wheels": {"repeat": 3, "of": "plain"}}, ZOO)
    assert len({id(w) for w in one.wheels}) == 3
    mixed = {"name": "cart", "wheels": ["solid", {"repeat": 2, "of": "plain"}]}
    mixed["wheels"][0] = {"name": "solid", "weight": 1}
    kinds = [type(w).__name__ for w in build("vehicle", mixed, ZOO).wheels]
    assert kinds == ["Solid", "Plain", "Plain"]


def test_objects_already_built_pass_through():
    wheel = Plain(3)
    cart = build("vehicle", {"name": "cart", "wheels": [wheel, "plain"]}, ZOO)
    assert cart.wheels[0] is wheel
    assert build("wheel", wheel, ZOO) is wheel
    found = problems("vehicle", {"name": "cart", "wheels": [], "solid": wheel}, ZOO, "x")
    assert str(found[0]) == "x.solid: expected a Solid, got a Plain"


def test_the_dimension_is_supplied_wherever_it_is_an_argument_and_not_given():
    spec = {
        "name": "train",
        "cars": [{"name": "cart", "wheels": ["sized", {"name": "sized", "dim": 7}]}],
    }
    assert problems("vehicle", spec, ZOO, "") == []
    train = build("vehicle", spec, ZOO, dim=3, context_dim=2)
    assert (train.dim, train.context_dim) == (3, 2)
    assert [w.dim for w in train.cars[0].wheels] == [3, 7]
    assert isinstance(train, Train)
    assert isinstance(train.cars[0].wheels[0], Sized)


def test_errors_of_constructors_keep_their_type_and_get_their_path():
    spec = {"name": "train", "cars": [{"name": "cart", "wheels": ["sized"]}]}
    said = r"^flow\.cars\.0\.wheels\.0: no wheel is as large as 101$"
    with pytest.raises(Incompatible, match=said):
        build("vehicle", spec, ZOO, where="flow", dim=101)


def test_build_raises_all_problems_at_once():
    with pytest.raises(Problems) as raised:
        build("vehicle", {"name": "cart", "wheels": "plain", "loud": 1}, ZOO)
    assert len(raised.value.problems) == 2
    assert str(raised.value).count("\n") == 1


# --- problems ------------------------------------------------------------------------------------

WRONG: list[tuple[Any, list[str]]] = [
    (3, ["p: expected a vehicle: a name or a mapping with a `name`, got 3"]),
    (
        {"nam": "cart"},
        ["p: expected a vehicle: a name or a mapping with a `name`, got {'nam': 'cart'}"],
    ),
    ("crat", ["p: unknown vehicle 'crat'; did you mean 'cart'? (available: cart, train)"]),
    ("cart", ["p: vehicle 'cart' needs the option 'wheels' (a list of wheels)"]),
    (
        {"name": "train", "cars": [], "crs": []},
        [
            "p.crs: vehicle 'train' has no option 'crs'; did you mean 'cars'? "
            "(options: cars, context_dim, dim)"
        ],
    ),
    (
        {"name": "train", "cars": [{"name": "cart", "wheels": [{"name": "plain", "spoks": 1}]}]},
        [
            "p.cars.0.wheels.0.spoks: wheel 'plain' has no option 'spoks'; did you mean 'spokes'? "
            "(options: colour, spokes)"
        ],
    ),
    (
        {"name": "cart", "wheels": {"repeat": 3, "of": "plian"}},
        ["p.wheels.of: unknown wheel 'plian'; did you mean 'plain'? (available: absent, inherited, "
         "misfiled, paint, plain, sized, solid, unfinished)"],
    ),
    (
        {"name": "cart", "wheels": {"repeat": 0, "of": "plain"}},
        ["p.wheels.repeat: expected a positive integer, got 0"],
    ),
    ({"name": "cart", "wheels": "plain"}, ["p.wheels: expected a list of wheels, got 'plain'"]),
    (
        {
            "name": "cart",
            "wheels": [],
            "load": "heavy",
            "horn": 1,
            "sign": 2,
            "sizes": ["two"],
            "weights": {"a": "b"},
            "either": "x",
            "spare": {"name": "plain", "spokes": True, "colour": "gren"},
        },
        [
            "p.load: expected a number, got 'heavy'",
            "p.horn: expected true or false, got 1",
            "p.sign: expected a string, got 2",
            "p.sizes.0: expected an integer, got 'two'",
            "p.weights.a: expected a number, got 'b'",
            "p.either: expected an integer or a list of integers, got 'x'",
            "p.spare.spokes: expected an integer, got true",
            "p.spare.colour: expected one of 'red', 'green', got 'gren'; did you mean 'green'?",
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "said"), WRONG, ids=[str(i) for i in range(len(WRONG))])
@pytest.mark.parametrize("check", [problems, shallow_problems])
def test_every_problem_is_one_sentence_with_its_path(check, spec, said):
    found = [str(p) for p in check("vehicle", spec, ZOO, "p")]
    assert sorted(found) == sorted(said)


def test_what_only_the_classes_tell():
    cart = {"name": "cart", "wheels": [], "solid": "plain"}
    assert [str(p) for p in problems("vehicle", cart, ZOO, "p")] == ["p.solid: 'plain' is no Solid"]
    (found,) = problems("wheel", "unfinished", ZOO, "p")
    assert str(found).endswith("of toys 1.0 is broken: it does not implement turn")
    (found,) = problems("wheel", "absent", ZOO, "p")
    assert str(found).startswith("p: the wheel 'absent' of toys 1.0 is broken: AttributeError")
    paint = {"name": "cart", "wheels": [], "paint": {"layers": "x", "colr": 1}}
    assert [p.path for p in problems("vehicle", paint, ZOO, "p")] == [
        "p.paint.colr",
        "p.paint.layers",
    ]


def test_annotations_that_are_not_importable_are_the_component_s_fault(tmp_path):
    file = tmp_path / "typed.py"
    file.write_text(
        "from __future__ import annotations\nimport toy_zoo\n"
        "class W(toy_zoo.Plain):\n    def __init__(self, x: Unseen) -> None: ...\n"
        "def flowzoo_components(): return {'w': W}"
    )
    (found,) = problems("wheel", {"name": "w", "x": 1}, Registry().with_files([file]), "p")
    assert str(found) == "p: the wheel 'w' of typed.py is broken: its annotations need Unseen"


# --- source against class ------------------------------------------------------------------------


def targets():
    registry = Registry.installed()
    classes = [c for c in registry.load_all() if c.state == "ok"]
    return [*classes, *(c for c in ZOO.load_all() if c.state == "ok")]


@pytest.mark.parametrize("component", targets(), ids=lambda c: f"{c.kind}-{c.name}")
def test_the_source_tells_what_the_class_tells(component):
    registry = ZOO if component.origin.startswith("toys") else Registry.installed()
    read = source_options(component.target)
    if read is None:
        assert not component.origin.startswith(("flowzoo ", "toys"))
        pytest.skip("a stranger's source need not tell")
    known = class_options(registry.load(component.kind, component.name))
    assert list(read) == list(known)
    for name, option in read.items():
        assert option.required == known[name].required
        if option.annotation is not Any and "value" not in option.type:
            assert sorted(option.type.split(" or ")) == sorted(known[name].type.split(" or "))


def test_most_built_in_components_can_be_checked_without_importing_them():
    known = [c for c in Registry.installed().components() if source_options(c.target) is not None]
    assert len(known) >= 0.9 * len(Registry.installed().components())


def test_parts_are_found_where_they_stand():
    spec = {"name": "train", "cars": {"repeat": 2, "of": {"name": "cart", "wheels": ["plain"]}}}
    found = parts("vehicle", spec, ZOO, "flow")
    assert [(p.path, p.component.name) for p in found] == [
        ("flow", "train"),
        ("flow.cars.of", "cart"),
        ("flow.cars.of.wheels.0", "plain"),
    ]
    assert "spare" in (found[1].options or ())


# --- resolved ------------------------------------------------------------------------------------


def test_resolved_writes_out_every_default_as_plain_data():
    spec = {"name": "train", "cars": [{"name": "cart", "wheels": {"repeat": 2, "of": "plain"}}]}
    found = resolved("vehicle", spec, ZOO)
    assert yaml.safe_load(yaml.safe_dump(found)) == found
    cart = found["cars"][0]
    assert set(found) == {"name", "cars"}
    assert cart["wheels"] == [{"name": "plain", "spokes": 8, "colour": "red"}] * 2
    assert cart["paint"] == {"colour": "red", "layers": 1, "mix": [0.5, 0.5]}
    assert (cart["sizes"], cart["spare"], cart["call"]) == ([1, 2], None, "len")
    del cart["call"]  # a function is named, but cannot be written in a spec
    assert resolved("vehicle", found, ZOO)["cars"][0].items() >= cart.items()
    given = resolved("wheel", {"name": "sized", "dim": 3}, ZOO)
    assert given == {"name": "sized", "dim": 3, "spokes": 4}
    with pytest.raises(Problems):
        resolved("vehicle", "crat", ZOO)


def test_equal_specs_resolve_to_equal_data():
    short = resolved("wheel", {"name": "solid", "weight": 1}, ZOO)
    assert short == resolved("wheel", {"name": "solid", "weight": "1.0", "holes": []}, ZOO)


def test_plain_data_holds_no_addresses():
    assert plain({"a": (1, Path("x")), "f": test_equal_specs_resolve_to_equal_data}) == {
        "a": [1, "x"],
        "f": "test_equal_specs_resolve_to_equal_data",
    }
    assert "0x" not in str(plain([object(), Plain(), lambda: 0]))


# --- describe ------------------------------------------------------------------------------------


def test_describe_names_types_defaults_and_help():
    spokes, colour = describe(Plain)
    assert (spokes.name, spokes.type, spokes.default) == ("spokes", "an integer", 8)
    assert spokes.help == "How many there are, all of one length."
    assert colour.type == "one of 'red', 'green'"
    dim, inherited = describe(Sized)
    assert (dim.required, dim.default_text, dim.help) == (True, "required", "Its size.")
    assert inherited.help == spokes.help
    texts = {o.name: (o.type, o.default_text) for o in describe(Cart)}
    assert texts["wheels"] == ("a list of wheels", "required")
    assert texts["spare"] == ("a wheel or null", "null")
    assert texts["horn"] == ("true or false", "false")
    assert texts["call"][1] == "len"


def test_every_option_of_a_built_in_component_has_a_type():
    for component in Registry.installed().load_all():
        if component.state == "ok" and component.origin.startswith("flowzoo "):
            for option in describe(Registry.installed().load(component.kind, component.name)):
                assert option.annotation is not Any, (component, option)


# --- plain values and dataclasses ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, 1e5, 100_000),
        (float, 3, 3.0),
        (float, "1e-3", 1e-3),
        (float, "-.5E+2", -50.0),
        (float, float("inf"), float("inf")),
        (bool, False, False),
        (str, "1e-3", "1e-3"),
        (int | None, None, None),
        (float | str, "1e-3", 1e-3),
        (float | str, "fast", "fast"),
        (Literal["a", 1], 1, 1),
        (tuple[float, float], [1, "2e0"], (1.0, 2.0)),
        (tuple[int, ...], [], ()),
        (list[int], {"repeat": 2, "of": [1, 2]}, [1, 2, 1, 2]),
        (dict[str, float], {"a": 1}, {"a": 1.0}),
        (list, [1, "a"], [1, "a"]),
        (dict, {"a": 1}, {"a": 1}),
        (Any, object, object),
        (dict[str, Any] | str, {"name": "x"}, {"name": "x"}),
    ],
)
def test_values_are_converted(annotation, value, expected):
    assert check_value(annotation, value, "p") == []
    found = convert(annotation, value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value", "said"),
    [
        (int, 2.5, "expected an integer, got 2.5"),
        (int, "5", "expected an integer, got '5'"),
        (int, True, "expected an integer, got true"),
        (int, None, "expected an integer, got null"),
        (float, False, "expected a number, got false"),
        (float, float("nan"), "expected a number, got nan"),
        (bool, "yes", "expected true or false, got 'yes'"),
        (str, 1, "expected a string, got 1"),
        (Path, 1, "expected a path, got 1"),
        (None, 1, "expected null, got 1"),
        (Literal["a", 1], True, "expected one of 'a', 1, got true"),
        (tuple[float, float], [1], "expected a list of 2 numbers, got [1]"),
        (tuple[float, str], [1, "a", 2], "expected a list of 2 values, got [1, 'a', 2]"),
        (list[int], 1, "expected a list of integers, got 1"),
        (dict[str, float], [1], "expected a mapping, got [1]"),
        (int | bool, "x", "expected an integer or true or false, got 'x'"),
        (Training, 3, "expected a mapping, got 3"),
        (list[int], "x" * 99, "expected a list of integers, got '" + "x" * 56 + "..."),
    ],
)
def test_values_that_do_not_fit_are_named(annotation, value, said):
    assert check_value(annotation, value, "a.b") == [Problem("a.b", said)]
    with pytest.raises(Problems, match=r"^a\.b: expected"):
        convert(annotation, value, "a.b")


def test_dataclasses_are_read_from_mappings():
    mapping = {"batch_size": 1e3, "optimizer": {"name": "adamw", "lr": "1e-2", "betas": [0.9, 1]}}
    training = build_dataclass(Training, mapping, "training")
    assert training.batch_size == 1000
    assert training.optimizer.betas == (0.9, 1.0)
    assert training.schedule == Training().schedule
    assert build_dataclass(Budget, {}, "budget") == Budget()
    again = build_dataclass(Training, plain(training), "training")
    assert again == training
    assert dataclasses.is_dataclass(again)


def test_all_problems_of_a_dataclass_are_found():
    mapping = {"batchsize": 1, "clip": "x", "optimizer": {"name": "adm", "betas": [1]}}
    found = [str(p) for p in dataclass_problems(Training, mapping, "training")]
    assert len(found) == 4
    assert found[0].startswith(
        "training.batchsize: training has no option 'batchsize'; did you mean"
    )
    assert "training.clip: expected a number, got 'x'" in found
    assert any(
        f.startswith("training.optimizer.name: expected one of 'adam', 'adamw'") for f in found
    )
    assert "training.optimizer.betas: expected a list of 2 numbers, got [1]" in found


def test_an_interface_is_known_by_its_kind():
    assert type_text(Wheel | None) == "a wheel or null"
    assert type_text(dict[str, float]) == "a mapping"
