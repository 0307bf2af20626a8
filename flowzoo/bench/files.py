"""A run's files: JSON and text that are there whole or not at all, and a full disk by its name."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flowzoo import files
from flowzoo.errors import FlowzooError

DISK_FULL = 74  # the exit code of a process that could not store its result (EX_IOERR)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(FlowzooError):
    """Nothing more can be stored; what is finished is safe."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"the disk that holds {folder} is full; finished records are safe: free some space and "
            "run the same command again"
        )


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an exception, or one that it came from, says that the disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn the system's error for a full disk into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(folder) from error
        raise


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all.

    Raises:
        DiskFull: There is no space; the old file, if any, is untouched.
    """
    with full_disk_named(path.parent):
        files.replace_file(path, write)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    replace_file(path, lambda file: file.write_bytes(text.encode()))


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step; NaN and infinities become null, as JSON has none."""
    write_text(path, json.dumps(finite(content), indent=1, ensure_ascii=False) + "\n")


def write_brief(path: Path, content: Any) -> None:
    """Replace a small JSON file whose loss does no harm: renamed, but not flushed to the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(finite(content)), encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None where there is none or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def finite(value: Any) -> Any:
    """Return plain data with numbers that JSON cannot hold replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))):
        return None
    return value
