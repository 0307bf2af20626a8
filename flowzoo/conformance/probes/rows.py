"""Getting at the rows of a data set under check, small where it takes sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from torch import Tensor

from flowzoo.build import plain
from flowzoo.conformance.check import Failed, Skipped
from flowzoo.conformance.specimen import Specimen
from flowzoo.data.dataset import Data, Dataset
from flowzoo.errors import BadData, UserError
from flowzoo.registry.signature import class_options

SPLITS = ("train", "val", "test")
SIZES: Mapping[str, int] = MappingProxyType({"train": 400, "val": 100, "test": 200})
_MOST = 8
_KEPT: dict[tuple[type, str, int], Data] = {}  # the last loaded, as many checks look at the same


def loaded(specimen: Specimen, dim: int = 2, /, **options: object) -> Data:
    """Return the rows of a specimen, made with those of some options that it takes.

    The same rows are returned to every check that asks for them.

    Arguments:
        specimen: The data set.
        dim: Dimension d, where it takes one and its example does not say.
        options: Values to set; small sizes of the splits where none are given.

    Raises:
        Skipped: Its files are not here.
        Failed: Its rows cannot be used.
    """
    given = {k: v for k, v in {**SIZES, **options}.items() if k in takes(specimen)}
    key = (specimen.cls, json.dumps(plain({**specimen.spec, **given})), dim)
    if key not in _KEPT:
        while len(_KEPT) >= _MOST:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[key] = load(made(specimen, dim, **given))
    return _KEPT[key]


def small(specimen: Specimen) -> Dataset:
    """Return the data set with small splits where it takes their sizes."""
    return made(specimen, **{k: v for k, v in SIZES.items() if k in takes(specimen)})


def made(specimen: Specimen, dim: int = 2, /, **options: object) -> Dataset:
    """Return the data set with some options set."""
    return replace(specimen, spec={**specimen.spec, **options}).make(dim)


def takes(specimen: Specimen) -> set[str]:
    """Return the names of the options that a component takes."""
    return set(class_options(specimen.cls))


def load(dataset: Dataset) -> Data:
    """Return the rows of a data set.

    Raises:
        Skipped: Its files are not here.
        Failed: Its rows cannot be used.
    """
    try:
        dataset.files()
    except UserError as error:
        raise Skipped(str(error)) from error
    try:
        return dataset.load()
    except BadData as error:
        raise Failed(f"its rows cannot be used: {error}") from error
    except UserError as error:
        raise Skipped(str(error)) from error


def by_split(data: Data) -> dict[str, Tensor]:
    """Return the rows by the name of their split."""
    return {"train": data.train, "val": data.val, "test": data.test}
