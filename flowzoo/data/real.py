"""Published real sets: what those shipped with the package and those read from a folder share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from flowzoo.data.dataset import Data, Dataset
from flowzoo.data.validation import MINIMUM_ROWS, validate
from flowzoo.errors import UserError

Splits: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]


class RealSet(Dataset):
    """A set with published splits and preprocessing, kept as they are: NLLs are in its coordinates.

    Arguments:
        rows: Only the first so many training rows and a fifth as many validation and test rows,
            for quick runs; None takes all.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    notes: ClassVar[str]
    columns: ClassVar[tuple[str, ...]] = ()
    rows: int | None

    @abstractmethod
    def splits(self) -> Splits:
        """Read train, val and test, (n, d) each, preprocessed as published."""

    @property
    def bits_per_dim(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """For images, (nll (n,), x (n, d)) -> bits per dimension (n,), else None."""
        return None

    def load(self) -> Data:
        """Read the splits, shorten them to `rows`, check them."""
        splits = self.splits()
        notes = self.notes
        if self.rows is not None:
            fifth = self.rows // 5
            splits = tuple(s[:n] for s, n in zip(splits, (self.rows, fifth, fifth), strict=True))
            notes += f" First {len(splits[0])} training rows and {len(splits[2])} test rows only."
        train, val, test = (torch.from_numpy(np.array(s, dtype=np.float64)) for s in splits)
        data = Data(
            self.name,
            train,
            val,
            test,
            columns=self.columns,
            bits_per_dim=self.bits_per_dim,
            notes=notes,
            title=self.title,
        )
        return validate(data, self.name)


def checked_rows(name: str, rows: int | None) -> int | None:
    """Return `rows` when every split keeps enough of them.

    Raises:
        UserError: A fifth of `rows` is fewer than validation and test need.
    """
    if rows is not None and rows < 5 * MINIMUM_ROWS:
        raise UserError(
            f"rows of {name} is {rows}; it must be at least {5 * MINIMUM_ROWS}, as val and test"
            " take a fifth each."
        )
    return rows


def split_from_the_end(rows: np.ndarray) -> Splits:
    """Split without shuffling: the last tenth is test, the last tenth of the rest is val."""
    rest, test = _cut(rows)
    train, val = _cut(rest)
    return train, val, test


def standardise_by_train_and_val(splits: Splits) -> Splits:
    """Standardise all splits by mean and standard deviation (ddof 0) of train and val together."""
    fitted = np.concatenate(splits[:2])
    mean, std = fitted.mean(0), fitted.std(0)
    train, val, test = ((s - mean) / std for s in splits)
    return train, val, test


def _cut(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut off the last int(0.1 n) rows."""
    keep = len(rows) - int(0.1 * len(rows))
    return rows[:keep], rows[keep:]
