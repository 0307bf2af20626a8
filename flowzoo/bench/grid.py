"""A grid of cells: flows x data x seeds x swaps. Nothing here imports torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flowzoo.bench.cells import Cell, Spec
from flowzoo.bench.resources import Resources
from flowzoo.build import problems, shallow_problems
from flowzoo.errors import UserError
from flowzoo.recipes import Recipe, recipe_problems, swap
from flowzoo.registry import Registry
from flowzoo.registry.reader import Problem
from flowzoo.settings import Judge


@dataclass(frozen=True)
class FlowEntry:
    """A flow of the grid.

    Arguments:
        label: What tables call it.
        recipe: What is run: a recipe with the matrix's settings merged in.
        origin: The recipe as its file has it.
        path: Where in the matrix the entry stands.
    """

    label: str
    recipe: Recipe
    origin: Recipe
    path: str


@dataclass(frozen=True)
class DataEntry:
    """A data set of the grid: its label, its spec, and where in the matrix it stands."""

    label: str
    spec: Spec
    path: str


@dataclass(frozen=True)
class Variant:
    """A flow with some parts replaced: the swap's label, and why it cannot be made, if so."""

    entry: FlowEntry
    swap: str
    recipe: Recipe
    skip: str = ""


@dataclass(frozen=True)
class Matrix:
    """The cells that a matrix file asks for.

    Arguments:
        name: Name of the run's folder: the file's stem.
        title: What a report calls it.
        source: The file.
        flows: The flows.
        data: The data sets.
        registry: The installed components with those of local plugin files.
        seeds: The seeds.
        swaps: Parts to replace, each with its specs; their product is run for every flow.
        metrics: Specs of metrics.
        judge: How the judge solves.
        resources: Limits of each cell.
        exclude: Cells left out: labels of flow, data and swap, and seeds; what is not given
            matches all.
        content: What the file holds, as plain data.
    """

    name: str
    title: str
    source: Path
    flows: tuple[FlowEntry, ...]
    data: tuple[DataEntry, ...]
    registry: Registry = field(repr=False)
    seeds: tuple[int, ...] = (0,)
    swaps: dict[str, list[Any]] = field(default_factory=dict)
    metrics: tuple[Spec, ...] = ("nll",)
    judge: Judge = field(default_factory=Judge)
    resources: Resources = field(default_factory=Resources)
    exclude: tuple[dict[str, Any], ...] = ()
    content: Any = field(default=None, repr=False)

    def cells(self) -> list[Cell]:
        """Return the cells; seeds change slowest, so that a first whole table is ready early."""
        variants = self.variants()
        grid = itertools.product(self.seeds, self.data, variants)
        return [self._cell(v, d, s) for s, d, v in grid if not self._excluded(v, d, s)]

    def variants(self) -> list[Variant]:
        """Return every flow with every combination of swaps."""
        chosen = list(itertools.product(*self.swaps.values()))
        return [self._variant(entry, specs) for entry in self.flows for specs in chosen]

    def _variant(self, entry: FlowEntry, specs: tuple[Any, ...]) -> Variant:
        recipe, skip = entry.recipe, ""
        for part, spec in zip(self.swaps, specs, strict=True):
            try:
                recipe = swap(recipe, part, spec, self.registry)
            except UserError as error:
                skip = skip or str(error)
        pairs = zip(self.swaps, specs, strict=True)
        label = ", ".join(f"{part}={spec_text(spec)}" for part, spec in pairs)
        return Variant(entry, label, recipe, skip)

    def _excluded(self, variant: Variant, data: DataEntry, seed: int) -> bool:
        cell = {
            "flow": variant.entry.label, "data": data.label, "seed": seed, "swap": variant.swap
        }  # fmt: skip
        return any(all(cell[k] == v for k, v in rule.items()) for rule in self.exclude)

    def _cell(self, variant: Variant, data: DataEntry, seed: int) -> Cell:
        recipe = variant.recipe
        return Cell(
            flow=variant.entry.label,
            data=data.label,
            seed=seed,
            swap=variant.swap,
            recipe=recipe.name,
            title=recipe.title,
            flow_spec=recipe.flow,
            objective=recipe.objective,
            dataset=data.spec,
            training=recipe.training,
            budget=recipe.budget,
            metrics=self.metrics,
            judge=self.judge,
            resources=self.resources,
            base=str(self.source.resolve().parent),
            plugins=tuple(map(str, self.registry.files)),
            skip=variant.skip,
        )

    def problems(self, deep: bool = False) -> list[Problem]:
        """Return what is wrong with the components that the matrix names.

        Arguments:
            deep: Load the classes; without it their source texts are read, and torch is not
                imported.
        """
        file, check = str(self.source), problems if deep else shallow_problems
        found: list[Problem] = []
        for entry in self.flows:
            own = recipe_problems(entry.origin, self.registry, deep)
            found += own
            found += self._changed(entry.recipe, own, f"{entry.path}.set", deep)
        for variant in self.variants() if self.swaps else ():
            where = f"swap [{variant.swap}] of {variant.entry.label}"
            found += [] if variant.skip else self._changed(variant.recipe, found, where, deep)
        specs = [("dataset", entry.spec, entry.path) for entry in self.data]
        specs += [("metric", metric, f"metrics.{i}") for i, metric in enumerate(self.metrics)]
        for kind, spec, path in specs:
            found += [replace(p, file=file) for p in check(kind, spec, self.registry, path)]
        return list(dict.fromkeys([*found, *self._parts_of_nothing()]))

    def _changed(
        self, recipe: Recipe, known: list[Problem], where: str, deep: bool
    ) -> Iterator[Problem]:
        """Yield what is wrong with a changed recipe, but for what is known to be wrong already."""
        said = {problem.message for problem in known}
        for problem in recipe_problems(recipe, self.registry, deep):
            if problem.message not in said:
                inside = problem.path.removeprefix(f"recipes.{recipe.name}.")
                yield Problem(f"{where}: {inside}", problem.message, str(self.source))

    def _parts_of_nothing(self) -> Iterator[Problem]:
        """Yield the swaps that fit no flow at all: a misspelt part, not an odd pairing."""
        for part, specs in self.swaps.items():
            if not specs:
                yield Problem(f"swap.{part}", "expected at least one spec", str(self.source))
                continue
            reasons = []
            for entry in self.flows:
                try:
                    swap(entry.recipe, part, specs[0], self.registry)
                except UserError as error:
                    reasons.append(str(error))
            if len(reasons) == len(self.flows):
                yield Problem(f"swap.{part}", f"no flow has it: {reasons[0]}", str(self.source))


def spec_text(spec: Any) -> str:
    """Return a spec in one short line: `hutchinson(samples=2)`."""
    if isinstance(spec, Mapping):
        rest = ", ".join(f"{k}={spec_text(v)}" for k, v in spec.items() if k != "name")
        name = str(spec.get("name", ""))
        return f"{name}({rest})" if rest else name
    if isinstance(spec, list | tuple):
        return "[" + ", ".join(map(spec_text, spec)) + "]"
    return "none" if spec is None else str(spec)
