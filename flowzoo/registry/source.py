"""What a component's source text says, read without importing it: its options, its fingerprint.

Importing a component imports torch; a plan and a list must not. In the source, an annotation that
names an interface becomes a stand-in class with the interface's `kind`, so that specs are checked
by the same code as with the classes themselves; what cannot be read becomes `Any`, which every
value fits.
"""

from __future__ import annotations

import ast
import collections.abc
import functools
import hashlib
import importlib.machinery
import importlib.util
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

from flowzoo.registry.signature import EMPTY, Option

_GENERIC = {
    **{name: getattr(typing, name) for name in ("Any", "Literal", "Optional", "Union")},
    **{name: getattr(collections.abc, name) for name in ("Sequence", "Mapping")},
    **{"int": int, "float": float, "bool": bool, "str": str, "Path": Path},
    **{"list": list, "tuple": tuple, "dict": dict, "None": None},
}
_NO_OPTIONS = frozenset({"ABC", "Generic", "Module", "Protocol", "object"})


def module_file(module: str) -> Path | None:
    """Return the source file of a module, found without importing it or its parents, or None."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    name = top
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        places = list(spec.submodule_search_locations)
        spec = importlib.machinery.PathFinder.find_spec(name, places)
    origin = spec.origin if spec else None
    return Path(origin) if origin and origin.endswith(".py") else None


def code_hash(files: Iterable[Path]) -> str:
    """Return a short hash of the content of some files, in the order of their names."""
    return _code_hash(tuple((file, file.stat().st_mtime_ns) for file in sorted(set(files))))


@functools.lru_cache(maxsize=256)
def _code_hash(files: tuple[tuple[Path, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, _ in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def own_sources(module: str) -> list[Path]:
    """Return a module's file and those of its own package that it imports, directly or not."""
    top, todo, found = module.partition(".")[0], [module], {}
    while todo:
        name = todo.pop()
        parsed = None if name in found else parse(name)
        if parsed is not None:
            found[name] = parsed.file
            imported = parsed.names.values()
            todo += [m for n in imported if n.partition(".")[0] == top for m in (n, _split(n)[0])]
    return list(found.values())


@dataclass(frozen=True)
class Module:
    """A parsed source file; `names` maps what it imports to full names, `nodes` what it defines."""

    name: str
    file: Path
    names: dict[str, str]
    nodes: dict[str, ast.ClassDef | ast.expr]


def parse(module: str) -> Module | None:
    """Return a module parsed but not imported; None where it has no readable source."""
    file = module_file(module)
    if file is None:
        return None
    try:
        return _parse(module, file, file.stat().st_mtime_ns)
    except (OSError, SyntaxError, ValueError):
        return None


@functools.lru_cache(maxsize=256)
def _parse(module: str, file: Path, _mtime: int) -> Module:
    tree = ast.parse(file.read_bytes())
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names = dict(pair for node in ast.walk(tree) for pair in _imports(node, package))
    nodes: dict[str, ast.ClassDef | ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            nodes[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            nodes[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            nodes[node.target.id] = node.value
    return Module(module, file, names, nodes)


def _imports(node: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.asname or alias.name, alias.name
    elif isinstance(node, ast.ImportFrom):
        parts = package.split(".")
        above = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
        base = ".".join(filter(None, (above, node.module)))
        for alias in node.names:
            yield alias.asname or alias.name, f"{base}.{alias.name}"


@functools.lru_cache(maxsize=256)
def source_options(target: str) -> dict[str, Option] | None:
    """Return the options of the class at `module:Class`; None where its source cannot be read."""
    module, _, name = target.rpartition(":")
    try:
        return _Source(module.partition(".")[0]).options(module, name)
    except (_Unreadable, RecursionError):
        return None


class _Unreadable(Exception):
    """A name leads outside the packages that are read, or nowhere."""


class _Source:
    """Reads classes of one component's own package and of flowzoo, following their imports."""

    def __init__(self, package: str) -> None:
        self.packages = (package, "flowzoo")

    def find(self, module: str, name: str) -> tuple[Module, ast.ClassDef | ast.expr]:
        """Return where a name is defined, and its node."""
        if module.partition(".")[0] not in self.packages:
            raise _Unreadable(module)
        parsed = parse(module)
        if parsed is None:
            raise _Unreadable(module)
        if name in parsed.nodes:
            return parsed, parsed.nodes[name]
        if name not in parsed.names:
            raise _Unreadable(name)
        return self.find(*_split(parsed.names[name]))

    def options(self, module: str, name: str) -> dict[str, Option]:
        """Return the options of a class: its own `__init__`, its fields, or those of a base."""
        where, node = self.find(module, name)
        if not isinstance(node, ast.ClassDef):
            raise _Unreadable(name)
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                return self.arguments(item.args, where)
        bases = [_last(base) for base in node.bases if _last(base) not in _NO_OPTIONS]
        found = (self.options(where.name, base) for base in bases)
        inherited = next((options for options in found if options), {})
        if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            return inherited | dict(self.fields(node, where))
        return inherited

    def arguments(self, args: ast.arguments, where: Module) -> dict[str, Option]:
        """Return the options that an argument list declares."""
        plain = [*args.posonlyargs, *args.args]
        missing = [None] * (len(plain) - len(args.defaults))
        defaults = [*missing, *args.defaults, *args.kw_defaults]
        return {
            arg.arg: Option(arg.arg, self.annotation(arg.annotation, where), _default(default))
            for arg, default in list(zip([*plain, *args.kwonlyargs], defaults, strict=True))[1:]
        }

    def fields(self, node: ast.ClassDef, where: Module) -> Iterator[tuple[str, Option]]:
        """Yield the fields of a dataclass."""
        for item in node.body:
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            name, value = item.target.id, item.value
            given = {}
            if isinstance(value, ast.Call) and _last(value.func) == "field":
                given = {keyword.arg: keyword.value for keyword in value.keywords}
                value = given.get("default", given.get("default_factory"))
            initialised = "init" not in given or ast.unparse(given["init"]) != "False"
            if initialised and "ClassVar" not in ast.unparse(item.annotation):
                annotation = self.annotation(item.annotation, where)
                yield name, Option(name, annotation, _default(value))

    def annotation(self, node: ast.expr | None, where: Module) -> Any:
        """Return what an annotation means; `Any` where it cannot be read."""
        try:
            return Any if node is None else self.meaning(node, where)
        except (_Unreadable, TypeError, ValueError, SyntaxError):
            return Any

    def meaning(self, node: ast.expr, where: Module) -> Any:
        """Return the type that an expression of names, subscripts and `|` stands for."""
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str):
                return self.meaning(ast.parse(node.value, mode="eval").body, where)
            return node.value
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            sides = self.annotation(node.left, where), self.annotation(node.right, where)
            return Union[sides]  # noqa: UP007 (`None | None` is no type)
        if isinstance(node, ast.Subscript):
            generic = _GENERIC.get(_last(node.value), Any)
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            if generic is Literal:
                return Literal[tuple(ast.literal_eval(item) for item in inner)]
            return generic[tuple(self.annotation(item, where) for item in inner)]
        name = _last(node)
        return _GENERIC[name] if name in _GENERIC else self.named(name, where)

    def named(self, name: str, where: Module) -> Any:
        """Return a type alias's meaning, or a stand-in for an interface."""
        found, node = self.find(where.name, name)
        if isinstance(node, ast.ClassDef):
            return _stand_in(node.name, self.kind(node, found))
        return self.meaning(node, found)

    def kind(self, node: ast.ClassDef, where: Module) -> str:
        """Return the `kind` that a class or one of its bases declares."""
        for item in node.body:
            target = item.target if isinstance(item, ast.AnnAssign) else None
            if isinstance(item, ast.Assign):
                target = item.targets[0]
            if isinstance(target, ast.Name) and target.id == "kind":
                value = getattr(item, "value", None)
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    return value.value
        for base in node.bases:
            if _last(base) not in _NO_OPTIONS:
                found, parent = self.find(where.name, _last(base))
                if isinstance(parent, ast.ClassDef):
                    return self.kind(parent, found)
        raise _Unreadable(node.name)


@functools.cache
def _stand_in(name: str, kind: str) -> type:
    return type(name, (), {"kind": kind})


def _default(node: ast.expr | None) -> Any:
    """Return a default's source text, which only tells that there is one."""
    return EMPTY if node is None else ast.unparse(node)


def _last(node: ast.expr) -> str:
    """Return the last name of `a.b.C` or `C[...]`."""
    if isinstance(node, ast.Subscript):
        return _last(node.value)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _split(name: str) -> tuple[str, str]:
    module, _, attribute = name.rpartition(".")
    return module, attribute
