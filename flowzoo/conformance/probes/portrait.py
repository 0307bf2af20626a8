"""What an object is made of, as a value that can be compared: its options, weights and parts."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_CODE = FunctionType | BuiltinFunctionType | type | ModuleType


def portrait(value: Any, seen: tuple[int, ...] = ()) -> Any:
    """Return nested tuples that are equal for objects made of equal things.

    Tensors and arrays count by their contents, parameters also by whether they are trained,
    functions by their name and what they hold, other objects by their class and attributes.
    """
    if id(value) in seen:
        return "itself"
    inner = functools.partial(portrait, seen=(*seen, id(value)))
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        trained = isinstance(value, nn.Parameter) and value.requires_grad
        return "tensor", str(value.dtype), tuple(value.shape), content.numpy().tobytes(), trained
    if isinstance(value, np.ndarray):
        return "array", str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, torch.Generator):
        return inner(value.get_state())
    if isinstance(value, Mapping):
        return "mapping", tuple((str(key), inner(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return type(value).__name__, tuple(map(inner, value))
    if isinstance(value, set | frozenset):
        return "set", tuple(sorted(map(repr, value)))
    if isinstance(value, functools.partial):
        return "partial", inner(value.func), inner(value.args), inner(value.keywords)
    if isinstance(value, MethodType):
        return "method", inner(value.__func__), inner(value.__self__)
    if isinstance(value, _CODE):
        held = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        held.append(getattr(getattr(value, "__code__", None), "co_code", None))
        return "code", getattr(value, "__qualname__", value.__name__), tuple(map(inner, held))
    if hasattr(value, "__dict__"):
        return type(value).__qualname__, inner(_attributes(value))
    return type(value).__qualname__, "" if " at 0x" in repr(value) else repr(value)


def _attributes(value: Any) -> Mapping[str, Any]:
    """Return an object's attributes; a module's hooks without the numbers that torch gives them."""
    found = vars(value)
    if not isinstance(value, nn.Module):
        return found
    return {k: list(v.values()) if k.endswith("_hooks") and v else v for k, v in found.items()}


def loose_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module that are neither parameters nor buffers, with their places.

    Such tensors stay behind when the module is moved, converted or saved.
    """
    for name, part in module.named_modules():
        own = {k: v for k, v in vars(part).items() if k not in ("_parameters", "_buffers")}
        yield from _tensors(own, name, ())


def _tensors(value: Any, place: str, seen: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    if id(value) in seen or isinstance(value, nn.Module | _CODE):
        return
    if isinstance(value, Tensor):
        yield place, value
        return
    items: Mapping[Any, Any] = {}
    if isinstance(value, Mapping):
        items = value
    elif isinstance(value, list | tuple | set | frozenset):
        items = dict(enumerate(value))
    elif hasattr(value, "__dict__"):
        items = vars(value)
    for key, each in items.items():
        yield from _tensors(each, f"{place}.{key}".removeprefix("."), (*seen, id(value)))
