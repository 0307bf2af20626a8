"""Where cells run. A launcher starts one process for each and says how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from flowzoo.bench.resources import Resources, duration_text, memory_text

LOG = "log.txt"
PARENT = "FLOWZOO_PARENT"  # tells a cell's process which one it must not outlive
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """A cell to run.

    Arguments:
        folder: The cell's folder, which holds `cell.yaml`.
        resources: Limits of its process.
    """

    folder: Path
    resources: Resources


@dataclass(frozen=True)
class Ended:
    """How a cell's process ended.

    Arguments:
        job: The cell.
        how: By itself, or because of a limit.
        code: Its exit code; negative for the signal that ended it, as `subprocess` has it.
        reason: The limit in words.
    """

    job: Job
    how: Literal["exit", "timeout", "out-of-memory"]
    code: int
    reason: str = ""


class Launcher(ABC):
    """Runs cells, each in a process of its own."""

    kind: ClassVar[str] = "launcher"

    @abstractmethod
    def launch(self, jobs: Iterator[Job], devices: Sequence[str]) -> Iterator[Ended | None]:
        """Run all jobs and yield each as it ends.

        A job is taken from the iterator only when there is room for it. None is yielded whenever a
        moment has passed, at least every few seconds, so that the caller can look after its own.
        When the iterator is closed, whatever still runs is ended.

        Arguments:
            jobs: The jobs.
            devices: Where they may compute, as torch names devices.
        """


class Local(Launcher):
    """Processes on this machine.

    Arguments:
        jobs: How many at a time; devices are shared out among them in turn.
        grace: Seconds between asking a process to end and ending it.
    """

    def __init__(self, jobs: int = 1, grace: float = 5.0) -> None:
        self.jobs, self.grace = jobs, grace

    def launch(self, jobs: Iterator[Job], devices: Sequence[str]) -> Iterator[Ended | None]:
        """Run all jobs, so many at a time."""
        running: dict[int, _Process] = {}
        more = True
        try:
            while more or running:
                while more and len(running) < self.jobs:
                    job = next(jobs, None)
                    more = job is not None
                    if job is not None:
                        slot = min(set(range(self.jobs)) - set(running))
                        running[slot] = _Process(job, devices[slot % len(devices)], self.grace)
                ended = {slot: e for slot, p in running.items() if (e := p.poll()) is not None}
                for slot, end in ended.items():
                    del running[slot]
                    yield end
                if running and not ended:
                    time.sleep(0.05)
                    yield None
        finally:
            self._end(list(running.values()))

    def _end(self, processes: list[_Process]) -> None:
        """End processes at once, without a result."""
        for process in processes:
            process.signal(signal.SIGTERM)
        deadline = time.monotonic() + self.grace
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
        for process in processes:
            process.signal(signal.SIGKILL)
            process.wait(self.grace)


class _Process:
    """A cell's process, watched."""

    def __init__(self, job: Job, device: str, grace: float) -> None:
        self.job, self.grace = job, grace
        self.started = time.monotonic()
        self.stopping: float | None = None
        self.how: Literal["exit", "timeout", "out-of-memory"] = "exit"
        self.reason = ""
        with (job.folder / LOG).open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "flowzoo.bench.cell", str(job.folder), "--device", device],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(job.resources),
                start_new_session=True,  # Ctrl-C reaches the runner alone, which ends its cells
            )

    def poll(self) -> Ended | None:
        """Return how it ended, or None while it runs; a process over a limit is ended."""
        code = self.popen.poll()
        if code is not None:
            self.signal(signal.SIGKILL)  # what it started itself
            return Ended(self.job, self.how, code, self.reason)
        now = time.monotonic()
        if self.stopping is not None:
            if now - self.stopping > self.grace:
                self.signal(signal.SIGKILL)
            return None
        limit, memory = self.job.resources.seconds, self.job.resources.bytes
        if limit is not None and now - self.started > limit:
            self._stop("timeout", f"it ran longer than its timeout of {duration_text(limit)}")
        elif memory is not None and (used := resident(self.popen.pid)) > memory:
            held = f"it held {memory_text(used)} of memory"
            self._stop("out-of-memory", f"{held}, above its limit of {memory_text(memory)}")
        return None

    def _stop(self, how: Literal["timeout", "out-of-memory"], reason: str) -> None:
        self.how, self.reason, self.stopping = how, reason, time.monotonic()
        self.signal(signal.SIGKILL if how == "out-of-memory" else signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Send a signal to the process and to those that it started."""
        try:
            os.killpg(self.popen.pid, number)
        except (ProcessLookupError, PermissionError):
            return

    def wait(self, seconds: float) -> None:
        """Wait for the end, so long at most."""
        try:
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return


def environment(resources: Resources) -> dict[str, str]:
    """Return the environment of a cell's process: this one's, with threads and parent set."""
    found = os.environ | {name: str(resources.threads) for name in _THREADS}
    found[PARENT] = str(os.getpid())
    found["PYTHONUNBUFFERED"] = "1"
    if "FLOWZOO_DATA" in found:  # the cell's process works in the matrix's folder
        found["FLOWZOO_DATA"] = str(Path(found["FLOWZOO_DATA"]).expanduser().resolve())
    return found


def resident(pid: int) -> int:
    """Return a process's resident memory in bytes, shared pages included; 0 once it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        if Path("/proc/self/statm").exists():
            return 0
    said = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return int(said) * 1024 if said.isdigit() else 0
