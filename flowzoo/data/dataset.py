"""What a dataset is: three sets of rows, and what is known about the density they come from."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from flowzoo.errors import UserError

_WHEREABOUTS = ("path", "root")  # options that say where the rows lie, not what they are


@dataclass(frozen=True)
class Data:
    """Three sets of rows (n, d), float64 on the CPU; the harness casts and moves them.

    Arguments:
        name: Registered name of the dataset, or the stem of the user's file.
        train: Training rows (n, d).
        val: Validation rows (n, d).
        test: Test rows (n, d).
        columns: Names of the d columns, where known.
        entropy: True differential entropy in nats in these coordinates, given the contexts where
            rows have any, which is the lowest NLL that any model can reach; None where unknown.
        entropy_error: Standard error of `entropy`, in nats; 0 where it is exact.
        log_prob: The true log-density, (n, d) -> (n,) in nats, or that given the contexts,
            (n, d), (n, c) -> (n,), where rows have any; None where unknown.
        transport_cost: 1/2 W2^2 between the data and N(0, I): the least transport cost that a flow
            can have, the mean over the data of 1/2 |x - T(x)|^2; None where unknown.
        oracle: What else is known of the law: an object with those of the attributes listed in
            `flowzoo.data.oracles` that are known; None for nothing.
        bits_per_dim: For images, (negative log-density in the coordinates of `load` (n,) in nats,
            x in these coordinates (n, d)) -> bits per dimension of the pixels (n,); else None.
        notes: The preprocessing in one sentence, for captions.
        title: The name as a table shows it; says so where a set is reduced.
        train_context: Context of the training rows (n, c), or None.
        val_context: Context of the validation rows (n, c), or None.
        test_context: Context of the test rows (n, c), or None.
    """

    name: str
    train: Tensor
    val: Tensor
    test: Tensor
    columns: tuple[str, ...] = ()
    entropy: float | None = None
    entropy_error: float = 0.0
    log_prob: Callable[..., Tensor] | None = None
    transport_cost: float | None = None
    oracle: object | None = None
    bits_per_dim: Callable[[Tensor, Tensor], Tensor] | None = None
    notes: str = ""
    title: str = ""
    train_context: Tensor | None = None
    val_context: Tensor | None = None
    test_context: Tensor | None = None

    @property
    def dim(self) -> int:
        """Number of columns d."""
        return self.train.shape[1]


class Dataset(ABC):
    """A source of rows; its typed constructor arguments are its options in a matrix.

    Attributes:
        standardise: Whether the harness standardises by the training rows, adding the
            log-determinant back, so that the NLL is always in the coordinates of `load`.
    """

    kind: ClassVar[str] = "dataset"
    standardise: bool = False

    @abstractmethod
    def load(self) -> Data:
        """Read or draw the rows; the same options and files give the same rows."""

    def files(self) -> tuple[Path, ...]:
        """Files that the rows come from; their contents are part of the fingerprint."""
        return ()

    @final
    def fingerprint(self) -> str:
        """Hash of what determines the rows: the class, its public attributes, the files' contents.

        The places of the files (`path`, `root`) do not count, so a moved file keeps its key.
        """
        options = {
            name: value
            for name, value in vars(self).items()
            if not name.startswith("_") and name not in _WHEREABOUTS
        }
        sums = [checksum(file) for file in self.files()]
        identity = json.dumps([type(self).__qualname__, options, sums], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Standardisation:
    """The map x -> z = (x - mean) / std, with log p(x) = log p(z) + ladj.

    Arguments:
        mean: Mean of the training rows (d,).
        std: Their standard deviation, ddof 0 (d,).
    """

    mean: Tensor
    std: Tensor

    @property
    def ladj(self) -> float:
        """log abs det dz/dx = -sum_i log std_i, in nats; the same for every row."""
        return -float(self.std.double().log().sum())

    def forward(self, x: Tensor) -> Tensor:
        """Standardise rows (n, d)."""
        return (x - self.mean.to(x)) / self.std.to(x)

    def inverse(self, z: Tensor) -> Tensor:
        """Bring standardised rows (n, d) back to the data's coordinates."""
        return z * self.std.to(z) + self.mean.to(z)


def standardised(
    data: Data, scaling: Standardisation | None = None
) -> tuple[Data, Standardisation]:
    """Standardise the splits by the training rows, and with them what is known of the density.

    Arguments:
        data: Rows in the coordinates in which the NLL is reported.
        scaling: The map, where other training rows than these say it.

    Returns:
        The data in standardised coordinates, with entropy H(z) = H(x) + ladj, and the map.
    """
    if scaling is None:
        scaling = Standardisation(data.train.mean(0), data.train.std(0, correction=0))
    known, bits = data.log_prob, data.bits_per_dim
    return replace(
        data,
        train=scaling.forward(data.train),
        val=scaling.forward(data.val),
        test=scaling.forward(data.test),
        entropy=None if data.entropy is None else data.entropy + scaling.ladj,
        log_prob=None if known is None else partial(_log_prob_standardised, known, scaling),
        # optimal maps and straight paths do not commute with rescaling, and spheres become
        # ellipsoids: what an oracle says is about other coordinates than these
        transport_cost=None,
        oracle=None,
        bits_per_dim=None if bits is None else partial(_bits_standardised, bits, scaling),
    ), scaling


def split_generator(seed: int, split: int) -> torch.Generator:
    """Make the generator of one split, independent of the others and of their sizes.

    Arguments:
        seed: The dataset's seed, not negative.
        split: 0 for training, 1 for validation, 2 for test rows; more for further uses.

    Raises:
        UserError: The seed is negative.
    """
    if seed < 0:
        raise UserError(f"seed is {seed}; a dataset's seed must be zero or positive.")
    state = np.random.SeedSequence(seed, spawn_key=(split,)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def draw_splits(
    sample: Callable[[int, torch.Generator], Tensor], sizes: tuple[int, int, int], seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw train, val and test of the given sizes independently; `sample` makes n rows (n, d)."""
    train, val, test = (sample(n, split_generator(seed, k)) for k, n in enumerate(sizes))
    return train, val, test


def checksum(file: Path) -> str:
    """SHA-256 of a file's contents; read again only when its size or time of change differ."""
    stat = file.stat()
    return _checksum(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _checksum(file: Path, size: int, mtime: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _bits_standardised(
    bits: Callable[[Tensor, Tensor], Tensor], scaling: Standardisation, nll: Tensor, z: Tensor
) -> Tensor:
    return bits(nll, scaling.inverse(z))


def _log_prob_standardised(
    known: Callable[..., Tensor], scaling: Standardisation, z: Tensor, *context: Tensor
) -> Tensor:
    return known(scaling.inverse(z), *context) - scaling.ladj
