"""Tabular sets of the MAF bundle in full, from a data folder, preprocessed as published.

References:
    Papamakarios, Pavlakou & Murray, Masked Autoregressive Flow for Density Estimation, 2017,
    arXiv 1705.07057 (loaders of the official code, appendix D for the recipes).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, final

import numpy as np

from flowzoo.data.arrays import read_npy
from flowzoo.data.csv_file import read_csv
from flowzoo.data.folder import MAF_BUNDLE, find_in_root
from flowzoo.data.real import (
    RealSet,
    Splits,
    checked_rows,
    split_from_the_end,
    standardise_by_train_and_val,
)
from flowzoo.errors import BadData

_GAS_CONVERSION = (
    'convert gas/ethylene_CO.pickle once, as flowzoo loads no pickles: python -c "import pandas as'
    " pd; pd.read_pickle('ethylene_CO.pickle').to_csv('ethylene_CO.csv', index=False)\""
)


class MAFSet(RealSet):
    """A set of the MAF bundle, in MAF's splits and preprocessing.

    Arguments:
        root: Data folder that holds the unpacked bundle; None takes FLOWZOO_DATA.
        rows: Only the first so many training rows and a fifth as many validation and test rows,
            for quick runs; None takes all.
    """

    wanted: ClassVar[tuple[tuple[str, ...], ...]]  # per file: accepted names, the best one first
    origin: ClassVar[str] = MAF_BUNDLE

    def __init__(self, root: str | None = None, rows: int | None = None) -> None:
        self.root, self.rows = root, checked_rows(self.name, rows)

    @final
    def files(self) -> tuple[Path, ...]:
        """The files that are read."""
        return tuple(
            find_in_root(self.name, self.root, names, self.origin) for names in self.wanted
        )


class PowerMAF(MAFSet):
    """POWER: household electric power use, minute by minute, 6 columns."""

    name = "power-maf"
    title = "POWER"
    columns = ("active power", "voltage", "submeter 1", "submeter 2", "submeter 3", "minute of day")
    notes = "MAF's recipe: noise within the measuring steps, standardised by train and val."
    wanted = (("power/data.npy",),)

    def splits(self) -> Splits:
        """Read power/data.npy (n, 8)."""
        (file,) = self.files()
        return power_splits(_of_width(read_npy(file), 8, file))


class GasMAF(MAFSet):
    """GAS: sixteen chemical sensors in gas mixtures, reduced to 8 columns by correlation."""

    name = "gas-maf"
    title = "GAS"
    notes = "MAF's recipe: correlated sensors dropped, standardised over all rows, no shuffle."
    wanted = (("gas/ethylene_CO.npy", "gas/ethylene_CO.csv"),)
    origin = f"{MAF_BUNDLE}; {_GAS_CONVERSION}"

    def splits(self) -> Splits:
        """Read the converted table: a .csv with names, or a .npy of the 16 sensors."""
        (file,) = self.files()
        if file.suffix == ".npy":
            return gas_splits(_of_width(read_npy(file), 16, file))
        table = read_csv(file, header=True)
        sensors = [i for i, name in enumerate(table.columns) if name not in ("Time", "Meth", "Eth")]
        return gas_splits(_of_width(table.values[:, sensors], 16, file))


class HepmassMAF(MAFSet):
    """HEPMASS: simulated particle collisions, the signal at mass 1000, 21 columns."""

    name = "hepmass-maf"
    title = "HEPMASS"
    notes = (
        "MAF's recipe: signal rows, standardised by all training rows, discrete columns dropped."
    )
    wanted = (("hepmass/1000_train.csv",), ("hepmass/1000_test.csv",))

    def splits(self) -> Splits:
        """Read both files; the test file has one column too many at its end."""
        train, test = (_read_headed(file) for file in self.files())
        if test.shape[1] != train.shape[1] + 1:
            raise BadData(
                f"{self.files()[1]} has {test.shape[1]} columns; the published file has one more"
                f" than {self.files()[0].name}, which has {train.shape[1]}."
            )
        return hepmass_splits(train, test)


class MinibooneMAF(MAFSet):
    """MINIBOONE: neutrino events of the signal class, 43 columns."""

    name = "miniboone-maf"
    title = "MINIBOONE"
    notes = "MAF's recipe: outliers and discrete columns dropped, standardised by train and val."
    wanted = (("miniboone/data.npy",),)

    def splits(self) -> Splits:
        """Read miniboone/data.npy (n, 43), which is cleaned but not standardised."""
        (file,) = self.files()
        rows = _of_width(read_npy(file), 43, file)
        return standardise_by_train_and_val(split_from_the_end(rows))


def power_splits(table: np.ndarray) -> Splits:
    """Shuffle, drop intensity and reactive power, add noise within the steps, split, standardise.

    Arguments:
        table: MAF's data.npy (n, 8): active and reactive power, voltage, intensity, three
            submeters, minute of the day.
    """
    rng = np.random.RandomState(42)
    rows = table.astype(np.float64)  # a copy: shuffled in place
    rng.shuffle(rows)
    rows = np.delete(np.delete(rows, 3, axis=1), 1, axis=1)  # keeps the layout, so the rounding
    n = len(rows)
    voltage = 0.01 * rng.rand(n, 1)  # drawn in this order by the published loader
    gap = 0.001 * rng.rand(n, 1)
    submeters = rng.rand(n, 3)
    rows += np.hstack((gap, voltage, submeters, np.zeros((n, 1))))
    return standardise_by_train_and_val(split_from_the_end(rows))


def gas_splits(sensors: np.ndarray) -> Splits:
    """Drop correlated columns, standardise by all rows (ddof 1), test too, split at the end."""
    kept = sensors[:, uncorrelated(sensors)]
    return split_from_the_end((kept - kept.mean(0)) / kept.std(0, ddof=1))


def hepmass_splits(train: np.ndarray, test: np.ndarray) -> Splits:
    """Keep the signal, standardise by train (ddof 1), drop discrete columns, split val off train.

    Arguments:
        train: Label and features (n, 1 + d).
        test: Label, features and one superfluous column (n, 1 + d + 1).
    """
    train = train[train[:, 0] == 1, 1:]
    test = test[test[:, 0] == 1, 1:-1]
    mean, std = train.mean(0), train.std(0, ddof=1)
    train, test = (train - mean) / std, (test - mean) / std
    keep = smallest_value_counts(train) <= 5
    train, test = train[:, keep], test[:, keep]
    fitted = len(train) - int(0.1 * len(train))
    return train[:fitted], train[fitted:], test


def uncorrelated(table: np.ndarray, limit: float = 0.98) -> list[int]:
    """Columns left when, again and again, the first one correlated above `limit` is dropped."""
    high = np.atleast_2d(np.corrcoef(table, rowvar=False)) > limit
    kept = list(range(table.shape[1]))
    while True:
        crowded = high[np.ix_(kept, kept)].sum(1) > 1  # each column correlates with itself
        if not crowded.any():
            return kept
        del kept[int(crowded.argmax())]


def smallest_value_counts(table: np.ndarray) -> np.ndarray:
    """How often each column's smallest value occurs (d,).

    The published rule "a value occurs more than 5 times" looks at this one value only.
    """
    return (table == table.min(0)).sum(0)


def _of_width(table: np.ndarray, width: int, file: Path) -> np.ndarray:
    if table.shape[1] != width:
        raise BadData(f"{file} has {table.shape[1]} columns; the published file has {width}.")
    return table


def _read_headed(file: Path) -> np.ndarray:
    """Read a .csv by its header's columns; like the published loader, ignore further cells."""
    with file.open(encoding="utf-8") as stream:
        width = stream.readline().count(",") + 1
        try:
            return np.loadtxt(stream, delimiter=",", usecols=range(width), comments=None, ndmin=2)
        except ValueError as error:
            raise BadData(f"{file} is not a table of numbers under a header: {error}.") from None
