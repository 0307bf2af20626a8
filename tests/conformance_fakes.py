"""A plugin file with a kind of its own, its checks, and widgets that keep their promises or not."""

from __future__ import annotations

import os
import sys
import warnings
from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from flowzoo.conformance.check import check, require
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import Incompatible


class Widget(ABC):
    """Something with a weight."""

    kind: ClassVar[str] = "widget"
    checks: ClassVar[str] = __name__

    @abstractmethod
    def weigh(self) -> float:
        """Return its weight."""


class Plain(Widget):
    """A widget.

    Arguments:
        weight: How heavy it is.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def weigh(self) -> float:
        """Return its weight."""
        return self.weight


class Several(Plain):
    """Checked in two sizes."""

    examples: ClassVar = [{"weight": 2.0}, {"weight": 3.0}]


class Debtor(Widget):
    """Weighs less than nothing."""

    def weigh(self) -> float:
        """Return -1."""
        return -1.0


class Declared(Debtor):
    """Says so."""

    expected_failures: ClassVar = {"positive": "it owes"}


class Outdated(Plain):
    """Declares what is no longer so."""

    expected_failures: ClassVar = {"positive": "it once owed"}


class Misnamed(Plain):
    """Declares what nobody checks."""

    expected_failures: ClassVar = {"postive": "it owes"}


class Raising(Widget):
    """Has no weight."""

    def weigh(self) -> float:
        """Divide by zero."""
        return 1 / 0


class Quitting(Widget):
    """Leaves."""

    def weigh(self) -> float:
        """Exit."""
        sys.exit("no more")


class Misfit(Widget):
    """Does not fit the scales."""

    def weigh(self) -> float:
        """Refuse."""
        raise Incompatible("a misfit does not fit the scales")


class Random(Widget):
    """Weighs what the global generator says, and talks about it."""

    def weigh(self) -> float:
        """Return a random weight, and leave everything global behind."""
        print("how heavy am I?")
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        warnings.simplefilter("ignore")
        return float(torch.rand(()))


class Crashing(Widget):
    """Takes its process along."""

    def weigh(self) -> float:
        """Abort."""
        os.abort()


@check("widget")
def positive(specimen: Specimen) -> str:
    """A weight is positive."""
    weight = specimen.make().weigh()
    require(weight > 0, f"the weight is {weight:g}, expected a positive one")
    return f"weighs {weight:g}"


@check("widget", of=Plain)
def plain(specimen: Specimen) -> str:
    """A plain widget weighs what it is told."""
    made = specimen.make()
    require(made.weigh() == made.weight, "it does not")
    return "it does"


def flowzoo_components() -> dict[str, type]:
    """Return what this file offers."""
    classes = (Plain, Several, Debtor, Declared, Outdated, Misnamed, Raising, Quitting, Misfit,
               Random, Crashing)  # fmt: skip
    return {cls.__name__.lower(): cls for cls in classes}
