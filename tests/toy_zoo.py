"""Interfaces and components without torch, whose specs have everything that a spec can have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from flowzoo.errors import Incompatible
from flowzoo.registry import Component, Registry

Colour = Literal["red", "green"]


class Wheel(ABC):
    kind: ClassVar[str] = "wheel"

    @abstractmethod
    def turn(self) -> int: ...


class Plain(Wheel):
    """A wheel.

    Arguments:
        spokes: How many there are,
            all of one length.
        colour: What it looks like.
    """

    def __init__(self, spokes: int = 8, colour: Colour = "red") -> None:
        self.spokes, self.colour = spokes, colour

    def turn(self) -> int:
        return self.spokes


class Sized(Plain):
    """A wheel that must know how large it is.

    Arguments:
        dim: Its size.
    """

    def __init__(self, dim: int, spokes: int = 4) -> None:
        super().__init__(spokes)
        if dim > 100:
            raise Incompatible(f"no wheel is as large as {dim}")
        self.dim = dim


class Inherited(Plain):
    """Has no constructor of its own."""


@dataclass
class Solid(Wheel):
    """A dataclass.

    Arguments:
        weight: In kilograms.
        holes: Where they are.
    """

    weight: float
    holes: list[float] = field(default_factory=list)

    def turn(self) -> int:
        return 1


class Unfinished(Wheel):
    """Does not implement `turn`."""


class Vehicle:
    kind: ClassVar[str] = "vehicle"


@dataclass(frozen=True)
class Paint:
    """How it is painted."""

    colour: Colour = "red"
    layers: int = 1
    mix: tuple[float, float] = (0.5, 0.5)


class Cart(Vehicle):
    """Everything that an option can be."""

    def __init__(
        self,
        wheels: Sequence[Wheel],
        spare: Wheel | None = None,
        solid: Solid | None = None,
        load: float = 0.0,
        horn: bool = False,
        sign: str = "cart",
        sizes: tuple[int, ...] = (1, 2),
        weights: dict[str, float] | None = None,
        log: Path | None = None,
        paint: Paint = Paint(),
        either: int | list[int] = 0,
        anything: Any = None,
        call: Callable[[], int] = len,
    ) -> None:
        self.wheels, self.spare, self.solid, self.load = wheels, spare, solid, load
        self.horn, self.sign, self.sizes, self.weights = horn, sign, sizes, weights
        self.log, self.paint, self.either, self.anything = log, paint, either, anything
        self.call = call


class Train(Vehicle):
    """Vehicles one after the other."""

    def __init__(self, cars: list[Vehicle], dim: int = 0, context_dim: int = 0) -> None:
        self.cars, self.dim, self.context_dim = cars, dim, context_dim


class Misfiled:
    kind: ClassVar[str] = "boat"


def zoo(*more: Component) -> Registry:
    """Return a registry of all this."""
    names = {
        "wheel": {
            "plain": "Plain",
            "sized": "Sized",
            "inherited": "Inherited",
            "solid": "Solid",
            "unfinished": "Unfinished",
            "misfiled": "Misfiled",
            "absent": "Absent",
            "paint": "zoo",
        },
        "vehicle": {"cart": "Cart", "train": "Train"},
    }
    toys = [
        Component(kind, name, f"{__name__}:{target}", "toys 1.0")
        for kind, each in names.items()
        for name, target in each.items()
    ]
    return Registry([*toys, *more])
