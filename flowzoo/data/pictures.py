"""Pictures as densities in the plane: a rose and a tree of ours, and the user's own image.

JKO-iFlow's rose and fractal tree are images, sampled by FFJORD's protocol for images. They have no
licence, so they are not here: `rose` and `tree` are drawn by formulas and stand in for them. An NLL
on them does not compare with the published one. `picture` reads the published images, or any
other, where the user has them.

References:
    Xu, Cheng & Xie, Normalizing flow neural networks by JKO scheme, 2023, arXiv 2212.14424.
    Grathwohl et al., FFJORD, 2019, arXiv 1810.01367 (train_img2d.py of the official code).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from flowzoo.data import drawings
from flowzoo.data.dataset import Data, Dataset, draw_splits
from flowzoo.data.folder import existing_file
from flowzoo.data.picture_file import read_ink
from flowzoo.data.pixels import PixelMixture
from flowzoo.data.validation import validate
from flowzoo.errors import UserError

_INK = {"rose": drawings.rose, "tree": drawings.tree}


class Pictured(Dataset):
    """Independent draws from an image: a pixel by its darkness, then noise of half a pixel.

    The density is a mixture of Gaussians, so `log_prob` is exact (`flowzoo.data.pixels`).

    Arguments:
        train: Number of training rows.
        val: Number of validation rows.
        test: Number of test rows.
        seed: Seed of the draws.

    Raises:
        UserError: A split has less than 2 rows.
    """

    name: ClassVar[str]

    def __init__(
        self, train: int = 100_000, val: int = 2_000, test: int = 10_000, seed: int = 0
    ) -> None:
        if min(train, val, test) < 2:
            raise UserError(f"{self.name} needs at least 2 rows in each of train, val and test.")
        self.train, self.val, self.test, self.seed = train, val, test, seed

    @property
    @abstractmethod
    def density(self) -> PixelMixture:
        """The density of the image."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n fresh rows (n, 2), float64 on the CPU."""
        return self.density.sample(n, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-density (n,) of places (n, 2), in nats."""
        return self.density.log_prob(x)

    def _drawn(
        self, density: PixelMixture, entropy: float, name: str, title: str, what: str
    ) -> Data:
        sizes = (self.train, self.val, self.test)
        train, val, test = draw_splits(density.sample, sizes, self.seed)
        data = Data(
            name,
            train,
            val,
            test,
            entropy=entropy,
            log_prob=density.log_prob,
            notes=f"{self.train} points of {what}, noise of half a pixel, not standardised.",
            title=title,
        )
        return validate(data, name, minimum=2)


class Drawing(Pictured):
    """A picture of ours, drawn by formulas in 256 grey levels."""

    entropy: ClassVar[float]

    @property
    def density(self) -> PixelMixture:
        """The density of the drawing."""
        return _drawing(self.name)

    def load(self) -> Data:
        """Draw the three splits."""
        what = f"a {self.name} drawn by formulas (not the published picture)"
        return self._drawn(
            self.density, self.entropy, self.name, f"{self.name} (our drawing)", what
        )


class Rose(Drawing):
    """A rose with stem and leaves, our stand-in for JKO-iFlow's: 256 x 256 pixels in [-4, 4]^2.

    It is not the published picture, and an NLL on it does not compare with the paper's. The
    published one has 500,000 training and 50,000 test points.
    """

    name = "rose"
    entropy = 2.719911


class Tree(Drawing):
    """A fractal tree, our stand-in for JKO-iFlow's: 256 x 256 pixels in [-4, 4]^2.

    It is not the published picture, and an NLL on it does not compare with the paper's. The
    published one has 2,000,000 training and 50,000 test points.
    """

    name = "tree"
    entropy = 2.331092


class Picture(Pictured):
    """The user's own image as a density: dark pixels are likely, the lightest have no weight.

    Pixels have the weight (lightest grey - grey). Their centres span [-4, 4]^2 whatever the
    image's proportions, the first row on top.

    Arguments:
        path: A .png, or a .npy of grey (h, w) or red, green and blue (h, w, 3), larger is lighter.
        train: Number of training rows.
        val: Number of validation rows.
        test: Number of test rows.
        seed: Seed of the draws.

    Raises:
        UserError: A split has less than 2 rows.
    """

    name: ClassVar[str] = "picture"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"path": str(Path(__file__).parent / "png" / "heart.png")},
    )

    def __init__(
        self,
        path: str,
        train: int = 100_000,
        val: int = 2_000,
        test: int = 10_000,
        seed: int = 0,
    ) -> None:
        super().__init__(train, val, test, seed)
        self.path = path

    @property
    def density(self) -> PixelMixture:
        """The density of the image, read anew.

        Raises:
            BadData: The file cannot be used; the sentence names it and says why.
        """
        return PixelMixture(read_ink(Path(self.path).expanduser()))

    def files(self) -> tuple[Path, ...]:
        """The user's image."""
        return (existing_file(Path(self.path).expanduser()),)

    def load(self) -> Data:
        """Read the image and draw the three splits.

        Raises:
            BadData: The file cannot be used; the sentence names it and says why.
        """
        density, name = self.density, Path(self.path).stem
        return self._drawn(density, density.entropy(), name, name, "an image's dark pixels")


@lru_cache
def _drawing(name: str) -> PixelMixture:
    # grey levels, as in a file: they do not depend on the last bits of a machine's sine
    return PixelMixture(np.round(255 * _INK[name]()))
