"""Reads specs and plain values along annotations, noting everything that is wrong with them."""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

from flowzoo.errors import UserError
from flowzoo.registry import Component, Registry, suggest
from flowzoo.registry.signature import Option, class_options, is_component, type_text, with_article
from flowzoo.registry.source import source_options

SUPPLIED = frozenset({"dim", "context_dim"})
_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_SEQUENCES = (list, tuple, collections.abc.Sequence)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where: `recipes.ot-flow.flow.trace`."""

    path: str
    message: str
    file: str = ""

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.file, self.path, self.message)))


class Problems(UserError):
    """Everything that is wrong with a file or a spec, one line each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True)
class Part:
    """A component that a spec uses, where it stands, and the options it takes (None: unknown)."""

    path: str
    component: Component
    options: Collection[str] | None


class Reader:
    """Walks a value along an annotation, collecting problems and what it converts.

    `make` turns a component and its converted options into a result; without it nothing is made.
    With `source`, options come from source texts and no class is imported.
    """

    def __init__(
        self,
        registry: Registry | None = None,
        supplied: Collection[str] = SUPPLIED,
        *,
        source: bool = False,
        make: Callable[[Component, dict[str, Option], dict, str], Any] | None = None,
    ) -> None:
        self.registry = registry or Registry.installed()
        self.supplied, self.source, self.make = supplied, source, make
        self.found: list[Problem] = []
        self.parts: list[Part] = []

    def fail(self, path: str, message: str) -> None:
        """Note a problem, once."""
        problem = Problem(path, message)
        if problem not in self.found:
            self.found.append(problem)

    def component(self, kind: str, spec: object, path: str, interface: type = object) -> Any:
        """Read a spec of one kind."""
        if not isinstance(spec, str | Mapping) and getattr(spec, "kind", None) == kind:
            if not isinstance(spec, interface):
                self.fail(path, f"expected a {interface.__name__}, got a {type(spec).__name__}")
            return spec
        given = {"name": spec} if isinstance(spec, str) else spec
        if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
            wants = f"expected {with_article(kind)}: a name or a mapping with a `name`"
            self.fail(path, f"{wants}, got {show(spec)}")
            return None
        try:
            component = self.registry.component(kind, given["name"])
            options = self.options_of(component, interface)
        except UserError as error:
            self.fail(path, str(error))
            return None
        self.parts.append(Part(path, component, None if options is None else frozenset(options)))
        if options is None:
            return None
        rest = {key: value for key, value in given.items() if key != "name"}
        values = self.options(f"{kind} '{component.name}'", options, rest, path, self.supplied)
        return self.make(component, options, values, path) if self.make else None

    def options_of(self, component: Component, interface: type) -> dict[str, Option] | None:
        """Return a component's options; None where its source does not tell."""
        cls = self.registry.loaded(component)
        if self.source and cls is None:
            return source_options(component.target)
        cls = cls or self.registry.load(component.kind, component.name)
        if not self.source and not issubclass(cls, interface):
            raise UserError(f"'{component.name}' is no {interface.__name__}")
        if inspect.isabstract(cls):
            missing = ", ".join(sorted(cls.__abstractmethods__))
            raise UserError(f"{component} is broken: it does not implement {missing}")
        try:
            return class_options(cls)
        except NameError as error:
            raise UserError(f"{component} is broken: its annotations need {error.name}") from error

    def options(
        self,
        owner: str,
        options: Mapping[str, Option],
        given: Mapping,
        path: str,
        supplied: Collection[str] = (),
    ) -> dict[str, Any]:
        """Read the values of options; those named in `supplied` may be missing."""
        for key in given:
            if key not in options:
                hint = suggest(key, sorted(options), "options")
                self.fail(_join(path, key), f"{owner} has no option '{key}'{hint}")
        values = {}
        for name, option in options.items():
            if name in given:
                values[name] = self.value(option.annotation, given[name], _join(path, name))
            elif option.required and name not in supplied:
                self.fail(path, f"{owner} needs the option '{name}' ({option.type})")
        return values

    def value(self, annotation: Any, value: Any, path: str) -> Any:
        """Read a value that an annotation describes."""
        origin, args = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
        if annotation in (Any, object, inspect.Parameter.empty):
            return value
        if origin in (Union, types.UnionType):
            return self.union(args, value, path)
        if origin in _SEQUENCES:
            return self.sequence(annotation, value, path)
        if origin in (dict, collections.abc.Mapping) and isinstance(value, Mapping):
            key_type, value_type = args or (Any, Any)
            return {
                self.value(key_type, k, path): self.value(value_type, v, _join(path, k))
                for k, v in value.items()
            }
        if is_component(annotation):
            return self.component(annotation.kind, value, path, annotation)
        if dataclasses.is_dataclass(annotation) and isinstance(value, Mapping):
            return self.dataclass(annotation, value, path)
        if origin is Literal:
            return self.literal(args, value, path)
        fits, result = _scalar(origin, value)
        if not fits:
            self.fail(path, f"expected {type_text(annotation)}, got {show(value)}")
        return result

    def dataclass(self, cls: Any, value: Mapping, path: str) -> Any:
        """Read a dataclass from a mapping."""
        before = len(self.found)
        values = self.options(
            path.rpartition(".")[2] or cls.__name__, class_options(cls), value, path
        )
        if len(self.found) > before:
            return None
        try:
            return cls(**values)
        except UserError as error:
            self.fail(path, str(error))

    def literal(self, allowed: tuple, value: object, path: str) -> Any:
        """Read one of a few values."""
        if not any(value == a and type(value) is type(a) for a in allowed):
            shown = f"expected {type_text(Literal[allowed])}, got {show(value)}"
            close = suggest(value, allowed).partition(" (")[0] if isinstance(value, str) else ""
            self.fail(path, shown + close)
        return value

    def union(self, members: tuple, value: object, path: str) -> Any:
        """Read a value as the first member that it fits."""
        if value is None and types.NoneType in members:
            return None
        saved, failures = self.found, []
        members = tuple(m for m in members if m is not types.NoneType)
        for member in members:
            self.found = []
            result = self.value(member, value, path)
            failures.append(self.found)
            self.found = saved
            if not failures[-1]:
                return result
        # A problem inside the value says more than that the value fits none of the types.
        inside = [f for f in failures if any(p.path != path for p in f)]
        if len(members) == 1 or inside:
            for problem in (inside or failures)[0]:
                self.fail(problem.path, problem.message)
        else:
            self.fail(path, f"expected {type_text(Union[members])}, got {show(value)}")  # noqa: UP007
        return None

    def sequence(self, annotation: Any, value: object, path: str) -> Any:
        """Read a list, or `{repeat: n, of: ITEM or [ITEM, ...]}`."""
        args = typing.get_args(annotation) or (Any, ...)
        origin = typing.get_origin(annotation) or annotation
        fixed = origin is tuple and Ellipsis not in args
        if not isinstance(value, list | tuple) and (fixed or not _repeats(value)):
            self.fail(path, f"expected {type_text(annotation)}, got {show(value)}")
            return None
        items = list(self.unrolled(value, path))
        if fixed and len(items) != len(args):
            self.fail(path, f"expected {type_text(annotation)}, got {show(value)}")
            return None
        kinds = args if fixed else [args[0]] * len(items)
        read = [self.value(a, v, p) for a, (p, v) in zip(kinds, items, strict=True)]
        return tuple(read) if origin is tuple else read

    def unrolled(self, value: Any, path: str) -> Iterator[tuple[str, Any]]:
        """Yield the items of a list, each with its path, and repeated ones as often as they say."""
        if isinstance(value, list | tuple):
            for i, item in enumerate(value):
                at = _join(path, i)
                yield from self.unrolled(item, at) if _repeats(item) else [(at, item)]
            return
        times, of = value["repeat"], value["of"]
        if not isinstance(times, int) or isinstance(times, bool) or times < 1:
            self.fail(_join(path, "repeat"), f"expected a positive integer, got {show(times)}")
            return
        at = _join(path, "of")
        items = list(self.unrolled(of, at)) if isinstance(of, list) or _repeats(of) else [(at, of)]
        for _ in range(times):
            yield from items


def _repeats(value: object) -> bool:
    return isinstance(value, Mapping) and set(value) == {"repeat", "of"}


def _scalar(annotation: Any, value: Any) -> tuple[bool, Any]:
    """Return whether a value is of a simple type, and the value as that type."""
    if annotation is float:
        if isinstance(value, str) and _FLOAT.fullmatch(value):
            value = float(value)  # YAML 1.1 reads 1e-3 as a string
        number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
        return (True, float(value)) if number else (False, None)
    if annotation is int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 1e5 steps
        return isinstance(value, int) and not isinstance(value, bool), value
    if annotation is Path and isinstance(value, str):
        return True, Path(value)
    if annotation in (None, types.NoneType):
        return value is None, None
    return not isinstance(annotation, type) or isinstance(value, annotation), value


def show(value: object) -> str:
    """Return a value as the user wrote it, shortened."""
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
