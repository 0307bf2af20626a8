"""Which components there are: names known without importing anything, classes loaded one by one.

Built-in components come through the same door as anybody's: entry points, one group per kind.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from flowzoo.errors import UserError
from flowzoo.registry.component import (
    DISABLE,
    HOOKS,
    Component,
    MissingExtra,
    broken,
    entry_points,
    file_components,
    load_class,
)
from flowzoo.registry.source import code_hash, module_file, own_sources

__all__ = ["Component", "Registry", "fingerprint", "frame_fingerprint", "suggest"]

# What no number depends on: names, specs, faces, bookkeeping. Everything else is numerical core.
_APART = re.compile(
    r"(bench|cli|conformance|registry)/|"
    r"(__init__|build|errors|files|hooks|importer|recipes|testing|weights|training/(checkpoint|progress)).py"
)


class Registry:
    """The components that can be named, and their classes once loaded.

    Arguments:
        components: What is offered; several offers of one name are a clash.
        files: The local plugin files among the origins.
        loaded: Classes that need no import.
    """

    def __init__(
        self,
        components: Iterable[Component] = (),
        files: Iterable[Path] = (),
        loaded: Mapping[Component, type] | None = None,
    ) -> None:
        self.files = tuple(files)
        self._offers: dict[tuple[str, str], list[Component]] = {}
        for component in dict.fromkeys(components):
            self._offers.setdefault((component.kind, component.name), []).append(component)
        self._loaded = dict(loaded or {})
        self._broken: dict[Component, Component] = {}

    @classmethod
    @functools.cache
    def installed(cls) -> Registry:
        """Return the registry of everything that installed packages offer, importing none of it."""
        return cls(c for c in entry_points() if c.kind != HOOKS)

    def with_files(self, paths: Iterable[str | Path]) -> Registry:
        """Return a registry that also has the components of some local plugin files.

        Such a file is a Python module with a function `flowzoo_components()` that returns
        {name: class}; the kind is the class's own. It is imported at once.

        Raises:
            UserError: A file is missing, cannot be imported, or offers something else.
        """
        files = dict.fromkeys([*self.files, *(Path(p).resolve() for p in paths)])
        loaded = dict(self._loaded)
        for path in files:
            loaded.update(file_components(path))
        offers = [c for offer in self._offers.values() for c in offer]
        return Registry([*offers, *(c for c in loaded if c not in offers)], files, loaded)

    def kinds(self) -> list[str]:
        """Return the kinds of which there is at least one component."""
        return sorted({kind for kind, _ in self._offers})

    def names(self, kind: str) -> list[str]:
        """Return the names of one kind.

        Raises:
            UserError: There is no such kind.
        """
        names = sorted(name for k, name in self._offers if k == kind)
        if not names:
            raise UserError(f"unknown kind '{kind}'{suggest(kind, self.kinds())}")
        return names

    def components(self, kind: str | None = None) -> list[Component]:
        """Return every offer with what is known of its state, sorted by kind and name."""
        keys = sorted(self._offers) if kind is None else [(kind, n) for n in self.names(kind)]
        return [self._state(c) for key in keys for c in self._offers[key]]

    def component(self, kind: str, name: str) -> Component:
        """Return the component that a name means.

        Raises:
            UserError: The kind or the name is unknown, or two packages offer it.
        """
        names = self.names(kind)
        if name not in names:
            raise UserError(f"unknown {kind} '{name}'{suggest(name, names)}")
        found = self._state(self._offers[kind, name][0])
        if found.state == "clash":
            raise UserError(found.error)
        return found

    def load(self, kind: str, name: str) -> type:
        """Return a component's class, importing it if need be.

        Raises:
            UserError: No such name, or its package is broken: says which one and why.
        """
        found = self.component(kind, name)
        if found.state == "broken":
            raise UserError(found.error)
        if found.state == "missing":
            raise MissingExtra(found.error)
        if found not in self._loaded:
            try:
                self._loaded[found] = load_class(found)
            except UserError as error:
                self._broken[found] = broken(found, error)
                raise
        return self._loaded[found]

    def load_all(self, kind: str | None = None) -> list[Component]:
        """Import every component, so that the broken ones are known; return them all."""
        for component in self.components(kind):
            if component.state == "ok":
                try:
                    self.load(component.kind, component.name)
                except UserError:
                    continue  # recorded as its state
        return self.components(kind)

    def loaded(self, component: Component) -> type | None:
        """Return a component's class if it is already loaded."""
        return self._loaded.get(component)

    def _state(self, component: Component) -> Component:
        offers = self._offers[component.kind, component.name]
        if len(offers) == 1:
            return self._broken.get(component, component)
        origins = " and ".join(sorted(f"{c.origin} ({c.target})" for c in offers))
        error = (
            f"the {component.kind} '{component.name}' is offered by {origins}; rename or uninstall "
            f"one of them, or name the package to ignore in {DISABLE}"
        )
        return replace(component, state="clash", error=error)


def suggest(word: object, names: Iterable[object], what: str = "available") -> str:
    """Return the end of an error about an unknown name: the closest name, and what there is.

    A long list is left out where a close name was found.
    """
    known = [str(name) for name in names]
    close = difflib.get_close_matches(str(word), known, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    if close and len(known) > 12:
        return hint
    return f"{hint} ({what}: {', '.join(known) or 'none'})"


def fingerprint(component: Component) -> str:
    """Return a hash of the code that defines a component, found without importing it.

    For a built-in one it is its file (`frame_fingerprint` has the rest); for another package's, its
    file and the modules of its package that it imports; for a local file, the file.
    """
    module = component.target.rpartition(":")[0]
    file = Path(module) if module.endswith(".py") else module_file(module)
    if file is None or not file.is_file():
        return hashlib.sha256(f"{component.origin} {component.target}".encode()).hexdigest()[:16]
    if module.endswith(".py") or module.partition(".")[0] == "flowzoo":
        return code_hash([file])
    return code_hash(own_sources(module))


def frame_fingerprint() -> str:
    """Return a hash of flowzoo's numerical core: what every result depends on, plugins apart."""
    return code_hash(frame_files())


def frame_files() -> list[Path]:
    """Return the source files of flowzoo's numerical core."""
    here = Path(__file__).parent.parent
    files = sorted(here.rglob("*.py"))
    return [f for f in files if not _APART.match(f.relative_to(here).as_posix())]
