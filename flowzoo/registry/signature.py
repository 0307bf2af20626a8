"""Which options a component takes: the typed arguments of its constructor."""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

EMPTY = inspect.Parameter.empty

_NOUNS = {int: "integer", float: "number", str: "string", Path: "path"}


@dataclass(frozen=True)
class Option:
    """One typed constructor argument; `default` is `EMPTY` where it must be given."""

    name: str
    annotation: Any = Any
    default: Any = EMPTY
    help: str = ""

    @property
    def required(self) -> bool:
        """Whether a spec must give it."""
        return self.default is EMPTY

    @property
    def type(self) -> str:
        """The annotation in words: `an integer`, `a list of regularizers or null`."""
        return type_text(self.annotation)

    @property
    def default_text(self) -> str:
        """The default as one would write it in a spec; `required` where there is none."""
        if self.required:
            return "required"
        if self.default is None:
            return "null"
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return getattr(self.default, "__qualname__", str(self.default))


def is_component(annotation: Any) -> bool:
    """Return whether an annotation is an interface of components: a class with a `kind`."""
    return (
        isinstance(annotation, type)
        and isinstance(getattr(annotation, "kind", None), str)
        and "kind" not in getattr(annotation, "__dataclass_fields__", {})
    )


def type_text(annotation: Any) -> str:
    """Return an annotation in words, as in `expected an integer, got 'two'`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(arg) for arg in args)
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(map(repr, args))
    if origin in (list, tuple, collections.abc.Sequence):
        items = [arg for arg in args if arg is not Ellipsis]
        count = f"{len(items)} " if origin is tuple and Ellipsis not in args else ""
        same = len(set(items)) == 1
        return f"a list of {count}{_noun(items[0]) + 's' if same else 'values'}"
    if annotation in (None, types.NoneType):
        return "null"
    if annotation is bool:
        return "true or false"
    return with_article(_noun(annotation))


def with_article(noun: str) -> str:
    """Return `a trace` or `an integrator`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _noun(annotation: Any) -> str:
    if annotation in (Any, object, EMPTY):
        return "value"
    if is_component(annotation):
        return annotation.kind
    origin = typing.get_origin(annotation) or annotation
    if origin in (dict, collections.abc.Mapping) or dataclasses.is_dataclass(origin):
        return "mapping"
    return _NOUNS.get(origin) or getattr(origin, "__name__", "value")


def class_options(cls: type) -> dict[str, Option]:
    """Return the options of a class: the named arguments of its `__init__`, wherever inherited.

    Raises:
        NameError: An annotation names something that its module does not import at run time.
    """
    owner = next(c for c in cls.__mro__ if "__init__" in vars(c))
    if owner is object:
        return {}
    fields = {f.name: f for f in dataclasses.fields(owner)} if _generated_init(owner) else {}
    hints = typing.get_type_hints(owner if fields else owner.__init__)
    help_ = argument_help(cls)
    options = {}
    for name, parameter in list(inspect.signature(owner.__init__).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        factory = fields[name].default_factory if name in fields else dataclasses.MISSING
        default = parameter.default if factory is dataclasses.MISSING else factory()
        options[name] = Option(name, hints.get(name, Any), default, help_.get(name, ""))
    return options


def _generated_init(owner: type) -> bool:
    if "__dataclass_fields__" not in vars(owner):
        return False
    names = [f.name for f in dataclasses.fields(owner) if f.init]
    return sorted(names) == sorted(list(inspect.signature(owner.__init__).parameters)[1:])


def argument_help(cls: type) -> dict[str, str]:
    """Return what the `Arguments:` sections of a class's and its bases' docstrings say."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        for doc in (vars(base).get("__doc__"), getattr(vars(base).get("__init__"), "__doc__", "")):
            found.update(_arguments_section(inspect.cleandoc(doc or "")))
    return found


def _arguments_section(doc: str) -> dict[str, str]:
    found: dict[str, str] = {}
    name, inside = "", False
    for line in doc.splitlines():
        indent = len(line) - len(line.lstrip())
        if line and indent == 0:
            inside = line.strip() in ("Arguments:", "Args:")
        elif inside and indent == 4 and ":" in line:
            name, _, text = line.strip().partition(":")
            name = name.partition(" ")[0]
            found[name] = text.strip()
        elif inside and line.strip() and name:
            found[name] += " " + line.strip()
    return found
