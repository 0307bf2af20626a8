"""One component: what it is, who offers it, and how its code is imported behind a guard.

Components come from installed packages (entry points, whose names are read without importing
anything) and from local files.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from flowzoo.errors import UserError

GROUP = "flowzoo."
HOOKS = "hooks"
DISABLE = "FLOWZOO_DISABLE_PLUGINS"


@dataclass(frozen=True)
class Component:
    """One offer of a name.

    Arguments:
        kind: The interface's kind, as in `trace`.
        name: The name that specs use.
        target: Where the class is: `module:Class`, or `file.py:Class`.
        origin: Who offers it: a distribution with its version, or a local file's name.
        state: `ok` means not known to be broken; `missing` that it needs an extra of its package
            that is not installed; `clash` that another one offers the same name.
        error: Why it is not `ok`, in one sentence.
        traceback: The whole traceback of a broken one.
    """

    kind: str
    name: str
    target: str
    origin: str
    state: Literal["ok", "missing", "broken", "clash"] = "ok"
    error: str | None = None
    traceback: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"the {self.kind} '{self.name}' of {self.origin}"


def entry_points(group: str = "") -> Iterator[Component]:
    """Yield what installed distributions offer under `flowzoo.*`, or under one of those groups.

    As on `sys.path`, the first of two distributions of one name hides the other. Distributions
    named in the environment variable FLOWZOO_DISABLE_PLUGINS (separated by commas) are left out.
    """
    seen = {_normal(name) for name in os.environ.get(DISABLE, "").split(",")}
    for distribution in metadata.distributions():
        if GROUP not in (distribution.read_text("entry_points.txt") or ""):
            continue
        name = distribution.metadata["Name"]
        if _normal(name) in seen:
            continue
        seen.add(_normal(name))
        for point in distribution.entry_points:
            kind = point.group.removeprefix(GROUP)
            if kind != point.group and group in ("", kind):
                target = point.value.partition("[")[0].strip()
                yield Component(kind, point.name, target, f"{name} {distribution.version}")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).strip().lower()


def load_target(component: Component) -> Any:
    """Import what an entry point names.

    Raises:
        UserError: It cannot be imported, for whatever reason: says who offers it and why.
    """
    module, _, attributes = component.target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for attribute in filter(None, attributes.split(".")):
            found = getattr(found, attribute)
    except ModuleNotFoundError as error:
        raise _missing(component, error) from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{component} is broken: {reason(error)}") from error
    return found


class MissingExtra(UserError):
    """A component needs an extra of its package that is not installed; nothing is broken."""


def broken(component: Component, error: UserError) -> Component:
    """Return a component marked as broken or missing, with the sentence and the traceback."""
    lines = traceback.format_exception(error.__cause__ or error)
    state = "missing" if isinstance(error, MissingExtra) else "broken"
    return replace(component, state=state, error=str(error), traceback="".join(lines))


def reason(error: BaseException) -> str:
    """Return an exception as the end of a sentence: its type and the first line it says."""
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _missing(component: Component, error: ModuleNotFoundError) -> UserError:
    """Return the error for a module that is not there, naming the package to install."""
    module = str(error.name).partition(".")[0]
    if module in ("flowzoo", component.target.partition(":")[0].partition(".")[0]):
        return UserError(f"{component} is broken: {reason(error)}")
    what, kind = module, UserError
    distribution = component.origin.rpartition(" ")[0]
    for requirement in _requirements(distribution):
        extra = re.search(r"extra *== *['\"](.+?)['\"]", requirement)
        package = re.split(r"[^\w.-]", requirement)[0]
        if extra and module.lower() in (extra[1].lower(), package.lower()):
            what, kind = f"'{distribution}[{extra[1]}]'", MissingExtra
    return kind(f"{component} needs '{module}', which is not installed: pip install {what}")


def _requirements(distribution: str) -> list[str]:
    try:
        return metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []


def load_class(component: Component) -> type:
    """Import a component's class.

    Raises:
        UserError: It cannot be imported, is not a class, or is of another kind.
    """
    found = load_target(component)
    if not isinstance(found, type):
        raise UserError(f"{component} is broken: {component.target} is not a class")
    kind = getattr(found, "kind", None)
    if kind != component.kind:
        says = f"its class is a '{kind}'" if kind else "its class declares no `kind`"
        raise UserError(f"{component} is broken: it is registered as {component.kind}, but {says}")
    return found


def load_file(path: Path) -> ModuleType:
    """Import a Python file by its path; the same content is imported once.

    Raises:
        UserError: The file is missing, or importing it raises.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the plugin file {path}: {error.strerror}") from error
    key = hashlib.sha256(f"{path}".encode() + content).hexdigest()[:16]
    name = "_".join(("flowzoo_file", re.sub(r"\W", "_", path.stem), key))
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and annotations look their module up there
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"the plugin file {path} is broken: {reason(error)}") from error
    return module


def file_components(path: Path) -> dict[Component, type]:
    """Return what a local plugin file offers, with the classes.

    Raises:
        UserError: It cannot be imported, offers nothing, or something that is no component.
    """
    module = load_file(path)
    offer = getattr(module, "flowzoo_components", None)
    if offer is None:
        if any(name.startswith("flowzoo_") for name in vars(module)):
            return {}
        raise UserError(
            f"the plugin file {path} offers nothing; define flowzoo_components() in it, "
            "returning {name: class}"
        )
    try:
        classes = dict(offer())
    except Exception as error:
        said = f"flowzoo_components() in {path} failed: {reason(error)}"
        raise UserError(said) from error
    found = {}
    for name, cls in classes.items():
        kind = getattr(cls, "kind", None)
        if not isinstance(cls, type) or not isinstance(kind, str):
            raise UserError(f"{path} offers '{name}', which is not a class with a `kind`")
        found[Component(kind, str(name), f"{path}:{cls.__qualname__}", path.name)] = cls
    return found
