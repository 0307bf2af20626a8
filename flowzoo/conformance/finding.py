"""What is checked, and by what: names to specimens, classes to checks."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowzoo.build import problems, resolved
from flowzoo.conformance.check import ANY, Check
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import UserError
from flowzoo.recipes import load_recipes
from flowzoo.registry import Component, Registry, suggest
from flowzoo.registry.component import reason

RECIPE = "recipe"  # asked for like a kind; what is checked of a recipe is its flow
_GENERAL = "flowzoo.conformance.promises.general"
_MODULES = {
    "flow": "flows",
    "velocity": "fields",
    "potential": "fields",
    "trace": "traces",
    "integrator": "integrators",
    "regularizer": "costs",
    "objective": "objectives",
    "dataset": "datasets",
    "metric": "metrics",
    "launcher": "launchers",
}


@dataclass(frozen=True)
class Case:
    """One check of one component.

    Arguments:
        specimen: The component.
        check: The check.
    """

    specimen: Specimen
    check: Check

    @property
    def id(self) -> str:
        """Its name, as in `flow/continuous-ladj`."""
        return f"{self.specimen.name}-{self.check.name}"


def specimens(
    names: Sequence[str | type] = (),
    registry: Registry | None = None,
    kind: str | Collection[str] | None = None,
) -> list[Specimen]:
    """Return what some names mean, each component with each of its examples.

    Arguments:
        names: Components (`hutchinson`, `trace/hutchinson`), recipes (`ot-flow`, `recipe/ot-flow`),
            of which the flow is meant, and classes. None means every component, and the flow of
            every recipe that differs from those before it in more than numbers.
        registry: What the names mean; what is installed when left out.
        kind: Only these kinds.

    Raises:
        UserError: A name or a kind is unknown, or a class is no component.
    """
    registry = registry or Registry.installed()
    wanted = []
    for name in names:
        registry, known = (registry, name) if isinstance(name, str) else _with(registry, name)
        wanted.append(known)
    kinds = _kinds(kind, registry)
    if wanted:
        found = [each for name in wanted for each in _named(name, kinds, registry)]
    else:
        found = [*_components(registry.components(), kinds, registry), *_recipes(kinds, registry)]
    return list({each.name: each for each in found}.values())


def cases(found: Sequence[Specimen], only: Collection[str] = ()) -> list[Case]:
    """Return every check of every specimen, in order.

    Arguments:
        found: The specimens.
        only: Names of checks, where not all are wanted.

    Raises:
        UserError: None of the specimens has a check of such a name.
    """
    made = [Case(specimen, check) for specimen in found for check in _checks(specimen)]
    names = list(dict.fromkeys(case.check.name for case in made))
    for name in only:
        if name not in names:
            raise UserError(f"unknown check '{name}'{suggest(name, names, 'checks')}")
    return [case for case in made if not only or case.check.name in only]


def checks_for(cls: type) -> list[Check]:
    """Return the checks of a component: everybody's, its kind's, and those that its bases name.

    An interface or a class names a module of checks by a class attribute `checks`.

    Raises:
        UserError: A module of checks cannot be imported, or two checks have one name.
    """
    kind = getattr(cls, "kind", "")
    named = [vars(base).get("checks") for base in reversed(cls.__mro__)]
    modules = [
        _GENERAL,
        *(f"flowzoo.conformance.promises.{m}" for k, m in _MODULES.items() if k == kind),
    ]
    found: dict[str, Check] = {}
    for module in dict.fromkeys([*modules, *(n for n in named if isinstance(n, str))]):
        for check in _module_checks(module):
            if check.kind not in (ANY, kind) or not issubclass(cls, check.of):
                continue
            if found.setdefault(check.name, check) is not check:
                raise UserError(
                    f"{module} has a check '{check.name}' of {kind}, a name that "
                    f"{found[check.name].run.__module__} has taken; rename it"
                )
    return list(found.values())


def _module_checks(module: str) -> list[Check]:
    try:
        names = vars(importlib.import_module(module))
    except Exception as error:
        raise UserError(f"the checks {module} cannot be imported: {reason(error)}") from error
    return [value for value in names.values() if isinstance(value, Check)]


def _checks(specimen: Specimen) -> list[Check]:
    """Return a specimen's checks; of one that is broken that it does not load."""
    checks = checks_for(specimen.cls)
    return [c for c in checks if c.name == "loads"] if specimen.broken else checks


def _kinds(kind: str | Collection[str] | None, registry: Registry) -> frozenset[str]:
    known = [*registry.kinds(), RECIPE]
    if kind is None:
        return frozenset(known)
    kinds = [kind] if isinstance(kind, str) else list(kind)
    for each in kinds:
        if each not in known:
            raise UserError(f"unknown kind '{each}'{suggest(each, known, 'kinds')}")
    return frozenset([*kinds, RECIPE] if "flow" in kinds else kinds)


def _with(registry: Registry, cls: type) -> tuple[Registry, str]:
    """Return a registry that has a class, and the name it has there."""
    kind, target = getattr(cls, "kind", None), f"{cls.__module__}:{cls.__qualname__}"
    if not isinstance(kind, str):
        raise UserError(f"{cls.__qualname__} is no component: it declares no `kind`")
    components = registry.components()
    for c in components:
        if registry.loaded(c) is cls or (c.kind, c.target) == (kind, target):
            return registry, f"{kind}/{c.name}"
    taken = (kind, cls.__name__) in {(c.kind, c.name) for c in components}
    name = f"{cls.__module__}.{cls.__qualname__}" if taken else cls.__name__
    new = Component(kind, name, target, cls.__module__)
    loaded = {c: each for c in components if (each := registry.loaded(c)) is not None}
    larger = Registry([*components, new], registry.files, {**loaded, new: cls})
    return larger, f"{kind}/{name}"


def _named(name: str, kinds: Collection[str], registry: Registry) -> list[Specimen]:
    """Return what one name means; several things where it is a name of several kinds."""
    kind, _, short = name.rpartition("/")
    offered = [c for c in registry.components() if c.name == short and kind in ("", c.kind)]
    found = list(_components(offered, kinds, registry))
    recipe = load_recipes().get(short) if kind in ("", RECIPE) and RECIPE in kinds else None
    if recipe:
        found.append(_specimen("flow", f"{RECIPE}/{short}", recipe.flow, registry))
    if not found:
        raise UserError(_unknown(kind, short, kinds, registry))
    return found


def _unknown(kind: str, name: str, kinds: Collection[str], registry: Registry) -> str:
    recipes = list(load_recipes()) if RECIPE in kinds else []
    if kind:
        names = recipes if kind == RECIPE else registry.names(kind)
        return f"unknown {kind} '{name}'{suggest(name, names)}"
    if elsewhere := [c.kind for c in registry.components() if c.name == name]:
        return f"'{name}' is a name of kind {' and '.join(elsewhere)}, not of the kinds asked for"
    known = [*recipes, *(c.name for c in registry.components() if c.kind in kinds)]
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"unknown name '{name}'; {hint}`flowzoo list` shows all names"


def _components(
    offered: Sequence[Component], kinds: Collection[str], registry: Registry
) -> Iterator[Specimen]:
    """Yield some components of some kinds, with each of their examples."""
    for component in offered:
        if component.kind not in kinds:
            continue
        label = f"{component.kind}/{component.name}"
        for number, options in enumerate(_examples(component, registry), 1):
            spec = {"name": component.name, **options}
            each = label if number == 1 else f"{label}#{number}"
            yield _specimen(component.kind, each, spec, registry)


def _examples(component: Component, registry: Registry) -> list[Mapping[str, Any]]:
    """Return the options that a component is checked with; what is wrong is said by `_specimen`."""
    try:
        examples = _own_examples(registry.load(component.kind, component.name))
    except UserError:
        return [{}]
    if not isinstance(examples, list | tuple):
        return [{}]
    return [each for each in examples if isinstance(each, Mapping)] or [{}]


def _own_examples(cls: type) -> Any:
    """Return the examples of a class; those of a base do not fit where it takes other options."""
    for base in cls.__mro__:
        if "examples" in vars(base):
            return vars(base)["examples"]
        if "__init__" in vars(base):
            break
    return ()


def _recipes(kinds: Collection[str], registry: Registry) -> Iterator[Specimen]:
    """Yield the flow of every recipe that is composed differently from those before it."""
    seen = []
    for name, recipe in load_recipes().items() if RECIPE in kinds else ():
        specimen = _specimen("flow", f"{RECIPE}/{name}", recipe.flow, registry)
        whole = name if specimen.broken else resolved("flow", recipe.flow, registry)
        if (shape := _shape(whole)) not in seen:
            seen.append(shape)
            yield specimen


def _shape(value: Any) -> Any:
    """Return a spec without its numbers, and without the lengths of its lists."""
    if isinstance(value, Mapping):
        return {key: _shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        shapes = [_shape(inner) for inner in value]
        return [shape for i, shape in enumerate(shapes) if shape not in shapes[:i]]
    return value if isinstance(value, str | bool) or value is None else "a number"


def _specimen(kind: str, label: str, spec: Any, registry: Registry) -> Specimen:
    """Return a specimen, marked where it is broken: no plugin of anybody's stops the others."""
    given = {"name": spec} if isinstance(spec, str) else dict(spec)
    try:
        cls = registry.load(kind, given["name"])
    except UserError as error:
        return Specimen(kind, label, given, object, registry, broken=str(error))
    expected = getattr(cls, "expected_failures", {})
    broken = _declared_wrongly(cls) or _wrong(kind, given, registry)
    if not broken:
        try:
            checks_for(cls)
        except UserError as error:
            broken = str(error)
    known = expected if isinstance(expected, Mapping) else {}
    return Specimen(kind, label, given, object if broken else cls, registry, known, broken)


def _declared_wrongly(cls: type) -> str:
    """Return what is wrong with how a class says it is to be checked, or nothing."""
    examples, expected = _own_examples(cls), getattr(cls, "expected_failures", {})
    if not isinstance(examples, list | tuple) or not all(isinstance(e, Mapping) for e in examples):
        return f"`examples` of {cls.__qualname__} must be a list of mappings from options to values"
    texts = [*expected, *expected.values()] if isinstance(expected, Mapping) else [None]
    if not all(isinstance(text, str) and text for text in texts):
        return f"`expected_failures` of {cls.__qualname__} must map names of checks to reasons"
    return ""


def _wrong(kind: str, spec: Mapping[str, Any], registry: Registry) -> str:
    """Return what is wrong with a spec, or nothing."""
    try:
        found = problems(kind, spec, registry, kind)
    except Exception as error:
        return f"the {kind} '{spec['name']}' has options that cannot be read: {reason(error)}"
    hint = "; say on the class how it is checked, as in examples = [{'option': value}]"
    return "; ".join(map(str, found)) + hint if found else ""
