"""The direction of imports: read from the sources, so that no line is missed for not having run."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FRAME = ROOT / "flowzoo"
PLUGINS = ROOT / "plugins"

# What a part of the frame stands on; it may import those and what they stand on, nothing else.
STANDS_ON = {
    "__init__": [],
    "errors": [],
    "files": [],
    "settings": ["errors"],
    "registry": ["errors"],
    "build": ["registry"],
    "recipes": ["build", "settings"],
    "hooks": ["registry"],
    "weights": ["errors"],
    "importer": ["weights", "flow", "build"],
    "maps": [],
    "field": ["errors", "maps"],
    "integrators": ["errors"],
    "data": ["errors"],
    "odeint": ["integrators"],
    "networks": ["field", "registry"],
    "traces": ["errors", "field"],
    "krylov": ["maps"],
    "precondition": ["maps"],
    "logdet": ["traces", "krylov", "precondition"],
    "regularizers": ["field", "integrators"],
    "score": ["integrators", "traces"],
    "flow": ["regularizers", "score"],
    "continuous": ["flow", "field", "traces", "integrators"],
    "objective": ["flow", "regularizers"],
    "training": ["objective", "settings", "files"],
    "judge": ["adapters", "continuous", "logdet", "odeint"],
    "bench": ["recipes", "hooks", "data", "judge", "training"],
    "adapters": ["flow"],
    "conformance": ["adapters", "networks", "importer", "bench"],
    "testing": ["conformance"],
    "cli": ["bench", "conformance", "importer"],
}
PLUGINS_STAND_ON = [
    "importer",
    "objective",
    "continuous",
    "logdet",
    "odeint",
    "networks",
    "registry",
    "adapters",
    "judge",
]

# Known without torch, so that names, help and plans answer at once.
LIGHT = ["errors", "settings", "registry", "build", "recipes", "hooks", "bench.matrix"]
HEAVY = {"torch", "torchdiffeq", "scipy", "matplotlib"}


def module_name(path):
    base = PLUGINS if path.is_relative_to(PLUGINS) else ROOT
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path
    for folder in (FRAME, PLUGINS)
    for path in sorted(folder.rglob("*.py"))
    if "__pycache__" not in path.parts
}


@functools.cache
def tree(module):
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


def imported(module, nodes):
    """Yield the full names that some nodes import; `from a import b` gives a.b."""
    package = module if SOURCES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def everywhere(module):
    return set(imported(module, ast.walk(tree(module))))


def part_of(name):
    """Return the part of the frame, or the package, that a full name belongs to."""
    first, *rest = name.split(".")
    return (rest[0] if rest else "__init__") if first == "flowzoo" else first


def reach(parts):
    found = set(parts)
    for part in parts:
        found |= reach(STANDS_ON[part])
    return found


FRAME_MODULES = [m for m in SOURCES if m.split(".")[0] == "flowzoo"]
PLUGIN_MODULES = [m for m in SOURCES if m.split(".")[0] != "flowzoo"]
PLUGIN_NAMES = {m.split(".")[0] for m in PLUGIN_MODULES}


def ours(module):
    """Return the parts of the frame and the plugins that a module imports, itself left out."""
    tops = {"flowzoo", *PLUGIN_NAMES}
    return {part_of(n) for n in everywhere(module) if n.split(".")[0] in tops} - {part_of(module)}


def test_the_sources_are_found():
    assert {"flowzoo.field", "flowzoo.continuous", "flowzoo_ot_flow"} <= SOURCES.keys()
    assert "torch.Tensor" in everywhere("flowzoo.field")
    assert part_of("flowzoo.bench.matrix.Matrix") == "bench"


def test_every_part_has_its_place():
    assert {part_of(m) for m in FRAME_MODULES} <= STANDS_ON.keys(), (
        "say what the new part stands on"
    )


@pytest.mark.parametrize("module", FRAME_MODULES)
def test_the_frame_imports_downwards(module):
    assert ours(module) <= reach(STANDS_ON[part_of(module)])


@pytest.mark.parametrize("module", FRAME_MODULES)
def test_the_frame_imports_no_plugin(module):
    assert not ours(module) & PLUGIN_NAMES


@pytest.mark.parametrize("module", PLUGIN_MODULES)
def test_plugins_import_the_frame_and_not_each_other(module):
    checks = ["conformance"] if ".conformance" in module else []
    assert ours(module) <= reach([*PLUGINS_STAND_ON, *checks])


def test_the_table_has_no_cycle():
    for part, below in STANDS_ON.items():
        assert part not in reach(below), part


def loaded_with(module, seen):
    """Return all that importing a module imports, through what is ours."""
    if module in seen:
        return set()
    seen.add(module)
    names = set(imported(module, _executed(tree(module).body)))
    found = set(names)
    for name in names | {module.rpartition(".")[0]}:
        while name and name not in SOURCES:
            name = name.rpartition(".")[0]
        if name:
            found |= loaded_with(name, seen)
    return found


def _executed(body):
    """Yield the statements that run on import: not those of functions or TYPE_CHECKING blocks."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _executed(node.orelse)
            continue
        yield node
        for field in ("body", "orelse", "finalbody", "handlers"):
            inner = getattr(node, field, [])
            yield from _executed(inner if isinstance(inner, list) else [])


@pytest.mark.parametrize("part", LIGHT)
def test_names_are_known_without_torch(part):
    found = {name.split(".")[0] for name in loaded_with(f"flowzoo.{part}", set())}
    assert not found & HEAVY
    assert "torch" in {n.split(".")[0] for n in loaded_with("flowzoo.field", set())}


def test_an_interpreter_agrees():
    code = f"""
import importlib, sys
for part in {LIGHT}:
    importlib.import_module("flowzoo." + part)
from flowzoo.registry import Registry
assert "rk4" in Registry.installed().names("integrator")
print(sorted({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
