"""Who works on a cell: a file that only one process can create, and a heartbeat.

Nothing here relies on locks, which network file systems keep unevenly, nor on two machines' clocks
agreeing: a heartbeat's age is measured against a file written to the same folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

NAME = "claim.json"
BEAT = 5.0  # seconds between two heartbeats
STALE = 60.0  # seconds without one after which a claim of another machine counts for nothing


@dataclass
class Claim:
    """The right to work on a cell, held by this process.

    Arguments:
        path: The claim's file.
        content: What this process wrote into it.
    """

    path: Path
    content: str

    @classmethod
    def take(cls, folder: Path) -> Claim | None:
        """Claim a cell's folder; None where a living process already has it."""
        path = folder / NAME
        content = json.dumps(
            {"host": socket.gethostname(), "pid": os.getpid(), "start": _start(os.getpid()),
             "token": uuid.uuid4().hex}
        )  # fmt: skip
        for _ in range(3):
            try:
                with path.open("x", encoding="utf-8") as stream:
                    stream.write(content)
                return cls(path, content)
            except FileExistsError:
                if not _set_aside(path):
                    return None
        return None

    def beat(self) -> None:
        """Say that the holder lives."""
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def release(self) -> None:
        """Give the claim back, if it is still this process's."""
        with contextlib.suppress(OSError):
            if self.path.read_text(encoding="utf-8") == self.content:
                self.path.unlink()


def held(folder: Path) -> bool:
    """Return whether a living process works on a cell."""
    try:
        content = (folder / NAME).read_text(encoding="utf-8")
    except OSError:
        return False
    return _alive(folder / NAME, content)


def _set_aside(path: Path) -> bool:
    """Remove a claim whose holder is gone; return whether the cell is now free."""
    try:
        content = path.read_text(encoding="utf-8")
        if _alive(path, content):
            return False
        aside = path.with_name(f".{NAME}.{uuid.uuid4().hex[:8]}")
        os.rename(path, aside)
    except FileNotFoundError:
        return True
    try:
        if aside.read_text(encoding="utf-8") == content:
            return True
        # Another process was quicker, and this is its new claim: put it back.
        with contextlib.suppress(OSError):
            os.link(aside, path)
        return False
    finally:
        aside.unlink(missing_ok=True)


def _alive(path: Path, content: str) -> bool:
    try:
        holder = json.loads(content)
        host, pid, start = holder["host"], int(holder["pid"]), holder["start"]
    except (ValueError, KeyError, TypeError):
        return _age(path) < STALE  # half written: its holder is writing it, or died while doing so
    if host != socket.gethostname():
        return _age(path) < STALE
    return _exists(pid) and (start is None or start == _start(pid))


def _age(path: Path) -> float:
    """Return the seconds since the last heartbeat, by the clock of the file system."""
    probe = path.with_name(f".now.{uuid.uuid4().hex[:8]}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except OSError:
        return 0.0
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _zombie(pid)


def _fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the command's name; empty where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _zombie(pid: int) -> bool:
    fields = _fields(pid)
    return bool(fields) and fields[0] == "Z"


def _start(pid: int) -> str | None:
    """Return when a process began, in ticks since boot: it tells two processes of one id apart."""
    fields = _fields(pid)
    return fields[19] if len(fields) > 19 else None
