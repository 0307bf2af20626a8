"""Reads YAML as plain data: the core schema of YAML 1.2, duplicate keys refused, no objects.

`1e-3` is a number and `no`, `on`, `12:30` and dates are strings, unlike in YAML 1.1.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from flowzoo.errors import UserError
from flowzoo.registry import suggest
from flowzoo.registry.reader import Problem, Problems

_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "int": (r"[-+]?(?:0x[0-9a-fA-F]+|\d+(?:_\d+)*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:(?:\d+(?:_\d+)*)?\.\d+|\d+(?:_\d+)*\.?)(?:[eE][-+]?\d+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}


class _Loader(_SAFE):
    """The safe loader with these scalars, noting duplicate keys."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (the base class's attribute, replaced)

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self.duplicates: list[Problem] = []

    def construct_mapping(self, node: Any, deep: bool = True) -> dict:
        """Build a mapping at once, so that a value cannot contain itself."""
        first: dict[str, int] = {}
        for key, _ in getattr(node, "value", ()):
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in first and key.value != "<<":
                said = f"the key '{key.value}' is given twice, first in line {first[key.value]}"
                self.duplicates.append(Problem(f"line {line}", said))
            first.setdefault(str(key.value), line)
        return super().construct_mapping(node, deep=True)

    def whole_mapping(self, node: Any) -> dict:
        """Build a mapping without the placeholder that lets YAML refer to itself."""
        return self.construct_mapping(node)

    def decimal(self, node: Any) -> int:
        """Read an integer; a leading zero does not make it octal."""
        text = node.value.replace("_", "").lower()
        return int(text, 16 if "0x" in text else 10)


for _tag, (_pattern, _first) in _SCALARS.items():
    _regexp = re.compile(f"(?:{_pattern})$")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _regexp, list(_first))
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.whole_mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.decimal)


def load_yaml(path: str | Path) -> Any:
    """Return the content of a YAML file as mappings, lists, numbers, strings, booleans and None.

    Raises:
        UserError: The file is missing or not YAML: names the file and the line.
        Problems: Keys are given twice; lists every one.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        beside = sorted(p.name for p in path.parent.glob("*.y*ml"))
        hint = suggest(path.name, beside, "beside it") if beside else ""
        raise UserError(f"cannot read {path}: {error.strerror}{hint}") from error
    return parse_yaml(content, str(path))


def parse_yaml(content: bytes, source: str) -> Any:
    """Return the content of YAML text, as `load_yaml` does that of a file.

    Arguments:
        content: The text.
        source: What errors call it.
    """
    try:
        loader = _Loader(content)
    except yaml.YAMLError as error:
        raise UserError(_sentence(source, error)) from error
    try:
        data = loader.get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(_sentence(source, error)) from error
    finally:
        loader.dispose()
    if loader.duplicates:
        raise Problems(Problem(p.path, p.message, source) for p in loader.duplicates)
    return data


def _sentence(source: str, error: Exception) -> str:
    """Return what is wrong in one sentence: file, line, and why."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{source}: line {mark.line + 1}: " if mark else f"{source}: "
    said = (getattr(error, "context", None), getattr(error, "problem", None))
    why = ", ".join(filter(None, said)) or str(error).strip().partition("\n")[0]
    tag = re.search(r"could not determine a constructor for the tag '(.+?)'", str(error))
    return f"{where}not valid YAML: {f'the tag {tag[1]} is not plain data' if tag else why}"
