"""The user's own file as a dataset: .csv, .npy, .npz or .parquet, with seeded splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from flowzoo.data.arrays import read_npy, read_npz
from flowzoo.data.csv_file import read_csv
from flowzoo.data.dataset import Data, Dataset
from flowzoo.data.folder import existing_file
from flowzoo.data.parquet_file import read_parquet
from flowzoo.data.table import Table, numbered, pick_columns
from flowzoo.data.validation import Origin, check_table, validate
from flowzoo.errors import BadData, UserError

_SPLITS = ("train", "val", "test")
_EXTENSIONS = (".csv", ".npy", ".npz", ".parquet")


class File(Dataset):
    """Rows of a file, shuffled with a seed and split; an .npz may bring its own splits.

    Arguments:
        path: A .csv (with or without a header), .npy (n, d), .parquet, or .npz file with one
            array or with the arrays train, val and test.
        columns: Names of the columns to use, in this order; "1", "2", ... where the file has no
            names; None uses all.
        header: Whether the first line of a .csv holds names; None takes it so when none of its
            cells is a number.
        val_fraction: Share of the rows for validation; without effect where the file has splits.
        test_fraction: Share of the rows for the test; likewise.
        seed: Seed of the shuffle; likewise.
        standardise: Whether the harness standardises by the training rows, adding the
            log-determinant back.

    Raises:
        UserError: A share or the seed is out of its range.
    """

    name: ClassVar[str] = "file"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"path": str(Path(__file__).parent / "uci" / "redwine.npz")},
    )

    def __init__(
        self,
        path: str,
        columns: list[str] | None = None,
        header: bool | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        seed: int = 0,
        standardise: bool = True,
    ) -> None:
        if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
            raise UserError(
                f"val_fraction {val_fraction} and test_fraction {test_fraction} must be positive"
                " and leave rows for training."
            )
        if not 0 <= seed < 2**32:
            raise UserError(f"seed is {seed}; the seed of a shuffle lies in 0 ... 2^32 - 1.")
        self.path, self.columns, self.header = path, columns, header
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.seed, self.standardise = seed, standardise

    def files(self) -> tuple[Path, ...]:
        """The user's file."""
        return (existing_file(Path(self.path).expanduser()),)

    def load(self) -> Data:
        """Read, check, shuffle and split.

        Raises:
            BadData: The file cannot be used; the sentence names file, column and row.
        """
        path = Path(self.path).expanduser()
        if path.suffix.lower() not in _EXTENSIONS:
            raise BadData(
                f"{path} has the unknown extension '{path.suffix}'; flowzoo reads"
                f" {', '.join(_EXTENSIONS)}."
            )
        if self.header is not None and path.suffix.lower() != ".csv":
            raise BadData(f"{path} has no header line; the option header is for .csv files only.")
        if path.suffix.lower() == ".npz":
            arrays = read_npz(path)
            if set(_SPLITS) <= set(arrays):
                return self._given(path, [arrays[split] for split in _SPLITS])
            return self._shuffled(path, self._only_array(path, arrays))
        return self._shuffled(path, self._table(path))

    def _table(self, path: Path) -> Table:
        extension = path.suffix.lower()
        if extension == ".csv":
            return read_csv(path, self.columns, self.header)
        if extension == ".parquet":
            return read_parquet(path, self.columns)
        return self._picked(path, read_npy(path))

    def _only_array(self, path: Path, arrays: dict[str, np.ndarray]) -> Table:
        if len(arrays) != 1:
            held = ", ".join(sorted(arrays)) or "nothing"
            raise BadData(f"{path} must hold train, val and test, or one array; it holds {held}.")
        ((name, values),) = arrays.items()
        return self._picked(path, check_table(values, Origin(f"{path}, array '{name}'")))

    def _picked(self, path: Path, values: np.ndarray) -> Table:
        names = numbered(values.shape[1])
        picks = pick_columns(str(path), names, self.columns)
        return Table(values[:, picks], tuple(names[pick] for pick in picks))

    def _given(self, path: Path, splits: list[np.ndarray]) -> Data:
        tables = [
            self._picked(path, check_table(values, Origin(f"{path}, array '{name}'")))
            for name, values in zip(_SPLITS, splits, strict=True)
        ]
        rows = [table.values for table in tables]
        return self._data(path, rows, tables[0].columns, "Splits as given in the file.")

    def _shuffled(self, path: Path, table: Table) -> Data:
        # RandomState is frozen by numpy's policy, so a seed names the same split for ever
        order = np.random.RandomState(self.seed).permutation(len(table.values))
        test = int(self.test_fraction * len(order))
        val = int(self.val_fraction * len(order))
        bounds = [len(order) - val - test, len(order) - test]
        rows = [table.values[part] for part in np.split(order, bounds)]
        return self._data(path, rows, table.columns, f"Rows shuffled with seed {self.seed}.")

    def _data(
        self, path: Path, splits: list[np.ndarray], columns: tuple[str, ...], notes: str
    ) -> Data:
        train, val, test = (torch.from_numpy(np.ascontiguousarray(rows)) for rows in splits)
        data = Data(path.stem, train, val, test, columns=columns, notes=notes, title=path.stem)
        return validate(data, str(path))
