"""Data sets that break one promise each, and a right one from which they differ by that alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import torch

from flowzoo.data.dataset import Data, Dataset, draw_splits, split_generator
from flowzoo.data.oracles import GaussianOracle
from flowzoo.data.validation import validate
from flowzoo.errors import UserError

KNOWN = (
    *("log_prob", "score", "entropy", "transport", "inverse_transport", "transport_cost"),
    *("interpolate", "velocity", "potential", "matching_velocity"),
)


class Right(Dataset):
    """A Gaussian, correlated and off the origin, with its oracle."""

    def __init__(
        self,
        dim: int = 2,
        scale: float = 1.0,
        train: int = 400,
        val: int = 100,
        test: int = 200,
        seed: int = 0,
    ) -> None:
        self.dim, self.scale, self.train, self.val, self.test = dim, scale, train, val, test
        self.seed = seed

    def law(self):
        mix = torch.linspace(-1, 1, self.dim**2, dtype=torch.float64).reshape(self.dim, self.dim)
        covariance = self.scale * torch.eye(self.dim, dtype=torch.float64) + mix @ mix.mT
        return GaussianOracle.of(torch.full((self.dim,), 0.7, dtype=torch.float64), covariance)

    def known(self):
        law = self.law()
        return {name: getattr(law, name) for name in KNOWN}

    def rows(self):
        return draw_splits(self.law().sample, (self.train, self.val, self.test), self.seed)

    def load(self):
        oracle = SimpleNamespace(**self.known())
        data = Data(
            "right", *self.rows(), notes="Drawn from a Gaussian.", title="right", oracle=oracle
        )
        known = {k: getattr(oracle, k, None) for k in ("entropy", "log_prob", "transport_cost")}
        return replace(data, **known)


class Single(Right):
    """Validation rows in single precision."""

    def load(self):
        data = super().load()
        return replace(data, val=data.val.float())


class Hole(Right):
    """A value that is no number."""

    def known(self):
        return {}

    def rows(self):
        train, val, test = super().rows()
        train[3, 0] = torch.nan
        return train, val, test


class Refused(Hole):
    """The same, refused by the set itself."""

    def load(self):
        return validate(super().load(), "refused")


class AsItLikes(Right):
    """As many test rows as it likes."""

    def load(self):
        data = super().load()
        return replace(data, test=data.test[:50])


class Lottery(Right):
    """Rows from torch's global generator."""

    def rows(self):
        sizes = (self.train, self.val, self.test)
        torch.rand(1)
        generator = torch.Generator().manual_seed(torch.initial_seed() + self.seed)
        return tuple(self.law().sample(n, generator) for n in sizes)


class Reseeds(Right):
    """Seeds torch's global generator."""

    def rows(self):
        torch.manual_seed(self.seed)
        return super().rows()


class OneSeed(Right):
    """The same rows for every seed."""

    def rows(self):
        return draw_splits(self.law().sample, (self.train, self.val, self.test), 0)


class Leak(Right):
    """One training row among the test rows."""

    def rows(self):
        train, val, test = super().rows()
        return train, val, torch.cat([test[1:], train[:1]])


class Anonymous(Right):
    """A fingerprint that does not know the scale."""

    def __init__(
        self,
        dim: int = 2,
        scale: float = 1.0,
        train: int = 400,
        val: int = 100,
        test: int = 200,
        seed: int = 0,
    ) -> None:
        super().__init__(dim, scale, train, val, test, seed)
        self._scale = scale
        del self.scale

    def law(self):
        self.scale = self._scale
        try:
            return super().law()
        finally:
            del self.scale


class Counting(Right):
    """A fingerprint that changes by loading."""

    loads = 0

    def load(self):
        self.loads += 1
        return super().load()


class Unhashable(Right):
    """A public attribute that no fingerprint can hold."""

    def __init__(
        self, dim: int = 2, train: int = 400, val: int = 100, test: int = 200, seed: int = 0
    ) -> None:
        super().__init__(dim, 1.0, train, val, test, seed)
        self.weights = torch.ones(3)


class HalfContext(Right):
    """A context for training rows alone."""

    def load(self):
        data = super().load()
        return replace(data, train_context=torch.ones(self.train, 1, dtype=torch.float64))


class Ragged(Right):
    """Contexts of another number of rows."""

    def load(self):
        data = super().load()
        one = torch.ones(self.train, 1, dtype=torch.float64)
        known = self.law().log_prob
        return replace(
            data,
            train_context=one,
            val_context=one,
            test_context=one,
            log_prob=lambda x, context: known(x),
        )


class Silent(Right):
    """No word about the preprocessing."""

    def load(self):
        return replace(super().load(), notes="")


class FarOff(Right):
    """A column so far from zero that standardising loses its digits."""

    def known(self):
        return {}

    def rows(self):
        offset = torch.zeros(self.dim, dtype=torch.float64)
        offset[0] = 1e13
        return tuple(rows + offset for rows in super().rows())


class Missing(Right):
    """Rows in a file that is not here."""

    def files(self):
        raise UserError("missing needs a data folder: set FLOWZOO_DATA.")

    load = partial(files, None)


class Generator(Right):
    """Splits from three independent generators, as they should be, by another way."""

    def rows(self):
        sizes = enumerate((self.train, self.val, self.test))
        return tuple(self.law().sample(n, split_generator(self.seed, k)) for k, n in sizes)
