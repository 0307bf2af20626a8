"""What a data set promises of its rows: that they repeat, are split cleanly and are described."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowzoo.conformance.check import Failed, Skipped, check, off_by, require
from flowzoo.conformance.probes.portrait import portrait
from flowzoo.conformance.probes.rows import (
    SIZES,
    SPLITS,
    by_split,
    load,
    loaded,
    made,
    small,
    takes,
)
from flowzoo.conformance.promises.datasets_law import (  # noqa: F401 (checks of this kind as well)
    cost,
    density,
    mass,
    matching_velocity,
    modes,
    potential,
    score,
    transport,
    velocity,
)
from flowzoo.conformance.runner import settled
from flowzoo.conformance.specimen import Specimen
from flowzoo.data.dataset import Dataset, standardised
from flowzoo.errors import UserError
from flowzoo.registry.signature import class_options

_NO_IDENTITY = ("path", "root")  # options that say where the rows lie, not what they are


@check("dataset")
def shapes(specimen: Specimen) -> str:
    """All splits are finite float64 rows on the CPU with the same columns, as many as asked for."""
    data = loaded(specimen)
    for split, rows in by_split(data).items():
        require(rows.dim() == 2, f"{split} has shape {tuple(rows.shape)}, expected (n, d)")
        require(
            rows.dtype == torch.float64 and rows.device.type == "cpu",
            f"{split} is {rows.dtype} on {rows.device}, expected float64 on the CPU",
        )
        require(len(rows) > 0, f"{split} has no rows")
        require(bool(rows.isfinite().all()), f"{split} has values that are not finite")
        require(
            rows.shape[1] == data.train.shape[1],
            f"{split} has {rows.shape[1]} columns, train has {data.train.shape[1]}",
        )
        asked = SIZES[split] if split in takes(specimen) else len(rows)
        require(len(rows) == asked, f"{split} has {len(rows)} rows where {asked} were asked for")
    named = len(data.columns)
    require(named in (0, data.dim), f"{named} columns are named, but there are {data.dim}")
    return f"{len(data.train)}, {len(data.val)} and {len(data.test)} rows of {data.dim} columns"


@check("dataset")
def repeatable(specimen: Specimen) -> str:
    """The same options give the same rows, whatever was drawn elsewhere, and disturb no draws."""
    with settled("one"):
        before = _generators()
        first = load(small(specimen))
        disturbed = before != _generators()
    with settled("another"):
        second = load(small(specimen))
    for split, rows in by_split(first).items():
        again = by_split(second)[split]
        same = portrait(rows) == portrait(again)
        require(same, f"{split} differs between two loads with the same options")
    require(not disturbed, "load changes the state of a global random generator")
    return "two loads agree bit for bit"


@check("dataset")
def seeds(specimen: Specimen) -> str:
    """Another seed gives other rows in every split."""
    if "seed" not in takes(specimen):
        raise Skipped("it has no option seed")
    dataset = specimen.make()
    one, other = (by_split(loaded(specimen, seed=seed)) for seed in (1, 2))
    same = [name for name in SPLITS if torch.equal(one[name], other[name])]
    if same and dataset.files():
        raise Skipped("its file brings the splits, so there is nothing to shuffle")
    require(not same, f"seeds 1 and 2 give the same rows in {', '.join(same)}")
    return "seeds 1 and 2 share no split"


@check("dataset")
def splits(specimen: Specimen) -> str:
    """No row of one split is in another."""
    data = loaded(specimen)
    rows, counts = by_split(data), {}
    for i, name in enumerate(SPLITS):
        for other in SPLITS[i + 1 :]:
            shared = _shared(rows[name], rows[other])
            if shared:
                counts[f"{shared} of the {len(rows[other])} {other} rows are in {name}"] = shared
    said = "; ".join(counts)
    if counts and specimen.make().files():
        raise Skipped(f"the published data repeat rows: {said}")
    require(not counts, said)
    return "no row is shared"


@check("dataset")
def fingerprint(specimen: Specimen) -> str:
    """The same options have the same fingerprint, before and after loading, and others another."""
    taken = {name: value for name, value in SIZES.items() if name in takes(specimen)}
    base = {**taken, **{k: v for k, v in specimen.spec.items() if k != "name"}}
    dataset = made(specimen, **base)
    before = _fingerprint(dataset)
    load(dataset)
    require(before == _fingerprint(dataset), "the fingerprint changes when the rows are loaded")
    require(before == _fingerprint(made(specimen, **base)), "equal options have two fingerprints")
    told = []
    for name, option in class_options(specimen.cls).items():
        other = None if name in _NO_IDENTITY else _another(base.get(name, option.default))
        if other is None:
            continue
        try:
            varied = made(specimen, **{**base, name: other})
        except UserError:
            continue  # the other value is out of its range
        require(
            before != _fingerprint(varied),
            f"{name} {other} has the fingerprint of {name} {base.get(name, option.default)}",
        )
        told.append(name)
    return f"told apart by {', '.join(told)}" if told else "no option tells the rows apart"


@check("dataset")
def context(specimen: Specimen) -> str:
    """Where rows come with a context, every row of every split has one, finite and of one width."""
    data = loaded(specimen)
    given = data.train_context, data.val_context, data.test_context
    if all(each is None for each in given):
        raise Skipped("its rows have no context")
    widths = set()
    for (split, rows), its in zip(by_split(data).items(), given, strict=True):
        if its is None:
            raise Failed(f"{split} has no context, but another split has")
        right = its.dim() == 2 and len(its) == len(rows) and its.dtype == torch.float64
        require(
            right and its.device.type == "cpu",
            f"the context of {split} is {tuple(its.shape)} {its.dtype} on {its.device}, expected "
            f"({len(rows)}, c) float64 on the CPU",
        )
        require(bool(its.isfinite().all()), f"the context of {split} is not finite everywhere")
        widths.add(its.shape[1])
    require(len(widths) == 1, f"the contexts of the splits have widths {sorted(widths)}")
    return f"{widths.pop()} columns of context"


@check("dataset")
def notes(specimen: Specimen) -> str:
    """Name, title and notes say what the rows are, for captions and tables."""
    data = loaded(specimen)
    for what, text in (("name", data.name), ("title", data.title)):
        require(bool(text.strip()), f"{what} is empty")
        require("\n" not in text, f"{what} has several lines")
    said = data.notes.strip()
    require(len(said.split()) >= 3, f"notes must say the preprocessing in a sentence, not '{said}'")
    require(said.endswith("."), f"notes must be a sentence that ends in a full stop: '{said}'")
    return f"{data.title}: {len(said.split())} words of notes"


@check("dataset")
def standardise(specimen: Specimen) -> str:
    """The rows can be standardised by the training rows and brought back."""
    dataset = specimen.make()
    require(
        isinstance(dataset.standardise, bool),
        f"standardise is {dataset.standardise!r}, expected true or false",
    )
    data = loaded(specimen)
    scaled, scaling = standardised(data)
    require(
        bool(scaling.std.isfinite().all() and (scaling.std > 0).all()),
        "a column of the training rows has no positive standard deviation",
    )
    off_by(scaled.train.mean(0), torch.zeros(data.dim), 1e-6, "the standardised mean")
    off_by(scaled.train.std(0, correction=0), torch.ones(data.dim), 1e-6, "the standardised spread")
    back = (scaling.inverse(scaled.test) - data.test) / scaling.std
    return off_by(back, torch.zeros_like(back), 1e-6, "rows brought back")


def _fingerprint(dataset: Dataset) -> str:
    try:
        return dataset.fingerprint()
    except UserError as error:
        raise Skipped(str(error)) from error
    except TypeError as error:
        raise Failed(f"it has no fingerprint: {error}; keep such attributes private") from error


def _another(value: Any) -> int | float | bool | None:
    """Return another value of an option's type; None where there is no obvious one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return 1.5 * value + 0.25
    return 100 if value is None else None


def _shared(one: Tensor, other: Tensor) -> int:
    """Return how many rows of the other table are in the first."""
    known = set(map(bytes, np.ascontiguousarray(one.numpy())))
    return sum(bytes(row) in known for row in np.ascontiguousarray(other.numpy()))


def _generators() -> Any:
    """Return the states of the generators that everybody shares."""
    return portrait((random.getstate(), np.random.get_state(), torch.get_rng_state()))  # noqa: NPY002
