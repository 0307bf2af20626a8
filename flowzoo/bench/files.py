"""Files that are either there whole or not at all, on local and on network file systems."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
    """Write a file under a temporary name beside its own, flush it to the disk, rename it.

    Raises:
        DiskFull: There is no space; the old file, if any, is untouched.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with full_disk_named(path.parent):
            write(temporary)
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
            _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


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


def _flush_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some network file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
