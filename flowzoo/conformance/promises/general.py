"""What every component promises: it loads, says what it takes, keeps what it is told, repeats."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import random
import typing
import warnings
from typing import Any

import numpy as np
import torch
from safetensors import torch as safetensors
from torch import nn

from flowzoo.build import build, check_value, describe, problems
from flowzoo.conformance.check import ANY, Failed, Skipped, check, require
from flowzoo.conformance.finding import checks_for
from flowzoo.conformance.probes.portrait import loose_tensors, portrait
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import FlowzooError, Incompatible
from flowzoo.registry import suggest
from flowzoo.registry.component import reason
from flowzoo.registry.reader import SUPPLIED, show
from flowzoo.registry.signature import Option
from flowzoo.registry.source import source_options

_ODD = ("no such value", {"no": "such value"}, 2.5, None, [])  # one of them fits no typed option


@check(ANY)
def loads(specimen: Specimen) -> str:
    """It is imported, is of the kind it is registered as, and its examples are valid."""
    component = specimen.registry.component(specimen.kind, specimen.spec["name"])
    if component.state == "missing":
        raise Skipped(specimen.broken)
    require(not specimen.broken, specimen.broken)
    return f"{component.target} of {component.origin}"


@check(ANY)
def documented(specimen: Specimen) -> str:
    """Its class has a docstring, whose `Arguments:` say what each option is."""
    name, about = specimen.cls.__name__, specimen.cls.__doc__ or ""
    generated = dataclasses.is_dataclass(specimen.cls) and about.startswith(f"{name}(")
    require(bool(about.strip()) and not generated, f"{name} has no docstring")
    options = describe(specimen.cls)
    silent = [option.name for option in options if not option.help]
    require(not silent, f"its docstring has no `Arguments:` text for {', '.join(silent)}")
    return _count(options, "documented")


@check(ANY)
def declarations(specimen: Specimen) -> str:
    """The failures that it declares are of checks that it has."""
    names = [each.name for each in checks_for(specimen.cls)]
    for name in specimen.expected:
        require(name in names, f"it declares that '{name}' fails, a check that it does not have"
                f"{suggest(name, names, 'it has')}")  # fmt: skip
    return f"{len(specimen.expected)} declared"


@check(ANY)
def options_validated(specimen: Specimen) -> str:
    """A misspelt option and a value of a wrong type are refused in a sentence that names them."""
    options = describe(specimen.cls)
    _refuses(specimen, "no_such_option", 1)
    arguments = inspect.signature(specimen.cls).parameters.values()
    swallowed = [each.name for each in arguments if each.kind is each.VAR_KEYWORD]
    require(
        not swallowed, f"its constructor takes **{''.join(swallowed)}; name and type each option"
    )
    for option in options:
        odd = [value for value in _ODD if check_value(option.annotation, value, option.name)]
        require(bool(odd), f"the option {option.name} takes any value; annotate it with its type")
        _refuses(specimen, option.name, odd[0])
    return _count(options, "validated")


@check(ANY)
def odd_numbers(specimen: Specimen) -> str:
    """Zero and negative numbers are taken, or refused in a sentence, when it is built."""
    wrong, tried = [], 0
    for option in _own(specimen):
        for value in (0, -1) if {int, float} & _types(option) else ():
            tried += 1
            try:
                _built(specimen, **{option.name: value})
            except FlowzooError:
                continue
            except Exception as error:
                wrong.append(f"{option.name} {value} raises {reason(error)}")
    require(not wrong, f"{'; '.join(wrong)}; expected a flowzoo.errors.UserError")
    return f"{tried} values tried"


@check(ANY)
def options_matter(specimen: Specimen) -> str:
    """Every option that is a number, a switch or a choice changes what is built."""
    others = [(o.name, value) for o in _own(specimen) for value in _others(o, specimen)]
    choices = [{name: value} for name, value in others if not _is_number(value)]
    for name, value in others:
        # Some options matter only beside another choice than the example's.
        tells = any(_differs(specimen, choice, name, value) for choice in ({}, *choices))
        require(tells, f"{name} {show(value)} builds what the example builds")
    return f"{len(others)} other values tell"


@check(ANY)
def builds(specimen: Specimen) -> str:
    """It is built from its example, twice the same from the same seed."""
    try:
        one, two = specimen.make(), specimen.make()
    except Incompatible as error:
        raise Failed(f"its example does not fit: {error}") from error
    require(portrait(one) == portrait(two), "two instances of one seed differ")
    return "two instances of one seed are equal"


@check(ANY)
def quiet(specimen: Specimen) -> str:
    """Building it changes no global setting and draws from torch's generator alone."""
    before = _settings()
    specimen.make()
    changed = [name for name, value in _settings().items() if value != before[name]]
    require(not changed, f"building it changes {' and '.join(changed)}")
    return f"{len(before)} settings as before"


@check(ANY)
def copies(specimen: Specimen) -> str:
    """A deep copy is equal, and shares no weights with the original."""
    made = specimen.make()
    copied = copy.deepcopy(made)
    require(type(copied) is type(made), f"its copy is a {type(copied).__qualname__}")
    require(portrait(copied) == portrait(made), "its copy differs from it")
    if isinstance(made, nn.Module):
        mine = {value.data_ptr() for value in made.state_dict().values() if value.numel()}
        shared = [k for k, v in copied.state_dict().items() if v.data_ptr() in mine]
        require(not shared, f"it shares {', '.join(shared)} with its copy")
    return "equal and separate"


@check(ANY)
def planned(specimen: Specimen) -> str:
    """What its source text says of its options, without importing it, is what its class says."""
    component = specimen.registry.component(specimen.kind, specimen.spec["name"])
    module = component.target.partition(":")[0]
    if module.endswith(".py") or "<locals>" in component.target:
        raise Skipped("it comes from a file, which is imported for a plan")
    read = source_options(component.target)
    if read is None:
        raise Skipped("its source does not tell; a plan cannot check its options")
    options = describe(specimen.cls)
    has = {option.name: option.required for option in options}
    says = {name: option.required for name, option in read.items()}
    wrong = sorted(n for n in {*has, *says} if has.get(n) != says.get(n))
    require(not wrong, f"its source and its class disagree about {', '.join(wrong)}")
    return _count(options, "read")


@check(ANY, of=nn.Module)
def registered(specimen: Specimen) -> str:
    """Its tensors are parameters or buffers, so that they are moved, converted and saved."""
    made = specimen.make()
    loose = [place for place, _ in loose_tensors(made)]
    require(not loose, f"neither parameter nor buffer: {', '.join(loose)}")
    return f"{len(made.state_dict())} tensors"


@check(ANY, of=nn.Module)
def saves(specimen: Specimen) -> str:
    """Its weights, saved and loaded into an instance of another seed, make that one equal."""
    made, other = specimen.make(seed=0), specimen.make(seed=1)
    weights = {name: value.contiguous() for name, value in made.state_dict().items()}
    wrong = other.load_state_dict(safetensors.load(safetensors.save(weights)), strict=False)
    require(not wrong.missing_keys, f"not saved: {', '.join(wrong.missing_keys)}")
    require(not wrong.unexpected_keys, f"not loaded: {', '.join(wrong.unexpected_keys)}")
    require(portrait(other.state_dict()) == portrait(made.state_dict()), "the weights differ")
    return f"{len(weights)} tensors"


def _built(specimen: Specimen, **options: object) -> Any:
    """Return an instance of a specimen with other options; a module with the same seed."""
    spec = {**specimen.spec, **options}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return build(specimen.kind, spec, specimen.registry, dim=2, context_dim=0)


def _refuses(specimen: Specimen, name: str, value: object) -> None:
    """Raise Failed unless an option is refused by its name."""
    spec = {**specimen.spec, name: value}
    said = [str(p) for p in problems(specimen.kind, spec, specimen.registry)]
    require(bool(said), f"the option {name} is accepted as {value!r}")
    require(any(name in text for text in said), f"what is refused is not named: {'; '.join(said)}")


def _types(option: Option) -> set[Any]:
    """Return the types that an option's annotation is a union of."""
    return {*(typing.get_args(option.annotation) or [option.annotation])}


def _own(specimen: Specimen) -> list[Option]:
    """Return the options that a recipe gives, and not the data."""
    given = SUPPLIED if specimen.kind != "dataset" else ()
    return [option for option in describe(specimen.cls) if option.name not in given]


def _others(option: Option, specimen: Specimen) -> list[Any]:
    """Return other values of an option than the one it has."""
    value = specimen.spec.get(option.name, option.default)
    if typing.get_origin(option.annotation) is typing.Literal:
        return [other for other in typing.get_args(option.annotation) if other != value]
    if isinstance(value, bool):
        return [not value]
    return [value + 1] if _is_number(value) else []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _differs(specimen: Specimen, choice: dict[str, Any], name: str, value: object) -> bool:
    """Return whether an option changes what is built beside a choice, or is out of its range."""
    if name in choice:
        return False
    try:
        one = _built(specimen, **choice)
        return portrait(one) != portrait(_built(specimen, **choice, **{name: value}))
    except FlowzooError:
        return not choice


def _settings() -> dict[str, Any]:
    """Return what is global and no component's to change."""
    return {
        "the default dtype": torch.get_default_dtype(),
        "whether gradients are recorded": torch.is_grad_enabled(),
        "the number of threads": torch.get_num_threads(),
        "the deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "the generator of random": random.getstate(),
        "the generator of numpy": portrait(np.random.get_state()),  # noqa: NPY002 (looked at)
    }


def _count(options: list[Option], done: str) -> str:
    return f"{len(options)} option{'s' * (len(options) != 1)} {done}"
