"""A matrix file, read and checked. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowzoo.bench.grid import DataEntry, FlowEntry, Matrix, spec_text
from flowzoo.bench.resources import Resources
from flowzoo.build import build_dataclass, check_value, convert, dataclass_problems
from flowzoo.errors import UserError
from flowzoo.recipes import Recipe, load_recipes, load_yaml, swap
from flowzoo.registry import Registry, suggest
from flowzoo.registry.reader import Problem, Problems
from flowzoo.settings import Budget, Judge, Training

PLUGINS = "flowzoo_plugins.py"  # found by itself beside a matrix
DEFAULT_METRICS = ("nll",)
_SETTINGS: dict[str, type] = {"training": Training, "budget": Budget}
_TYPES: dict[str, Any] = {
    "title": str,
    "flows": list[str | dict],
    "data": list[str | dict],
    "seeds": int | list[int],
    "swap": dict[str, list],
    "training": dict[str, Any],
    "budget": dict[str, Any],
    "metrics": list[str | dict],
    "judge": Judge,
    "resources": Resources,
    "recipes": list[str],
    "plugins": list[str],
    "exclude": list[dict],
}


def load_matrix(path: str | Path) -> Matrix:
    """Return a matrix file, checked as far as that goes without importing torch.

    Paths in it are relative to its own folder. Numbers of the matrix go over those of the recipes:
    `training` merges into theirs, `budget` replaces theirs as a whole, so that all cells have the
    same one, and a flow's own `set` goes over both.

    Raises:
        UserError: The file, or one that it names, is missing or not YAML.
        Problems: Everything that is wrong with it, each with file, path and suggestions.
    """
    path = Path(path)
    return matrix_from(load_yaml(path), path)


def matrix_from(content: Any, source: str | Path) -> Matrix:
    """Return a matrix from a mapping, as `load_matrix` does from a file.

    Arguments:
        content: What the file would hold.
        source: The file it would be; its folder is where paths start.
    """
    reader = _Reader(Path(source))
    matrix = reader.matrix(content)
    found = [*reader.found, *(matrix.problems() if matrix else ())]
    if found or matrix is None:
        raise Problems(dict.fromkeys(found))
    return matrix


class _Reader:
    """Reads one file's keys, noting everything that is wrong."""

    def __init__(self, path: Path) -> None:
        self.path, self.base = path, path.resolve().parent
        self.found: list[Problem] = []
        self.registry = Registry.installed()

    def fail(self, path: str, message: str) -> None:
        """Note a problem."""
        self.found.append(Problem(path, message, str(self.path)))

    def matrix(self, content: Any) -> Matrix | None:
        """Return the matrix of what is right in the file; None where it is no mapping."""
        if not isinstance(content, dict):
            self.fail("", "expected a mapping with flows and data, as in `flows: [ot-flow]`")
            return None
        self.unknown_keys(content, _TYPES, "")
        values = {k: self.value(k, v) for k, v in content.items() if k in _TYPES}
        given = {k: v for k, v in values.items() if v is not None}
        for key in ("flows", "data"):
            if not content.get(key):
                self.fail(key, f"expected at least one entry in {key}")
        self.plugins(given.get("plugins", []))
        seeds = given.get("seeds", 1)
        matrix = Matrix(
            name=self.path.stem,
            title=given.get("title", self.path.stem),
            source=self.path,
            flows=tuple(self.flows(given)),
            data=tuple(self.data(given.get("data", []))),
            registry=self.registry,
            seeds=tuple(range(seeds) if isinstance(seeds, int) else seeds),
            swaps=given.get("swap", {}),
            metrics=tuple(given.get("metrics", DEFAULT_METRICS)),
            judge=given.get("judge", Judge()),
            resources=given.get("resources", Resources()),
            exclude=tuple(given.get("exclude", [])),
            content=content,
        )
        self.labels(matrix)
        return matrix

    def unknown_keys(self, given: Mapping, known: Mapping | tuple[str, ...], path: str) -> None:
        """Note keys that are not known."""
        for key in given:
            if key not in known:
                at = f"{path}.{key}" if path else str(key)
                self.fail(at, f"unknown key '{key}'{suggest(key, known, 'keys')}")

    def value(self, key: str, value: Any) -> Any:
        """Return one key's value as its type; None where it is wrong."""
        if value is None:
            return None
        wrong = check_value(_TYPES[key], value, key)
        if key in _SETTINGS and not wrong:
            wrong = dataclass_problems(_SETTINGS[key], value, key)
        self.found += [replace(p, file=str(self.path)) for p in wrong]
        return None if wrong else convert(_TYPES[key], value, key)

    def plugins(self, given: list[str]) -> None:
        """Add the components of plugin files, also of the one that is found by itself."""
        beside = self.base / PLUGINS
        files = [beside] if beside.is_file() else []
        try:
            self.registry = self.registry.with_files([*files, *(self.base / f for f in given)])
        except UserError as error:
            self.fail("plugins", str(error))

    def flows(self, given: dict[str, Any]) -> Iterator[FlowEntry]:
        """Yield the flows, with the matrix's settings and their own `set` merged in."""
        try:
            recipes = load_recipes(*(self.base / f for f in given.get("recipes", [])))
        except UserError as error:
            own = Problem("recipes", str(error), str(self.path))
            self.found += error.problems if isinstance(error, Problems) else [own]
            return
        for i, entry in enumerate(given.get("flows", [])):
            path, entry = f"flows.{i}", {"recipe": entry} if isinstance(entry, str) else entry
            self.unknown_keys(entry, ("recipe", "as", "set"), path)
            name = entry.get("recipe")
            if name not in recipes:
                hint = suggest(name, sorted(recipes), "recipes")
                self.fail(path, f"unknown recipe '{name}'{hint}" if name else "needs a `recipe`")
                continue
            origin = recipes[name]
            training = merged(origin.training, given.get("training", {}))
            budget = given.get("budget") or origin.budget
            recipe = replace(origin, training=training, budget=budget)
            recipe = self.set(recipe, entry.get("set") or {}, f"{path}.set")
            try:
                build_dataclass(Budget, recipe.budget, "budget").limits()
            except UserError as error:
                self.fail(path, f"recipe '{name}': {error}")
            yield FlowEntry(str(entry.get("as", name)), recipe, origin, path)

    def set(self, recipe: Recipe, changes: Any, path: str) -> Recipe:
        """Return a recipe with some of its numbers and parts changed."""
        if not isinstance(changes, dict):
            self.fail(path, "expected a mapping such as {training.batch_size: 256}")
            return recipe
        for key, value in changes.items():
            head, _, rest = str(key).partition(".")
            if head in _SETTINGS and rest:
                tree = merged(getattr(recipe, head), nested(rest, value))
                wrong = dataclass_problems(_SETTINGS[head], tree, head)
                for problem in wrong:
                    self.fail(f"{path}.{key}", problem.message)
                recipe = recipe if wrong else replace(recipe, **{head: tree})
                continue
            try:
                recipe = swap(recipe, str(key), value, self.registry)
            except UserError as error:
                self.fail(f"{path}.{key}", str(error))
        return recipe

    def data(self, entries: list[Any]) -> Iterator[DataEntry]:
        """Yield the data sets; without `as` the name is the label, with options where needed."""
        names = [e if isinstance(e, str) else e.get("name") for e in entries]
        for i, (entry, name) in enumerate(zip(entries, names, strict=True)):
            given = {} if isinstance(entry, str) else entry
            spec = {k: v for k, v in given.items() if k != "as"} or entry
            short = str(name) if names.count(name) == 1 else spec_text(spec)
            yield DataEntry(str(given.get("as", short)), spec, f"data.{i}")

    def labels(self, matrix: Matrix) -> None:
        """Note labels and seeds that are used twice, and exclusions of what is not there."""
        known: dict[str, list[Any]] = {"seed": list(matrix.seeds)}
        for what, entries in (("flow", matrix.flows), ("data", matrix.data)):
            known[what] = [entry.label for entry in entries]
            for i, entry in enumerate(entries):
                if entry.label in known[what][:i]:
                    said = f"the label '{entry.label}' is taken; give one of them another `as`"
                    self.fail(entry.path, said)
        if len(set(matrix.seeds)) < len(matrix.seeds) or min(matrix.seeds, default=-1) < 0:
            self.fail("seeds", "expected at least one integer, none negative and none twice")
        known["swap"] = list(dict.fromkeys(variant.swap for variant in matrix.variants()))
        for i, rule in enumerate(matrix.exclude):
            self.unknown_keys(rule, known, f"exclude.{i}")
            for key, value in rule.items():
                if key in known and value not in known[key]:
                    hint = suggest(value, known[key])
                    self.fail(f"exclude.{i}.{key}", f"there is no {key} '{value}'{hint}")


def merged(base: Any, own: Any) -> Any:
    """Return `own` on top of `base`: mappings merge, everything else is replaced."""
    if not (isinstance(own, Mapping) and isinstance(base, Mapping)):
        return own
    return {**base, **{key: merged(base.get(key), value) for key, value in own.items()}}


def nested(path: str, value: Any) -> dict[str, Any]:
    """Return `{a: {b: value}}` for the path `a.b`."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value
