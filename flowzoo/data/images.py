"""Image sets read from a data folder: BSDS300 patches and MNIST digits, finished as published."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowzoo.data.arrays import read_npz
from flowzoo.data.folder import MAF_BUNDLE
from flowzoo.data.maf import MAFSet
from flowzoo.data.real import Splits
from flowzoo.errors import BadData

MNIST_ALPHA = 1e-6

_BSDS_CONVERSION = (
    'convert BSDS300/BSDS300.hdf5 once: python -c "import h5py, numpy as np; f ='
    " h5py.File('BSDS300.hdf5'); np.savez('BSDS300.npz', train=f['train'][:],"
    " val=f['validation'][:], test=f['test'][:])\""
)


class BSDS300(MAFSet):
    """BSDS300: 8x8 patches of grey natural images, patch mean removed, 63 columns."""

    name = "bsds300"
    title = "BSDS300"
    notes = "8x8 grey patches, dequantised, / 256, patch mean removed, last pixel dropped."
    wanted = (("BSDS300/BSDS300.npz", "BSDS300/bsds300_patches_uint8.npz", "bsds300_patches_uint8.npz"),)  # fmt: skip  # noqa: E501
    origin = f"{MAF_BUNDLE}; {_BSDS_CONVERSION}"

    def splits(self) -> Splits:
        """Read finished patches (n, 63), or grey values (n, 64) uint8 and finish them."""
        (file,) = self.files()
        train, val, test = _arrays(file, ("train", "val", "test"))
        widths = {part.shape[1:] for part in (train, val, test)}
        if widths == {(63,)}:
            return train, val, test
        if widths != {(64,)} or any(part.dtype != np.uint8 for part in (train, val, test)):
            raise BadData(
                f"{file} must hold train, val and test as finished patches (n, 63) or as uint8"
                " grey values (n, 64)."
            )
        return bsds_patches(train, 10), bsds_patches(val, 11), bsds_patches(test, 12)


class MNIST(MAFSet):
    """MNIST: handwritten digits, dequantised, in logit space, 784 columns."""

    name = "mnist"
    title = "MNIST"
    notes = "Pixels (k + U) / 256 in logit space, alpha 1e-6; first 50,000 / last 10,000 / test."
    wanted = (("mnist/mnist_uint8.npz", "mnist_uint8.npz"),)
    origin = (
        "an .npz with the uint8 arrays train_x (50,000, 28, 28), val_x and test_x (10,000, 28, 28)"
        " of the MNIST database (LeCun, Cortes & Burges)"
    )

    def splits(self) -> Splits:
        """Read grey values and bring them to logit space with one generator, train first."""
        (file,) = self.files()
        parts = _arrays(file, ("train_x", "val_x", "test_x"))
        if any(part.dtype != np.uint8 or part.shape[1:] != (28, 28) for part in parts):
            raise BadData(f"{file} must hold uint8 grey values (n, 28, 28).")
        rng = np.random.RandomState(42)
        train, val, test = (logit_pixels(part.reshape(-1, 784), rng) for part in parts)
        return train, val, test

    @property
    def bits_per_dim(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Bits per dimension of the grey values."""
        return bits_per_dim


def bsds_patches(grey: np.ndarray, seed: int) -> np.ndarray:
    """Finish grey patches: add U(0, 1), divide by 256, remove the patch mean, drop the last pixel.

    Arguments:
        grey: Grey values 0..255, (n, 64).
        seed: Seed of the uniform noise.

    Returns:
        Patches (n, 63); the lost pixel is minus their sum.

    References:
        Uria, Murray & Larochelle, RNADE, 2013, arXiv 1306.0186.
    """
    patches = (grey + np.random.RandomState(seed).rand(*grey.shape)) / 256
    patches -= patches.mean(1, keepdims=True)
    return patches[:, :-1]


def logit_pixels(
    grey: np.ndarray, rng: np.random.RandomState, alpha: float = MNIST_ALPHA
) -> np.ndarray:
    """Dequantise grey values 0..255 (n, d) and map them to logit(alpha + (1 - 2 alpha) x)."""
    pixels = alpha + (1 - 2 * alpha) * (grey / 256 + rng.rand(*grey.shape) / 256)
    return np.log(pixels) - np.log1p(-pixels)


def bits_per_dim(nll: Tensor, x: Tensor, alpha: float = MNIST_ALPHA) -> Tensor:
    r"""Convert the NLL of images in logit space to bits per dimension of the grey values.

    NLL / (d ln 2) - log2(1 - 2 alpha) + 8 + mean_i [log2 s(x_i) + log2(1 - s(x_i))], s the sigmoid.

    Arguments:
        nll: Negative log-density in nats (n,).
        x: The images in logit space (n, d).
        alpha: The constant of the logit map.

    Returns:
        Bits per dimension (n,).

    References:
        Papamakarios, Pavlakou & Murray, 2017, arXiv 1705.07057, appendix E.2.
    """
    bend = torch.nn.functional.logsigmoid(x) + torch.nn.functional.logsigmoid(-x)
    return (nll / x.shape[1] + bend.mean(-1)) / math.log(2) - math.log2(1 - 2 * alpha) + 8


def _arrays(file: Path, names: tuple[str, ...]) -> list[np.ndarray]:
    arrays = read_npz(file)
    missing = [name for name in names if name not in arrays]
    if missing:
        raise BadData(f"{file} has no array {missing[0]}; it needs {', '.join(names)}.")
    return [arrays[name] for name in names]
