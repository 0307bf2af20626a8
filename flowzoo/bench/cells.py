"""One cell of a matrix: a resolved recipe on a data set with a seed, and the key of its result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from flowzoo.bench.resources import Resources
from flowzoo.build import build_dataclass, parts, plain
from flowzoo.errors import UserError
from flowzoo.registry import Registry, fingerprint, frame_fingerprint
from flowzoo.settings import Budget, Judge, Training

Spec = str | dict[str, Any]
_UNSAFE = re.compile(r"[^A-Za-z0-9._=+,@-]+")


@dataclass(frozen=True, eq=False)
class Cell:
    """One flow on one data set with one seed; everything needed to run it anywhere.

    Arguments:
        flow: The flow's label in the matrix.
        data: The data's label.
        seed: Seeds weights, batches and every other random choice.
        swap: Which parts were replaced, e.g. `trace=hutchinson`; empty for none.
        recipe: Name of the recipe.
        title: What the recipe is called in a table.
        flow_spec: The flow, with everything swapped and set.
        objective: The objective, likewise.
        dataset: The data set's spec.
        training: What differs from the defaults of `settings.Training`.
        budget: Likewise of `settings.Budget`.
        metrics: Specs of metrics.
        judge: How the judge solves.
        resources: Limits of its process.
        base: The matrix's folder, to which paths in specs are relative.
        plugins: Local plugin files.
        skip: Why it cannot run; empty where it can.
    """

    flow: str
    data: str
    seed: int
    recipe: str
    flow_spec: Spec
    objective: Spec
    dataset: Spec
    swap: str = ""
    title: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)
    metrics: tuple[Spec, ...] = ("nll",)
    judge: Judge = field(default_factory=Judge)
    resources: Resources = field(default_factory=Resources)
    base: str = "."
    plugins: tuple[str, ...] = ()
    skip: str = ""

    @property
    def label(self) -> str:
        """The flow with what was swapped in it: `ot-flow [trace=hutchinson]`."""
        return f"{self.flow} [{self.swap}]" if self.swap else self.flow

    @property
    def composition(self) -> dict[str, Any]:
        """The resolved recipe: what is trained, how, and for how long."""
        return {
            "recipe": self.recipe,
            "flow": self.flow_spec,
            "objective": self.objective,
            "training": self.training,
            "budget": self.budget,
        }

    @cached_property
    def key(self) -> str:
        """Hash of everything that determines the result, but for code; 12 hexadecimal digits.

        Names, titles, limits and places do not count, nor does whether a default is written out in
        `training`, `budget` or `judge`.
        """
        content = {
            "flow": self.flow_spec,
            "objective": self.objective,
            "data": self.dataset,
            "seed": self.seed,
            "training": changed(Training, self.training),
            "budget": changed(Budget, self.budget),
            "metrics": list(self.metrics),
        }
        if self.judge != Judge():
            content["judge"] = plain(self.judge)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def place(self) -> str:
        """What the folder's name says before the key; two recipes of one label share it."""
        swap = f"+{self.swap}" if self.swap else ""
        return _UNSAFE.sub("-", f"{self.flow}{swap}@{self.data}")[:100] + f"-s{self.seed}"

    @property
    def folder(self) -> str:
        """The name of the cell's folder, safe on every file system."""
        return f"{self.place}-{self.key[:8]}"

    def to_mapping(self) -> dict[str, Any]:
        """Return the cell as plain data, as `cell.yaml` holds it."""
        return plain(self) | {"key": self.key}

    @classmethod
    def from_mapping(cls, content: dict[str, Any]) -> Cell:
        """Return a cell as `to_mapping` wrote it."""
        names = {f.name for f in dataclasses.fields(cls)}
        given = {name: value for name, value in content.items() if name in names}
        given["resources"] = Resources(**given["resources"])
        given["judge"] = Judge(**given.get("judge", {}))
        given["metrics"], given["plugins"] = tuple(given["metrics"]), tuple(given["plugins"])
        return cls(**given)

    def registry(self) -> Registry:
        """Return the installed components with those of the cell's plugin files."""
        return Registry.installed().with_files(self.plugins)

    def code(self, registry: Registry) -> dict[str, str]:
        """Return the fingerprints of the frame and of every component in use, importing none."""
        specs = [("flow", self.flow_spec), ("objective", self.objective), ("dataset", self.dataset)]
        specs += [("metric", metric) for metric in self.metrics]
        used = [part.component for kind, spec in specs for part in parts(kind, spec, registry)]
        return {
            "frame": frame_fingerprint(),
            **{f"{c.kind} {c.name}": fingerprint(c) for c in dict.fromkeys(used)},
        }


def changed(cls: type, given: dict[str, Any]) -> dict[str, Any]:
    """Return settings that differ from a dataclass's defaults, numbers in one form."""
    value, default = plain(build_dataclass(cls, given, "")), plain(cls())
    return {name: item for name, item in value.items() if item != default[name]}


def read_cell(folder: Path) -> Cell:
    """Return the cell that a folder holds.

    Raises:
        UserError: There is no `cell.yaml` in it, or something else.
    """
    from flowzoo.recipes import load_yaml

    content = load_yaml(folder / "cell.yaml")
    try:
        return Cell.from_mapping(content)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'cell.yaml'} describes no cell; remove {folder}") from error
