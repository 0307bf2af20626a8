"""Recipes: named compositions of components with their numbers, read from YAML.

A file has one top key, `recipes`, a mapping from names to recipes. `extends: other` starts from
another recipe: mappings merge, lists and scalars replace, and a component whose `name` changes
replaces the other one wholly. A title is not inherited. A user's file may not redefine a recipe by
accident: one that has the name of an earlier file's must say that it extends it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flowzoo.build import dataclass_problems, parts, problems, shallow_problems
from flowzoo.errors import UserError
from flowzoo.registry import Registry, suggest
from flowzoo.registry.reader import Problem, Problems, show
from flowzoo.registry.yamlfile import load_yaml
from flowzoo.settings import Budget, Training

__all__ = ["Problems", "Recipe", "load_recipes", "load_yaml", "recipe_problems", "swap"]

BUILTIN = Path(__file__).with_name("registry.yaml")
_SPECS = ("flow", "objective")
_SETTINGS = {"training": Training, "budget": Budget}
Place = tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """One published method, or a variant of one.

    Arguments:
        name: What a matrix calls it.
        title: What a table calls it.
        flow: Spec of the flow.
        objective: Spec of the objective.
        training: `settings.Training`, what differs from its defaults.
        budget: `settings.Budget`, likewise.
        paper: Where the numbers come from.
        notes: What a reader must know about them.
        source: The file that defines it.
    """

    name: str
    title: str
    flow: str | dict[str, Any]
    objective: str | dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)
    paper: str = ""
    notes: str = ""
    source: str = ""


@dataclass(frozen=True)
class _Fields:
    """What a file may say of a recipe, once its parent is merged in."""

    flow: str | dict[str, Any]
    objective: str | dict[str, Any]
    title: str = ""
    extends: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)
    paper: str = ""
    notes: str = ""


_NAMES = [f.name for f in dataclasses.fields(_Fields) if f.name != "extends"]


def load_recipes(*files: str | Path, builtin: bool = True) -> dict[str, Recipe]:
    """Return the recipes of flowzoo and of the user's files, by name.

    Raises:
        UserError: A file is missing or not YAML.
        Problems: Everything that is wrong with the first wrong file, component names and options
            apart: `recipe_problems` checks those against a registry.
    """
    known: dict[str, Recipe] = {}
    for path in ([BUILTIN] if builtin else []) + [Path(f) for f in files]:
        known |= _File(path, known).recipes()
    return known


class _File:
    """One file's recipes, on top of those of earlier files."""

    def __init__(self, path: Path, known: Mapping[str, Recipe]) -> None:
        self.path, self.known = path, known
        self.problems: list[Problem] = []
        self.merged: dict[str, dict[str, Any] | None] = {}
        data = load_yaml(path)
        self.raw: dict[str, Any] = {}
        if data is not None and not isinstance(data, dict):
            self.fail("", f"expected the one top key `recipes`, got {show(data)}")
        for key, value in data.items() if isinstance(data, dict) else ():
            if key != "recipes":
                self.fail(str(key), "expected the one top key `recipes`")
            elif value is not None and not isinstance(value, dict):
                self.fail(key, f"expected a mapping from names to recipes, got {show(value)}")
            else:
                self.raw = {str(name): recipe for name, recipe in (value or {}).items()}

    def fail(self, path: str, message: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(path, message, str(self.path)))

    def recipes(self) -> dict[str, Recipe]:
        """Return the file's recipes, or raise everything that is wrong with them."""
        fields = {name: self.fields(name) for name in self.raw}
        right = {name: f for name, f in fields.items() if f is not None}
        wrong = {name: list(_field_problems(f)) for name, f in right.items()}
        for name, found in wrong.items():
            parent = str(self.raw[name].get("extends"))
            for problem in found:
                # What the parent gets wrong is said once, at the parent.
                if parent == name or problem not in wrong.get(parent, []):
                    self.fail(f"recipes.{name}{problem.path}", problem.message)
        if self.problems:
            raise Problems(self.problems)
        source = str(self.path)
        return {
            n: Recipe(**{"title": n, **f, "name": n, "source": source}) for n, f in right.items()
        }

    def fields(self, name: str, children: tuple[str, ...] = ()) -> dict[str, Any] | None:
        """Return a recipe's fields with its parent's merged in; None where that failed."""
        if name in self.merged:
            return self.merged[name]
        path, own = f"recipes.{name}", self.raw[name]
        self.merged[name] = None  # until it succeeds; also what a cycle finds
        if not isinstance(own, dict):
            self.fail(path, f"expected a mapping with {', '.join(_NAMES)}")
            return None
        own = dict(own)
        parent = own.pop("extends", None)
        if name in self.known and parent != name:
            where = self.known[name].source
            said = f"{where} already has a recipe '{name}'; choose another name, or say"
            self.fail(path, f"{said} `extends: {name}` to change it")
        if parent is None:
            self.merged[name] = own
            return own
        base = self.parent(str(parent), name, (*children, name))
        if base is not None:
            title = {"title": base["title"]} if parent == name and "title" in base else {}
            inherited = {k: v for k, v in base.items() if k != "title"} | title
            self.merged[name] = {
                **inherited,
                **{k: _merged(inherited.get(k), v, k in _SPECS) for k, v in own.items()},
            }
        return self.merged[name]

    def parent(self, parent: str, name: str, children: tuple[str, ...]) -> dict[str, Any] | None:
        """Return the fields of the recipe that `name` extends."""
        path = f"recipes.{name}.extends"
        if parent in children and not (parent == name and name in self.known):
            self.fail(path, f"a recipe extends itself: {' -> '.join((*children, parent))}")
        elif parent in self.raw and parent != name:
            return self.fields(parent, children)
        elif parent in self.known:
            return {k: getattr(self.known[parent], k) for k in _NAMES}
        else:
            names = sorted({*map(str, self.raw), *self.known} - {name})
            self.fail(path, f"unknown recipe '{parent}'{suggest(parent, names)}")
        return None


def _merged(base: Any, own: Any, specs: bool) -> Any:
    """Return `own` on top of `base`; in specs a name alone is short for a mapping with a `name`."""
    if not isinstance(own, dict):
        return own
    if specs and isinstance(base, str):
        base = {"name": base}
    if not isinstance(base, dict) or (specs and _replaces(base, own)):
        return own
    return {**base, **{k: _merged(base.get(k), v, specs) for k, v in own.items()}}


def _replaces(base: dict[str, Any], own: dict[str, Any]) -> bool:
    """Return whether a spec is of another component, or of a list instead of one."""
    return own.get("name", base.get("name")) != base.get("name") or ("name" in base and "of" in own)


def _field_problems(fields: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with a recipe's fields, whatever its components are."""
    for problem in dataclass_problems(_Fields, fields, "recipe"):
        yield Problem(problem.path.removeprefix("recipe"), problem.message)
    for key in _SPECS:
        if isinstance(fields.get(key), dict) and not isinstance(fields[key].get("name"), str):
            yield Problem(f".{key}", "expected a name or a mapping with a `name`")
    for key, cls in _SETTINGS.items():
        if isinstance(fields.get(key), dict):
            yield from dataclass_problems(cls, fields[key], f".{key}")


def recipe_problems(recipe: Recipe, registry: Registry, deep: bool = False) -> list[Problem]:
    """Return everything that is wrong with a recipe's components and settings.

    Arguments:
        recipe: The recipe.
        registry: What its names mean.
        deep: Load the classes; without it their source texts are read, and torch is not imported.
    """
    path, check = f"recipes.{recipe.name}", problems if deep else shallow_problems
    found = [
        *check("flow", recipe.flow, registry, f"{path}.flow"),
        *check("objective", recipe.objective, registry, f"{path}.objective"),
        *_settings_problems(recipe),
    ]
    return [replace(problem, file=recipe.source) for problem in found]


def _settings_problems(recipe: Recipe) -> list[Problem]:
    return [
        problem
        for key, cls in _SETTINGS.items()
        for problem in dataclass_problems(cls, getattr(recipe, key), f"recipes.{recipe.name}.{key}")
    ]


def swap(recipe: Recipe, part: str, spec: Any, registry: Registry | None = None) -> Recipe:
    """Return a recipe with one part replaced.

    Arguments:
        recipe: The recipe.
        part: An option's name (`trace`), replaced wherever it stands in the flow and the objective,
            or a path from the recipe's root (`flow.trace`, `training.clip`).
        spec: What to put there.
        registry: With it, options that the recipe leaves at their defaults are parts, too.

    Raises:
        UserError: The recipe has no such part; says which it has.
        Problems: A number of `training` or `budget` does not fit.
    """
    tree = {key: getattr(recipe, key) for key in (*_SPECS, *_SETTINGS)}
    places = list(dict.fromkeys(_places(tree, registry)))
    path = tuple(part.split("."))
    if len(path) > 1 or part in tree:
        matches = [p for p in places if p == path]
    else:
        inside = [p for p in places if p[-1] == part and p[0] in _SPECS]
        matches = [p for p in inside if not any(p[: len(q)] == q for q in inside if q != p)]
    if not matches:
        ends = {p[-1] for p in places if p[0] in _SPECS and not p[-1].isdigit()}
        names = sorted(ends - {"repeat"})
        hint = suggest(part, names if len(path) == 1 else [".".join(p) for p in places], "parts")
        if part.endswith(".name") and path[:-1] in places:
            hint = f": to put another component there, set '{'.'.join(path[:-1])}' to its name"
        raise UserError(f"recipe '{recipe.name}' has no part '{part}'{hint}")
    for match in matches:
        tree = _with(tree, match, spec)
    swapped = replace(recipe, **tree)
    if wrong := _settings_problems(swapped):
        raise Problems(wrong)
    return swapped


def _places(tree: Mapping[str, Any], registry: Registry | None) -> Iterator[Place]:
    """Yield the paths of everything that can be replaced."""
    for key, cls in _SETTINGS.items():
        yield from ((key, f.name) for f in dataclasses.fields(cls))
    for kind in _SPECS if registry else ():
        for found in parts(kind, tree[kind], registry or Registry(), kind):
            yield from ((*found.path.split("."), option) for option in found.options or ())
    yield from _keys(tree, ())


def _keys(value: Any, path: Place) -> Iterator[Place]:
    items = value.items() if isinstance(value, dict) else ()
    for key, inner in enumerate(value) if isinstance(value, list) else items:
        if key not in ("name", "of"):
            yield (*path, str(key))
        yield from _keys(inner, (*path, str(key)))


def _with(tree: Any, path: Place, value: Any) -> Any:
    """Return a copy of nested mappings and lists with another value at a path."""
    if not path:
        return value
    if isinstance(tree, list):
        at = int(path[0])
        return [*tree[:at], _with(tree[at], path[1:], value), *tree[at + 1 :]]
    tree = {"name": tree} if isinstance(tree, str) else tree
    return {**tree, path[0]: _with(tree.get(path[0]), path[1:], value)}
