"""From specs to objects, led by the annotations of constructors.

A spec is `name`, or `{name: ..., option: ...}`; the options of a component are its typed `__init__`
arguments. An argument annotated with an interface takes a spec of that interface's kind; a list may
be written `{repeat: 5, of: SPEC}`. Dataclasses are read from mappings in the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from flowzoo.errors import Incompatible, UserError
from flowzoo.registry import Component, Registry
from flowzoo.registry.reader import SUPPLIED, Part, Problem, Problems, Reader
from flowzoo.registry.signature import Option, class_options

__all__ = [
    "Option",
    "Part",
    "Problem",
    "Problems",
    "build",
    "build_dataclass",
    "check_value",
    "convert",
    "dataclass_problems",
    "describe",
    "parts",
    "plain",
    "problems",
    "resolved",
    "shallow_problems",
]

T = TypeVar("T")


def problems(
    kind: str,
    spec: object,
    registry: Registry,
    path: str = "",
    supplied: Collection[str] = SUPPLIED,
) -> list[Problem]:
    """Return everything that is wrong with a spec; loads the classes it names."""
    reader = Reader(registry, supplied)
    reader.component(kind, spec, path)
    return reader.found


def shallow_problems(kind: str, spec: object, registry: Registry, path: str = "") -> list[Problem]:
    """Return what can be seen to be wrong with a spec without importing any component."""
    reader = Reader(registry, source=True)
    reader.component(kind, spec, path)
    return reader.found


def parts(kind: str, spec: object, registry: Registry, path: str = "") -> list[Part]:
    """Return the components that a spec uses, outermost first, without importing any."""
    reader = Reader(registry, source=True)
    reader.component(kind, spec, path)
    return list(dict.fromkeys(reader.parts))


def build(kind: str, spec: object, registry: Registry, where: str = "", **supplied: object) -> Any:
    """Construct what a spec describes.

    Arguments:
        kind: The kind of component.
        spec: A name, a mapping with a `name`, or an object already built.
        registry: What the names mean.
        where: The spec's path in its file, put before errors.
        supplied: Values for arguments of these names (`dim`, `context_dim`), wherever in the spec a
            constructor has them and the spec does not give them.

    Raises:
        Problems: The spec is wrong; lists everything at once.
        Incompatible: Parts that do not fit each other.
    """
    where = where or kind
    if found := problems(kind, spec, registry, where, SUPPLIED | set(supplied)):
        raise Problems(found)

    def make(component: Component, options: dict[str, Option], given: dict, path: str) -> Any:
        extra = {k: v for k, v in supplied.items() if k in options and k not in given}
        cls = registry.load(component.kind, component.name)
        try:
            return cls(**extra, **given)
        except (UserError, Incompatible) as error:
            error.args = (f"{path}: {error}",)
            raise

    return Reader(registry, supplied, make=make).component(kind, spec, where)


def resolved(kind: str, spec: object, registry: Registry) -> dict[str, Any]:
    """Return a spec with every default written out and every repetition unrolled, as plain data.

    Raises:
        Problems: The spec is wrong.
    """
    if found := problems(kind, spec, registry, kind):
        raise Problems(found)

    def make(component: Component, options: dict[str, Option], given: dict, _path: str) -> dict:
        names = [n for n in options if n in given or n not in SUPPLIED]
        values = {n: plain(given.get(n, options[n].default)) for n in names}
        return {"name": component.name, **values}

    return plain(Reader(registry, make=make).component(kind, spec, kind))


def describe(cls: type) -> list[Option]:
    """Return the options of a component or a dataclass: name, type in words, default and help."""
    return list(class_options(cls).values())


def check_value(annotation: Any, value: object, path: str) -> list[Problem]:
    """Return what is wrong with a value that an annotation describes."""
    reader = Reader()
    reader.value(annotation, value, path)
    return reader.found


def convert(annotation: Any, value: object, path: str = "") -> Any:
    """Return a value from a file as the type that an annotation says.

    Raises:
        Problems: It cannot be one.
    """
    reader = Reader()
    result = reader.value(annotation, value, path)
    if reader.found:
        raise Problems(reader.found)
    return result


def dataclass_problems(cls: type, mapping: object, path: str) -> list[Problem]:
    """Return what is wrong with a mapping that is to become a dataclass."""
    return check_value(cls, mapping, path)


def build_dataclass(cls: type[T], mapping: object, path: str) -> T:
    """Return a dataclass made from a mapping.

    Raises:
        Problems: The mapping does not fit.
    """
    return convert(cls, mapping, path)


def plain(value: object) -> Any:
    """Return a value as what YAML and JSON can hold: mappings, lists, numbers, strings, null."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "__qualname__") or " at 0x" in repr(value):  # no addresses
        return getattr(value, "__qualname__", type(value).__qualname__)
    return str(value)
