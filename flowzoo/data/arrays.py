"""Reading .npy and .npz files without ever unpickling."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from flowzoo.data.folder import existing_file
from flowzoo.data.validation import Origin, check_table
from flowzoo.errors import BadData


def read_npy(path: Path) -> np.ndarray:
    """Read a table (n, d) of finite numbers as float64.

    Raises:
        BadData: The file is missing, no .npy, truncated, pickled, or no such table.
    """
    with existing_file(path).open("rb") as stream:
        return check_table(_read_array(stream, str(path)), Origin(str(path)))


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an archive, as they are.

    Raises:
        BadData: The file is missing, no .npz, truncated, or holds pickled objects.
    """
    existing_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {}
            for member in archive.namelist():
                with archive.open(member) as stream:
                    name = member.removesuffix(".npy")
                    arrays[name] = _read_array(stream, f"{path}, array '{name}'")
            return arrays
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError):
        raise BadData(f"{path} is no readable .npz archive; it may be truncated.") from None


def _read_array(stream: IO[bytes], source: str) -> np.ndarray:
    try:
        return np.lib.format.read_array(stream, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        text = str(error)
        if "Object arrays" in text:
            reason = "holds pickled objects, which may run code and are never loaded; save numbers"
        elif "magic" in text:
            reason = "is not in numpy's .npy format"
        else:
            reason = "is truncated or damaged"
        raise BadData(f"{source} {reason}.") from None
