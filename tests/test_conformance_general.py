"""What every component promises: each broken promise is caught, by the check meant for it alone."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import nn

from flowzoo.conformance.finding import checks_for, specimens
from flowzoo.conformance.probes.portrait import portrait
from flowzoo.conformance.runner import run
from flowzoo.errors import UserError
from flowzoo.registry import Registry
from flowzoo.traces import Hutchinson


class Widget:
    """What the widgets here have in common."""

    kind: ClassVar[str] = "widget"


class Sound(Widget):
    """Sound(size) keeps every promise.

    Arguments:
        size: How large it is.
        colour: What it looks like.
        shade: How dark it is, where it is blue.
    """

    def __init__(
        self, size: int = 3, colour: Literal["red", "blue"] = "red", shade: float = 0.5
    ) -> None:
        if size < 1:
            raise UserError(f"the size of a widget is {size}; it must be positive")
        self.size, self.colour = size, colour
        self.shade = shade if colour == "blue" else None


class SoundModule(nn.Module):
    """Keeps every promise as a module.

    Arguments:
        dim: Its dimension.
    """

    kind: ClassVar[str] = "widget"

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, 3)
        self.register_buffer("scale", torch.ones(dim))


class Undocumented(Widget):
    def __init__(self, size: int = 1) -> None:
        self.size = size


@dataclass
class Generated(Widget):
    size: int = 1


class Untold(Widget):
    """Does not tell what its option is."""

    def __init__(self, size: int = 1) -> None:
        self.size = size


class Untyped(Widget):
    """Takes anything.

    Arguments:
        size: How large it is.
    """

    def __init__(self, size: Any = "large") -> None:
        self.size = size


class Swallowing(Widget):
    """Takes options that nobody knows.

    Arguments:
        size: How large it is.
    """

    def __init__(self, size: int = 1, **more: object) -> None:
        self.size = size


class Rude(Widget):
    """Refuses in words of its own.

    Arguments:
        size: How large it is.
    """

    def __init__(self, size: int = 1) -> None:
        self.size = torch.zeros(size)


class Deaf(Widget):
    """Does not listen.

    Arguments:
        size: How large it is.
    """

    def __init__(self, size: int = 1) -> None:
        self.size = 1


class Fickle(Widget):
    """Is another one each time."""

    serial = 0

    def __init__(self) -> None:
        Fickle.serial += 1
        self.serial = Fickle.serial


class Converting(Widget):
    """Changes the world."""

    def __init__(self) -> None:
        torch.set_default_dtype(torch.float64)


class Gambling(Widget):
    """Draws from a generator that torch does not seed."""

    def __init__(self) -> None:
        np.random.rand()  # noqa: NPY002 (what old code draws from)


class Hiding(nn.Module):
    """Has a tensor that no module knows."""

    kind: ClassVar[str] = "widget"

    def __init__(self) -> None:
        super().__init__()
        self.hidden = {"scale": torch.ones(2)}


class Clinging(SoundModule):
    """Copies itself without its weights."""

    def __deepcopy__(self, memo: dict) -> Clinging:
        return copy.copy(self)


class Shrinking(Widget):
    """Forgets when it is copied."""

    def __init__(self) -> None:
        self.parts = [1, 2]

    def __deepcopy__(self, memo: dict) -> Shrinking:
        other = Shrinking()
        other.parts.pop()
        return other


class Forgetful(SoundModule):
    """Leaves a weight behind when it is saved."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {k: v for k, v in super().state_dict(*args, **kwargs).items() if k != "inner.bias"}


def results(cls):
    (specimen,) = specimens([cls], Registry())
    return [run(specimen, check) for check in checks_for(cls)]


@pytest.mark.parametrize("cls", [Sound, SoundModule])
def test_sound_ones_pass(cls):
    found = results(cls)
    assert {r.check: r.detail for r in found if r.outcome not in ("pass", "skip")} == {}
    assert len(found) >= 10


@pytest.mark.parametrize(
    ("cls", "check", "said"),
    [
        (Undocumented, "documented", "no docstring"),
        (Generated, "documented", "Generated has no docstring"),
        (Untold, "documented", "text for size"),
        (Untyped, "options-validated", "size takes any value"),
        (Swallowing, "options-validated", "takes **more"),
        (Rude, "odd-numbers", "size -1 raises RuntimeError"),
        (Deaf, "options-matter", "size 2 builds what the example builds"),
        (Fickle, "builds", "two instances of one seed differ"),
        (Converting, "quiet", "the default dtype"),
        (Gambling, "quiet", "the generator of numpy"),
        (Hiding, "registered", "hidden.scale"),
        (Clinging, "copies", "it shares"),
        (Shrinking, "copies", "differs"),
        (Forgetful, "saves", "inner.bias"),
    ],
)
def test_wrong_ones_are_caught_by_the_check_meant_for_it(cls, check, said):
    bad = {r.check: r.detail for r in results(cls) if r.bad}
    assert set(bad) == {check}, bad
    assert said in bad[check]


def test_a_source_that_disagrees_with_its_class_is_caught(monkeypatch):
    specimen = specimens([Hutchinson])[0]
    (planned,) = [c for c in checks_for(Hutchinson) if c.name == "planned"]
    assert run(specimen, planned).outcome == "pass"

    def other(self, noise: str, samples: int = 1) -> None:
        """Take other options than the source says."""

    monkeypatch.setattr(Hutchinson, "__init__", other)
    found = run(specimen, planned)
    assert found.outcome == "fail"
    assert "noise, redraw" in found.detail


# Portraits


def scaled(factor):
    return lambda x: factor * x


def weight():
    return nn.Parameter(torch.ones(2))


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (torch.ones(2), torch.ones(2), torch.ones(1, 2)),
        (torch.ones(2), torch.ones(2), torch.ones(2, dtype=torch.float64)),
        (torch.tensor(torch.nan), torch.tensor(torch.nan), torch.tensor(1.0)),
        (np.arange(3), np.arange(3), np.arange(3.0)),
        (scaled(1), scaled(1), scaled(2)),
        (weight(), weight(), weight().requires_grad_(False)),
        (torch.tanh, torch.tanh, torch.sin),
        ({"a": [1, (2,)]}, {"a": [1, (2,)]}, {"a": [1, (3,)]}),
        (Sound(), Sound(), Sound(size=4)),
        ({1, 2}, {2, 1}, {1}),
        (object(), object(), Sound()),
        (torch.Generator(), torch.Generator(), torch.Generator().manual_seed(3)),
        (random.Random, random.Random, dict),
        ("a".upper, "a".upper, "a".lower),
    ],
)
def test_portraits_tell_apart_what_differs(one, same, other):
    assert portrait(one) == portrait(same)
    assert portrait(one) != portrait(other)


def test_a_portrait_of_a_circle_ends():
    circle: list = [1]
    circle.append(circle)
    assert portrait(circle) == portrait(circle)
