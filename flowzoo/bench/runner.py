"""Runs what a matrix asks for and its folder does not have yet."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flowzoo.bench.cells import Cell
from flowzoo.bench.check import check
from flowzoo.bench.claims import BEAT, Claim
from flowzoo.bench.files import DISK_FULL, DiskFull
from flowzoo.bench.grid import Matrix
from flowzoo.bench.launchers import LOG, Ended, Job, Launcher, Local
from flowzoo.bench.observer import Observer
from flowzoo.bench.record import MISSING, STATES, Record, State
from flowzoo.bench.store import Store, now
from flowzoo.errors import UserError
from flowzoo.registry import suggest

RUNS = Path("runs")  # where runs go unless told otherwise
_TAIL = 20  # lines of a log kept as the traceback of a process that died


def run(
    matrix: Matrix,
    out: str | Path | None = None,
    *,
    jobs: int = 1,
    device: str = "auto",
    rerun: Iterable[str] = (),
    observer: Observer | None = None,
    launcher: Launcher | None = None,
) -> list[Record]:
    """Run the cells of a matrix that have no result yet, and return the records of all.

    Run again, it does only what is missing, and an interrupted fit goes on from its checkpoint.
    Several runners may work on one folder at once. On Ctrl-C the cells' processes are ended and
    KeyboardInterrupt goes on.

    Arguments:
        matrix: What to run.
        out: The run's folder; `runs/NAME` by default.
        jobs: Cells at a time.
        device: `cpu`, `cuda` (all of this machine's devices in turn), one such as `cuda:1`, or
            `auto`, which is `cuda` where there is one.
        rerun: States whose cells are run again, or `stale` for results of code or data that have
            changed since.
        observer: Told of what happens.
        launcher: Where cells run; `Local(jobs)` by default.

    Raises:
        Problems: Everything that is wrong with the matrix or its data; nothing has run.
        UserError: An argument is wrong.
        DiskFull: There is no space for results; those that are finished are safe.
    """
    rerun = _checked(jobs, rerun)
    store = Store(out if out is not None else RUNS / matrix.name)
    planned = store.plan(matrix)
    # Before the list is made: what another runner finishes from here on is seen to have changed.
    seen = {cell.folder: store.record(cell).finished for cell in planned}
    todo = store.missing(rerun)
    observer = observer or Observer()
    if todo:
        gpus = check(matrix, {cell.data for cell in todo}).gpus
        devices = usable_devices(device, gpus)
        work = _Run(store, todo, seen, observer)
        observer.begin(planned, todo)
        interrupted = True
        try:
            work.all(launcher or Local(jobs), devices)
            interrupted = False
        finally:
            observer.end(interrupted)
    return store.records()


def _checked(jobs: int, rerun: Iterable[str]) -> tuple[str, ...]:
    if jobs < 1:
        raise UserError(f"jobs is {jobs}; it must be at least 1")
    rerun, known = tuple(rerun), [s for s in STATES if s not in (*MISSING, "running")] + ["stale"]
    for state in rerun:
        if state not in (*known, *MISSING):
            raise UserError(f"cannot rerun '{state}'{suggest(state, known, 'states')}")
    return rerun


def usable_devices(device: str, gpus: int) -> list[str]:
    """Return the devices that cells share, out of the CPU and so many CUDA devices.

    Raises:
        UserError: What is asked for does not exist.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        raise UserError(f"unknown device '{device}'; use auto, cpu, cuda, or one such as cuda:1")
    if kind == "cpu" or (kind == "auto" and not gpus):
        return ["cpu"]
    if not gpus:
        raise UserError(f"device is {device}, but torch finds no CUDA device here; use cpu")
    if index and int(index) >= gpus:
        raise UserError(f"device is {device}, but there are only {gpus} CUDA devices, from cuda:0")
    return [device] if index else [f"cuda:{i}" for i in range(gpus)]


class _Run:
    """One runner's work on a store: claims, processes, records."""

    def __init__(
        self, store: Store, todo: Sequence[Cell], seen: Mapping[str, str], observer: Observer
    ) -> None:
        self.store, self.todo, self.seen, self.observer = store, todo, seen, observer
        self.claims: dict[str, tuple[Cell, Claim]] = {}
        self.beaten = time.monotonic()

    def all(self, launcher: Launcher, devices: Sequence[str]) -> None:
        """Run every cell that nobody else runs or has finished meanwhile."""
        ends = launcher.launch(self.jobs(), devices)
        try:
            for ended in ends:
                if ended is not None:
                    self.finish(ended)
                self.tick()
        finally:
            close = getattr(ends, "close", None)
            if close is not None:
                close()
            for _, claim in self.claims.values():
                claim.release()

    def jobs(self) -> Iterator[Job]:
        """Yield the cells one by one as there is room for them, each claimed first."""
        for cell in self.todo:
            folder = self.store.path(cell)
            claim = Claim.take(folder)
            if claim is None:
                continue
            # Another runner may have finished it since the list was made.
            if self.store.record(cell).finished != self.seen[cell.folder]:
                claim.release()
                continue
            self.claims[cell.folder] = cell, claim
            self.store.reopen(cell)
            self.observer.started(cell)
            yield Job(folder, cell.resources)

    def finish(self, ended: Ended) -> None:
        """See to it that a cell whose process ended has a record."""
        cell, claim = self.claims.pop(ended.job.folder.name)
        try:
            if ended.code == DISK_FULL:
                raise DiskFull(self.store.folder)
            record = self.store.record(cell)
            if not record.finished:
                record = unrecorded(cell, ended)
                self.store.write(cell, record)
                self.tell_listeners(cell, record)
        finally:
            claim.release()
        self.observer.finished(cell, record)

    def tell_listeners(self, cell: Cell, record: Record) -> None:
        """Tell listeners of an end that the cell's own process could not tell."""
        from flowzoo.hooks import plugin_manager

        plugin_manager(cell.registry()).notify("flowzoo_cell_finished", cell=cell, record=record)

    def tick(self) -> None:
        """Keep the claims alive and the observer informed."""
        if time.monotonic() - self.beaten > BEAT:
            self.beaten = time.monotonic()
            for _, claim in self.claims.values():
                claim.beat()
        self.observer.running({cell: self.store.progress(cell) for cell, _ in self.claims.values()})


def unrecorded(cell: Cell, ended: Ended) -> Record:
    """Return the record of a process that ended without writing one."""
    log = ended.job.folder / LOG
    said = log.read_text("utf-8", "replace") if log.exists() else ""
    tail = "\n".join(said.splitlines()[-_TAIL:])
    if ended.how != "exit":
        state, reason = ended.how, ended.reason
    elif ended.code < 0:
        state, reason = _signalled(-ended.code)
    else:
        state = "failed"
        reason = f"its process ended with code {ended.code} and left no record; see {LOG}"
    return replace(Record.of(cell, state, reason), traceback=tail, finished=now())


def _signalled(number: int) -> tuple[State, str]:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"):
        return "failed", f"its process crashed ({name}); see {LOG}"
    more = "; perhaps the machine was out of memory" if name == "SIGKILL" else ""
    return "killed", f"its process was ended by {name}{more}"
