"""Hooks: what packages (entry points `flowzoo.hooks`) and local files may listen to or add.

A hook function may leave out arguments that it does not use, and needs no `@hookimpl` where its
name is the hook's.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pluggy

from flowzoo.errors import UserError
from flowzoo.registry import Registry, suggest
from flowzoo.registry.component import (
    HOOKS,
    Component,
    broken,
    entry_points,
    load_file,
    load_target,
    reason,
)

PROJECT = "flowzoo"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def flowzoo_components() -> Mapping[str, type]:  # pyright: ignore[reportReturnType]
    """Return components as {name: class}, from a local file.

    A package names its components as entry points instead, so that they are known without importing
    it.
    """


@hookspec
def flowzoo_cell_started(cell: Any) -> None:
    """Note that a cell begins, in the process that runs it.

    Arguments:
        cell: The `flowzoo.bench.cells.Cell`.
    """


@hookspec
def flowzoo_step(cell: Any, step: int, terms: Mapping[str, float]) -> None:
    """Note the terms of the loss, whenever the training loop reports them.

    Arguments:
        cell: The cell.
        step: Optimizer steps so far.
        terms: The terms of the loss by name.
    """


@hookspec
def flowzoo_cell_finished(cell: Any, record: Any) -> None:
    """Note a cell's result.

    Arguments:
        cell: The cell.
        record: What was measured, or how it failed.
    """


@hookspec
def flowzoo_table_columns() -> Mapping[str, Callable[[Any], Any]]:  # pyright: ignore[reportReturnType]
    """Return more columns for tables, as {title: function of a record}."""


@hookspec
def flowzoo_commands() -> Iterable[Any]:  # pyright: ignore[reportReturnType]
    """Return more `click.Command`s for the command line."""


class Manager(pluggy.PluginManager):
    """pluggy's manager, which keeps the failures of plugins instead of falling over them."""

    def __init__(self) -> None:
        super().__init__(PROJECT)
        self.add_hookspecs(sys.modules[__name__])
        self.failures: list[Component] = []
        self._components: dict[str, Component] = {}

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """Take a function called `flowzoo_...` for a hook implementation, marked or not."""
        options = super().parse_hookimpl_opts(plugin, name)
        own = name.startswith("flowzoo_") and inspect.isroutine(getattr(plugin, name, None))
        return {} if options is None and own else options

    def add(self, component: Component, plugin: Any) -> None:
        """Register one plugin, wholly or not at all.

        Raises:
            UserError: It answers a hook that there is not, or with arguments that there are not.
        """
        name = f"{component.origin}: {component.name}"
        self._components[name] = component
        try:
            for hook in dir(plugin):
                if hook.startswith("flowzoo_") and not hasattr(self.hook, hook):
                    hint = suggest(hook, sorted(vars(self.hook)), "hooks")
                    raise UserError(f"{component} is broken: unknown hook '{hook}'{hint}")
            self.register(plugin, name)
            self.check_pending()
        except (ValueError, pluggy.PluginValidationError) as error:
            if self.has_plugin(name):
                self.unregister(name=name)
            said = " ".join(str(error).split())
            raise UserError(f"{component} is broken: {said}") from error

    def notify(self, hook: str, **values: object) -> list[Any]:
        """Tell every listener and return what they answer.

        One that raises is heard of in a warning, and then no longer.
        """
        answers: list[Any] = []
        for implementation in reversed(getattr(self.hook, hook).get_hookimpls()):
            name, plugin = implementation.plugin_name, implementation.plugin
            others = [p for p in self.get_plugins() if p is not plugin]
            try:
                answers += self.subset_hook_caller(hook, others)(**values)
            except Exception as error:
                said = f"{self._components[name]} is ignored from here on: {hook} raised"
                failure = UserError(f"{said} {reason(error)}")
                failure.__cause__ = error
                self.failures.append(broken(self._components[name], failure))
                self.unregister(name=name)
                warnings.warn(str(failure), stacklevel=2)
        return answers


def plugin_manager(registry: Registry) -> Manager:
    """Return the hooks with their listeners: installed packages, and the registry's local files.

    A package that cannot be loaded or answers hooks that there are not is left out and noted in
    `failures`.

    Raises:
        UserError: A local file answers hooks that there are not.
    """
    manager = Manager()
    for component in entry_points(HOOKS):
        try:
            plugin = load_target(component)
            if hasattr(plugin, "flowzoo_components"):
                raise UserError(
                    f"{component} is broken: a package offers components as entry points, "
                    "flowzoo_components() is for local files"
                )
            manager.add(component, plugin)
        except UserError as error:
            manager.failures.append(broken(component, error))
    for path in registry.files:
        component = Component(HOOKS, path.stem, str(path), path.name)
        manager.add(component, load_file(path))
    return manager


def hook_failures(registry: Registry) -> list[Component]:
    """Return the packages whose hooks are left out, each with its error."""
    return plugin_manager(registry).failures
