"""Finding files that a user names or that a data folder should hold, or saying what is missing."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from flowzoo.errors import BadData, UserError

MAF_BUNDLE = (
    "data.tar.gz of doi:10.5281/zenodo.1161203 (https://zenodo.org/record/1161203) unpacks to it"
)


def existing_file(path: Path) -> Path:
    """Return the path of a file that is there and not empty.

    Raises:
        BadData: There is no such file (with similar names from its folder), it is a folder, or it
            is empty.
    """
    if path.is_dir():
        raise BadData(f"{path} is a folder; name a file in it.")
    if not path.exists():
        raise BadData(f"There is no file {path}{_similar(path)}; check the path.")
    if path.stat().st_size == 0:
        raise BadData(f"{path} is empty.")
    return path


def _similar(path: Path) -> str:
    if not path.parent.is_dir():
        return f": the folder {path.parent} does not exist"
    names = [file.name for file in path.parent.iterdir() if file.is_file()]
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}" if close else ""


def find_in_root(name: str, root: str | None, candidates: tuple[str, ...], origin: str) -> Path:
    """Find the first of some files in the data folder, or in the `data` folder inside it.

    Arguments:
        name: Name of the set, for the message.
        root: The data folder; None takes the environment variable FLOWZOO_DATA.
        candidates: Paths relative to the folder, the preferred one first.
        origin: Where the file can be had, as the end of the message.

    Raises:
        UserError: No folder is given.
        BadData: None of the files is in it.
    """
    folder = root if root is not None else os.environ.get("FLOWZOO_DATA", "")
    wanted = " or ".join(candidates)
    if not folder:
        raise UserError(
            f"{name} needs a data folder: set its option root, or FLOWZOO_DATA, to the folder that"
            f" holds {wanted}; {origin}."
        )
    base = Path(folder).expanduser()
    for candidate in candidates:
        for file in (base / candidate, base / "data" / candidate):
            if file.is_file():
                return existing_file(file)
    raise BadData(f"{name} expects {wanted} in {base}, which has no such file; {origin}.")
