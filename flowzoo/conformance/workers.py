"""Checks in processes of their own: several at a time, and one that crashes ends itself alone.

This module does not import torch; its processes do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from threading import Thread, Timer
from typing import NamedTuple

from flowzoo.conformance.report import Result
from flowzoo.errors import UserError

MOST = 8  # processes, where nobody says how many; each imports torch
LONGEST = 600.0  # seconds that a check may take; the slowest of ours takes a few
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Request:
    """What is to be checked.

    Arguments:
        names: As for `finding.specimens`.
        kind: One kind only.
        only: Names of checks, where not all are wanted.
        plugins: Local plugin files.
    """

    names: tuple[str, ...] = ()
    kind: str | None = None
    only: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()


class Heading(NamedTuple):
    """A case, without its result: a component, a check, and for which kind the check is."""

    kind: str
    name: str
    check: str
    about: str
    scope: str


class Session:
    """Cases, and the processes that run them.

    Arguments:
        request: What is to be checked.

    Raises:
        UserError: A name, a kind, a check or a plugin file is wrong.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.todo: deque[int] = deque()
        self.closed = False
        self.threads: list[Thread] = []
        self.workers = [_Worker(request)]
        try:
            self.headings = self.workers[0].headings()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        self.closed = True
        self.todo.clear()
        for worker in self.workers:
            worker.kill()
        for thread in self.threads:
            thread.join()
        for worker in self.workers:
            worker.close()

    def results(self, jobs: int | None = None) -> Iterator[tuple[int, Result]]:
        """Run all cases and yield the number and the result of each as it ends.

        Arguments:
            jobs: Processes at a time; when left out one for each component, at most as many as
                there are cores.
        """
        self.todo.extend(range(len(self.headings)))
        done: SimpleQueue[tuple[int, Result] | BaseException] = SimpleQueue()
        components = len({heading.name for heading in self.headings})
        count = min(jobs or min(components, _cores(), MOST), len(self.headings))
        for number in range(count):
            worker = self.workers[0] if number == 0 else None
            self.threads.append(Thread(target=self._serve, args=(done, worker), daemon=True))
            self.threads[-1].start()
        for _ in self.headings:
            ended = done.get()
            if isinstance(ended, BaseException):
                raise ended
            yield ended

    def _serve(self, done: SimpleQueue, worker: _Worker | None) -> None:
        """Run cases in one process after another, until there are none left."""
        try:
            while True:
                try:
                    number = self.todo.popleft()
                except IndexError:
                    return
                if worker is None:
                    worker = self._started()
                result = worker.run(number)
                if result is None:
                    result = self._crashed(number, worker)
                    worker = None
                done.put((number, result))
        except BaseException as error:
            done.put(error)

    def _started(self) -> _Worker:
        """Return another process that has the same cases."""
        worker = _Worker(self.request)
        self.workers.append(worker)
        if self.closed:
            worker.kill()
        if worker.headings() != self.headings:
            raise UserError("the components that are installed have changed; check again")
        return worker

    def _crashed(self, number: int, worker: _Worker) -> Result:
        kind, name, check, about, _ = self.headings[number]
        said = worker.ended()
        return Result(kind, name, check, about, "fail", said, traceback=worker.last_words())


class _Worker:
    """One process of `flowzoo.conformance.worker`."""

    def __init__(self, request: Request) -> None:
        self.late = False
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (`close` does)
        command = [sys.executable, "-X", "faulthandler", "-m", "flowzoo.conformance.worker"]
        self.popen = subprocess.Popen(
            [*command, json.dumps(asdict(request))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, **_ONE_THREAD},
        )

    def headings(self) -> list[Heading]:
        """Return its cases.

        Raises:
            UserError: What was asked for is wrong, or the process ended.
        """
        said = self._answer()
        if said is None:
            raise UserError(f"{self.ended()} while it looked for components: {self._culprit()}")
        if "error" in said:
            raise UserError(said["error"])
        return [Heading(*heading) for heading in said["cases"]]

    def run(self, number: int) -> Result | None:
        """Return the result of a case; None where the process ended, or was ended, instead."""
        assert self.popen.stdin
        timer = Timer(LONGEST, self._abort)
        timer.start()
        try:
            self.popen.stdin.write(f"{number}\n")
            self.popen.stdin.flush()
            said = self._answer()
        except BrokenPipeError:
            return None
        finally:
            timer.cancel()
        return None if said is None else Result(**said)

    def ended(self) -> str:
        """Return how it ended, in words."""
        code = self.popen.wait()
        if self.late:
            return f"it takes longer than {LONGEST:g} s"
        if code >= 0:
            return f"its process ended with exit code {code}"
        return f"its process was ended by {signal.Signals(-code).name}"

    def last_words(self) -> str:
        """Return the end of what it wrote to stderr."""
        self.errors.seek(0)
        return "".join(self.errors.readlines()[-60:])

    def kill(self) -> None:
        """End it, whatever it does; nothing that waits for it waits on."""
        self.popen.kill()

    def close(self) -> None:
        """Put away what is left of it, once it was ended."""
        self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout, self.errors):
            assert stream
            try:
                stream.close()
            except BrokenPipeError:
                continue  # what it did not read is of no interest

    def _abort(self) -> None:
        """End it such that it says on stderr where it was."""
        self.late = True
        self.popen.send_signal(signal.SIGABRT)

    def _culprit(self) -> str:
        """Return the line of its last words that says where it ended."""
        words = [line.strip() for line in self.last_words().splitlines() if line.strip()]
        frames = [line for line in words if line.startswith("File ")]
        fatal = any(line.startswith("Fatal Python error") for line in words)
        return frames[0] if fatal and frames else (words or ["it said nothing"])[-1]

    def _answer(self) -> dict | None:
        assert self.popen.stdout
        line = self.popen.stdout.readline()
        return json.loads(line) if line.endswith("\n") else None


def _cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
