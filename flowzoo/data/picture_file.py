"""Reading an image as ink: .png through matplotlib, .npy as an array of grey or colour."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from flowzoo.data.folder import existing_file
from flowzoo.data.validation import Origin, check_table
from flowzoo.errors import BadData

_GREY = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601


def read_ink(path: Path) -> np.ndarray:
    """Read an image as ink (h, w): how much darker than its lightest pixel each one is.

    Arguments:
        path: A .png of any kind, or a .npy (h, w) or (h, w, 3).

    Raises:
        BadData: The file is missing, of another kind, damaged, of another shape, not finite, or all
            of one brightness.
    """
    readers = {".png": _read_png, ".npy": _read_npy}
    if path.suffix.lower() not in readers:
        raise BadData(
            f"{path} has the unknown extension '{path.suffix}'; a picture is a .png or a .npy."
        )
    grey = check_table(
        _grey(readers[path.suffix.lower()](existing_file(path)), path), Origin(str(path))
    )
    if min(grey.shape) < 2:
        raise BadData(f"{path} has {' x '.join(map(str, grey.shape))} pixels; it needs 2 x 2.")
    if grey.min() == grey.max():
        raise BadData(
            f"{path} is blank: all its pixels are equally bright; draw something dark on it."
        )
    return grey.max() - grey


def _grey(pixels: np.ndarray, path: Path) -> np.ndarray:
    """Grey values (h, w); light shining through an image falls on white."""
    if pixels.ndim == 2:
        return pixels
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or pixels.dtype.kind not in "biuf":
        raise BadData(
            f"{path} has the shape {pixels.shape} of {pixels.dtype}; a picture is grey numbers"
            " (h, w) or red, green and blue (h, w, 3)."
        )
    grey = pixels[:, :, :3].astype(np.float64) @ np.array(_GREY)
    return grey if pixels.shape[2] == 3 else 1 + pixels[:, :, 3] * (grey - 1)


def _read_png(path: Path) -> np.ndarray:
    # matplotlib takes close to half a second to import
    from matplotlib.image import imread

    try:
        return imread(path, format="png")
    except (SyntaxError, OSError, ValueError, zlib.error):
        raise BadData(f"{path} is no readable .png image; it may be truncated.") from None


def _read_npy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as stream:
            pixels = np.lib.format.read_array(stream, allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise BadData(f"{path} is no readable .npy array of numbers.") from None
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        raise BadData(f"{path} has four channels; leave the fourth out, or save a .png.")
    return pixels
