"""Small real sets that come with the package; sources and licences: uci/ATTRIBUTION.md."""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np

from flowzoo.data.real import RealSet, Splits, checked_rows

_UNIFORM_RECIPE = (
    "Columns with few values or a correlation above 0.98 dropped, steps dequantised, rows"
    " shuffled, standardised by train and val."
)
_WINE = (
    "fixed acidity",
    "volatile acidity",
    "citric acid",
    "residual sugar",
    "chlorides",
    "free sulfur dioxide",
    "total sulfur dioxide",
    "density",
    "pH",
    "sulphates",
)


class ShippedSet(RealSet):
    """A real set inside the package, in the splits and preprocessing given in docs/data.md.

    Arguments:
        rows: Only the first so many training rows and a fifth as many validation and test rows,
            for quick runs; None takes all.
    """

    def __init__(self, rows: int | None = None) -> None:
        self.rows = checked_rows(self.name, rows)

    @final
    def files(self) -> tuple[Path, ...]:
        """The archive in the package."""
        return (Path(__file__).parent / "uci" / f"{self.name}.npz",)

    @final
    def splits(self) -> Splits:
        """Read the archive: float32 rows, standardised."""
        with np.load(self.files()[0], allow_pickle=False) as archive:
            return archive["train"], archive["val"], archive["test"]


class Power(ShippedSet):
    """POWER, reduced: 35 winter days of the 47 months of household power use, 6 columns."""

    name = "power"
    title = "POWER (reduced)"
    columns = ("active power", "voltage", "submeter 1", "submeter 2", "submeter 3", "minute of day")
    notes = (
        "MAF's recipe on the first 48,424 minutes and 1-2 Feb 2007 only (51,299 of 2,049,280 rows):"
        " not comparable with published POWER numbers."
    )


class Miniboone(ShippedSet):
    """MINIBOONE, reduced: the official test set, 4,307 of 29,556 training rows, 43 columns."""

    name = "miniboone"
    title = "MINIBOONE (reduced)"
    notes = (
        "MAF's recipe and official 3,648 test rows, but 4,307 training rows (1,523 official ones"
        " and 2,784 of the official val) instead of 29,556, so numbers stay above published ones."
    )


class Magic(ShippedSet):
    """MAGIC gamma telescope: image parameters of simulated showers, 10 columns."""

    name = "magic"
    title = "MAGIC"
    notes = _UNIFORM_RECIPE


class Parkinsons(ShippedSet):
    """Parkinson's telemonitoring: voice measures, 12 columns, many recordings per subject."""

    name = "parkinsons"
    title = "Parkinsons"
    notes = _UNIFORM_RECIPE + " Subjects straddle the splits."


class Protein(ShippedSet):
    """Physicochemical properties of protein tertiary structure (CASP), 9 columns."""

    name = "protein"
    title = "protein"
    notes = _UNIFORM_RECIPE


class RedWine(ShippedSet):
    """Red wine quality: physicochemical tests, 10 columns."""

    name = "redwine"
    title = "red wine"
    columns = _WINE
    notes = _UNIFORM_RECIPE + " Duplicated rows straddle the splits."


class WhiteWine(ShippedSet):
    """White wine quality: physicochemical tests, 11 columns."""

    name = "whitewine"
    title = "white wine"
    columns = (*_WINE, "alcohol")
    notes = _UNIFORM_RECIPE + " Duplicated rows straddle the splits."


class Higgs7k(ShippedSet):
    """HIGGS, 7,500 of 11 million rows: simulated collisions, 24 columns, both classes."""

    name = "higgs7k"
    title = "HIGGS (7,500 rows)"
    notes = _UNIFORM_RECIPE + " 7,500 of 11 million rows."
