"""The density of an image: a narrow Gaussian at every pixel, weighed by how dark the pixel is."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch
from scipy.ndimage import convolve1d
from scipy.spatial import KDTree
from scipy.special import xlogy
from torch import Tensor

from flowzoo.data.densities import in_blocks

_HALF = 4.0  # the pixels' centres span [-4, 4] in both directions
_REACH = 8  # pixels, beyond which a Gaussian is below e^-120 of its height
_TINY = 1e-280  # sums below have lost digits to underflow and are formed again as logarithms
_DIGITS = 34.0  # parts below e^-34 = 2e-15 of a sum are left out


class PixelMixture:
    r"""A mixture of Gaussians at the centres of an image's pixels, in the square [-4, 4]^2.

    p(x) = sum_ij w_ij N(x_1; a_j, (4 / w)^2) N(x_2; b_i, (4 / h)^2), w_ij proportional to the ink,
    with a_j and b_i evenly spaced from -4 to 4, ends included; the first row of the image is on
    top. The noise is half of 8 / w and 8 / h: half a pixel.

    Arguments:
        ink: Darkness of the pixels (h, w), at least (2, 2), not negative, some positive.

    References:
        Grathwohl et al., FFJORD, 2019, arXiv 1810.01367 (train_img2d.py of the official code).
    """

    def __init__(self, ink: np.ndarray) -> None:
        rows, columns = ink.shape
        # a Gaussian is symmetric, so the image is turned upright by turning its axis
        self._axes = np.linspace(_HALF, -_HALF, rows), np.linspace(-_HALF, _HALF, columns)
        self._noise = _HALF / rows, _HALF / columns
        self._scale = torch.tensor(self._noise[::-1], dtype=torch.float64)
        self._weights = ink / ink.sum()
        row, column = self._inked = self._weights.nonzero()
        self._centres = np.stack([self._axes[1][column], self._axes[0][row]], 1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n rows (n, 2), float64 on the CPU: a pixel by its weight, then its Gaussian."""
        counts = torch.from_numpy(self._weights[self._inked].cumsum())
        drawn = torch.rand(n, generator=generator, dtype=torch.float64) * counts[-1]
        pick = torch.searchsorted(counts, drawn)
        normal = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return torch.from_numpy(self._centres)[pick] + normal * self._scale

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density (n,) of places (n, 2), in nats, in float64 inside; differentiable.

        The sum over all pixels is a bilinear form of two vectors of the place, that is, a matrix
        product. Where it underflows, far from any ink, the nearest pixels are summed as logarithms.
        """
        # rows and columns without ink add nothing
        kept = [self._weights.any(axis=axis) for axis in (1, 0)]
        ink = torch.from_numpy(self._weights[kept[0]][:, kept[1]]).to(x.device)
        rows, columns = (
            torch.from_numpy(axis[some] / noise).to(x.device)
            for axis, some, noise in zip(self._axes, kept, self._noise, strict=True)
        )
        scale = self._scale.to(x.device)

        def block(places: Tensor) -> Tensor:
            total, highest = _bilinear(places[:, 1:] - rows, ink, places[:, :1] - columns)
            result = total.clamp(min=_TINY).log() + highest
            (lost,) = (total < _TINY).nonzero(as_tuple=True)
            if not len(lost):
                return result
            return result.index_put((lost,), self._by_nearest(places[lost]))

        return (in_blocks(block, x.double() / scale) - math.log(2 * math.pi * scale.prod())).to(x)

    @cached_property
    def _tree(self) -> KDTree:
        return KDTree(self._centres / self._scale.numpy())

    def _by_nearest(self, x: Tensor, count: int = 32) -> Tensor:
        """Sum over the nearest pixels, more where those left out might matter: logarithms (n,).

        Arguments:
            x: Places (n, 2) in units of the noise.
            count: How many pixels to begin with.
        """
        count = min(count, len(self._centres))
        near = self._tree.query(x.detach().cpu().numpy(), count)
        distance, index = (each.reshape(len(x), count) for each in near)
        centres = torch.from_numpy(self._tree.data[index]).to(x)
        weights = torch.from_numpy(self._weights[self._inked][index]).to(x)
        logs = weights.log() - (x[:, None] - centres).square().sum(-1) / 2
        found = logs.logsumexp(1)
        # all weights left out are at most 1 together, and no nearer than the last one taken
        rest = torch.from_numpy(-0.5 * distance[:, -1] ** 2).to(x)
        (short,) = (rest > found - _DIGITS).nonzero(as_tuple=True)
        if count == len(self._centres) or not len(short):
            return found
        return found.index_put((short,), self._by_nearest(x[short], 8 * count))

    def entropy(self, points: int = 8) -> float:
        """Differential entropy in nats, by the midpoint rule.

        Arguments:
            points: Points per pixel in each direction.
        """
        ink = np.pad(self._weights, _REACH)
        offsets = (np.arange(points) + 0.5) / points - 0.5
        pitch = [abs(axis[1] - axis[0]) for axis in self._axes]
        total = 0.0
        for a in offsets:
            strip = convolve1d(ink, _bell(a, pitch[0], self._noise[0]), axis=0, mode="constant")
            for b in offsets:
                bell = _bell(b, pitch[1], self._noise[1])
                p = convolve1d(strip, bell, axis=1, mode="constant")
                total -= xlogy(p, p).sum()
        return float(total * pitch[0] * pitch[1] / points**2)


def _bell(offset: float, pitch: float, noise: float) -> np.ndarray:
    """Heights (2 reach + 1,) at a point between pixels of the Gaussians around it."""
    steps = (np.arange(-_REACH, _REACH + 1) + offset) * (pitch / noise)
    return np.exp(-0.5 * steps**2) / (noise * math.sqrt(2 * math.pi))


def _bilinear(vertical: Tensor, ink: Tensor, horizontal: Tensor) -> tuple[Tensor, Tensor]:
    """Return s and m (n,) with e^m s = sum_ij ink_ij e^(-vertical_i^2 / 2 - horizontal_j^2 / 2)."""
    vertical, horizontal = (-0.5 * each.square() for each in (vertical, horizontal))
    top, side = vertical.amax(1, keepdim=True), horizontal.amax(1, keepdim=True)
    total = ((vertical - top).exp() @ ink * (horizontal - side).exp()).sum(1)
    return total, (top + side).squeeze(1)
