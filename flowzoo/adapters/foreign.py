"""How an object from elsewhere is asked: its precision, its randomness, the shapes it must give."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from flowzoo.adapters.law import Law
from flowzoo.errors import Diverged, UserError


class Foreign(nn.Module):
    """An object whose answers are checked before anybody reads them.

    A module is a submodule, so that its weights, their precision and their device follow. Any other
    object stays as and where it was made, in copies, too: it is asked in its own precision.

    Arguments:
        thing: The object.
        dim: The dimension of its points, where it does not say it.

    Raises:
        UserError: The dimension is not known, or is not the given one.
    """

    def __init__(self, thing: Any, dim: int | None = None) -> None:
        super().__init__()
        self.name: str = thing.name if isinstance(thing, Law) else type(thing).__name__
        self.held = thing if isinstance(thing, nn.Module) else _Shared(thing)
        said = _number(thing, "dim") or _number(thing, "features") or _event(thing)
        drawn = None
        if isinstance(self.held, _Shared):
            drawn = self.held.like = _probe(thing)
            standing = None if drawn is None else drawn.new_empty(0)
            self.register_buffer("standing", standing, persistent=False)  # moves with the flow
        elif not (said or dim):
            drawn = _probe(thing)
        if said is None and drawn is not None and drawn.dim() == 2:
            said = drawn.shape[1]
        if said is None and dim is None:
            raise UserError(
                f"neither {self.name} nor a sample of it says its dimension: give `dim`"
            )
        if said and dim and said != dim:
            raise UserError(f"{self.name} is a density in {said} dimensions, not in {dim}")
        self.dim = said or dim or 0

    @property
    def thing(self) -> Any:
        """The object."""
        return self.held.thing if isinstance(self.held, _Shared) else self.held

    @property
    def like(self) -> Tensor | None:
        """A tensor of the precision and on the device of the flow; None where nothing says it."""
        return _floating(self)

    def has(self, *methods: str) -> bool:
        """Return whether the object has all these methods."""
        return all(callable(getattr(self.thing, method, None)) for method in methods)

    def number(self, name: str) -> int | None:
        """Return an attribute of the object that is a positive integer, else None."""
        return _number(self.thing, name)

    def ask(
        self,
        method: str,
        what: Tensor | int,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Return what a method of the object says, in the object's own precision.

        Where the method takes no generator, torch's global ones are forked and seeded by the given
        one: results repeat, and nobody else's numbers change.
        """
        own = self.held.like if isinstance(self.held, _Shared) else _floating(self.held)
        if isinstance(what, Tensor) and own is not None:
            what = what.to(own)
        given = {}
        if context is not None:
            given["context"] = context if own is None else context.to(own)
        call = getattr(self.thing, method)
        if generator is not None and _takes(call, "generator"):
            return call(what, generator=generator, **given)
        with _drawing_from(generator):
            return call(what, **given)

    def sound(self, method: str, found: Any, shape: Sequence[int]) -> Tensor:
        """Return an answer of the object.

        Raises:
            Diverged: It has entries that are not a number.
            UserError: It is no tensor of this shape.
        """
        if not isinstance(found, Tensor) or found.shape != torch.Size(shape):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(
                f"{method} of {self.name} must give a tensor of shape {tuple(shape)}, got {got}"
            )
        if bad := int(found.isnan().sum()):
            raise Diverged(f"{method} of {self.name} gives {bad} of {found.numel()} entries as NaN")
        return found


class _Shared:
    """Holds an object that is no module: a copied flow shares it."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing
        self.like: Tensor | None = None  # a sample of it

    def __deepcopy__(self, memo: dict) -> _Shared:
        return self


def first(drawn: Any) -> Any:
    """Return samples, without what else came with them in a tuple."""
    return drawn[0] if isinstance(drawn, tuple) and drawn else drawn


@contextmanager
def _drawing_from(generator: torch.Generator | None) -> Iterator[None]:
    """Let torch's global generators draw what follows from a given one, and put them back."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    # Not torch.manual_seed: it would also seed devices whose state is not saved.
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(gpus)):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            torch.cuda.default_generators[gpu].manual_seed(seed)
        yield


def _probe(thing: Any) -> Tensor | None:
    """Return one sample, or None where the object draws none by itself."""
    with _drawing_from(torch.Generator().manual_seed(0)), torch.no_grad():
        try:
            drawn = first(thing.sample(1))
        except Exception:  # whatever it needs, its density may still be judged
            return None
    return drawn if isinstance(drawn, Tensor) and drawn.is_floating_point() else None


def _floating(module: nn.Module) -> Tensor | None:
    tensors = chain(module.parameters(), module.buffers())
    return next((t for t in tensors if t.is_floating_point()), None)


def _number(thing: object, name: str) -> int | None:
    value = getattr(thing, name, None)  # `dim` is often something else, such as a method
    return value if isinstance(value, int) and value > 0 else None


def _event(thing: object) -> int | None:
    shape = getattr(thing, "event_shape", None)
    return int(shape[0]) if isinstance(shape, tuple) and len(shape) == 1 else None


def _takes(call: Any, name: str) -> bool:
    try:
        return name in inspect.signature(call).parameters
    except (TypeError, ValueError):  # written in C
        return False
