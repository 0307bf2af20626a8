"""Checks of launchers: how cells end is told rightly, and nothing of them stays behind.

The cells do no work: their process reads its folder, imports a plugin file that does what the check
is about, and ends. Nothing but the standard library is imported in it.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flowzoo.conformance.check import Failed, Skipped, check, require
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import UserError

if TYPE_CHECKING:
    from flowzoo.bench.launchers import Ended, Job, Launcher

_SLEEP = 4.0  # seconds that a cell sleeps which is to be ended before
_SILENCE = 3.0  # seconds between two signs of life of a launcher
_GONE = 2.0  # seconds in which a process that was ended must be gone
_LIMIT = 0.2  # a cell's timeout, in seconds
_THREADS = 3
_SIGNAL = 9

_NOTHING = "def flowzoo_components(): return {}\n"
_NOTE_THREADS = "import os; open('threads', 'w').write(os.environ.get('OMP_NUM_THREADS', ''))\n"
_EXIT = "import os; os._exit(3)\n"
_CRASH = f"import os; os.kill(os.getpid(), {_SIGNAL})\n"
_CHILD = (
    "import os, subprocess, sys\n"
    f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep({_SLEEP})'])\n"
    "open('child', 'w').write(str(child.pid))\n"
    "os._exit(0)\n"
)
_SLEEPER = (
    "import os, time\n"
    "open('pid.part', 'w').write(str(os.getpid())); os.replace('pid.part', 'pid')\n"
    f"time.sleep({_SLEEP})\n"
    "open('slept', 'w').close()\n"
)


@check("launcher")
def ends(specimen: Specimen) -> str:
    """Every cell is run once and its end told once: exit codes, also of one that is killed."""
    said = {"ok": _NOTE_THREADS + _NOTHING, "exit": _EXIT, "crash": _CRASH}
    with _cells(said, threads=_THREADS) as jobs:
        launcher: Launcher = specimen.make()
        room = getattr(launcher, "jobs", None)
        taken: list[Job] = []
        ended: list[Ended] = []
        for end in _launched(launcher, _noting(jobs, taken)):
            ended += [end] if end else []
            crowd = len(taken) - len(ended)
            require(
                not isinstance(room, int) or crowd <= room,
                f"{crowd} jobs are taken at a time where there is room for {room}",
            )
        found = {end.job.folder.name: end for end in ended}
        require(
            sorted(end.job.folder.name for end in ended) == sorted(said),
            f"the cells {', '.join(said)} end as {', '.join(end.job.folder.name for end in ended)}",
        )
        for name, codes in (("ok", [0]), ("exit", [3]), ("crash", [-_SIGNAL, 128 + _SIGNAL])):
            end = found[name]
            require(
                end.how == "exit" and end.code in codes,
                f"cell {name} is told to end by {end.how} with code {end.code}, "
                f"expected exit with code {codes[0]}",
            )
        threads = (found["ok"].job.folder / "threads").read_text()
        require(threads == str(_THREADS), f"a cell with threads {_THREADS} has '{threads}'")
    return "codes 0, 3 and that of a killed one"


@check("launcher")
def timeout(specimen: Specimen) -> str:
    """A cell that runs beyond its timeout is ended, and the limit is named as the reason."""
    with _cells({"sleeper": _SLEEPER}, timeout=_LIMIT) as jobs:
        (end,) = [end for end in _launched(specimen.make(), iter(jobs)) if end]
        require(
            end.how == "timeout" and end.code != 0,
            f"a cell with a timeout of {_LIMIT:g} s ends by {end.how} with code {end.code}",
        )
        slept = (jobs[0].folder / "slept").exists()
        require(not slept, "a cell goes on beyond its timeout")
        require(bool(end.reason), "the timeout is told without a reason")
    return end.reason


@check("launcher")
def leftovers(specimen: Specimen) -> str:
    """What a cell's process started is gone when the cell has ended."""
    with _cells({"parent": _CHILD}) as jobs:
        for _ in _launched(specimen.make(), iter(jobs)):
            pass
        child = int((jobs[0].folder / "child").read_text())
        require(_gone(child), "a process that a cell started goes on after the cell")
    return "a cell's own processes are gone"


@check("launcher")
def closes(specimen: Specimen) -> str:
    """Closing the iterator ends what runs; until then it gives a sign of life every few seconds."""
    with _cells({"sleeper": _SLEEPER}) as jobs:
        running, note = _launched(specimen.make(), iter(jobs)), jobs[0].folder / "pid"
        start = time.monotonic()
        for end in running:
            require(end is None, "a cell that should sleep has ended")
            if note.exists():
                break
            require(time.monotonic() - start < 60, "a cell's process does not start within 60 s")
        running.close()
        require(_gone(int(note.read_text())), "a cell's process goes on after closing")
    return "a running cell was ended"


@check("launcher")
def nothing(specimen: Specimen) -> str:
    """Without jobs it ends at once, and without results."""
    found = [end for end in _launched(specimen.make(), iter([])) if end]
    require(not found, f"{len(found)} results without a job")
    return "no result"


@contextmanager
def _cells(plugins: dict[str, str], **resources: float) -> Iterator[list[Job]]:
    """Yield jobs whose processes import these plugin files; their folders go when it is left."""
    from flowzoo.bench.cells import Cell
    from flowzoo.bench.launchers import Job
    from flowzoo.bench.resources import Resources

    with tempfile.TemporaryDirectory() as place:
        jobs = []
        for name, text in plugins.items():
            folder = Path(place).resolve() / name
            folder.mkdir()
            plugin = folder / "act.py"
            plugin.write_text(text, encoding="utf-8")
            cell = Cell(
                name,
                "nothing",
                0,
                "nothing",
                "nothing",
                "nothing",
                "nothing",
                base=str(folder),
                plugins=(str(plugin),),
                skip="it is there to check a launcher",
            )
            content = json.dumps(cell.to_mapping())
            (folder / "cell.yaml").write_text(content, encoding="utf-8")
            jobs.append(Job(folder, Resources(**resources)))  # pyright: ignore[reportArgumentType]
        yield jobs


def _launched(launcher: Launcher, jobs: Iterator[Job]) -> Generator[Ended | None, None, None]:
    """Yield what a launcher yields, as long as it does so often enough.

    Raises:
        Skipped: It cannot run here, with its sentence.
        Failed: It is silent for too long.
    """
    found = launcher.launch(jobs, ["cpu"])
    try:
        while True:
            start = time.monotonic()
            try:
                end = next(found)
            except StopIteration:
                return
            except UserError as error:
                raise Skipped(str(error)) from error
            silent = time.monotonic() - start
            if silent > _SILENCE:
                raise Failed(f"it gives no sign of life for {silent:.1f} s while a cell runs")
            yield end
    finally:
        close = getattr(found, "close", None)
        if close is not None:
            close()


def _noting(jobs: list[Job], taken: list[Job]) -> Iterator[Job]:
    for job in jobs:
        taken.append(job)
        yield job


def _gone(pid: int) -> bool:
    """Return whether a process ends within a few seconds; one that is dead but unburied is gone."""
    deadline = time.monotonic() + _GONE
    while _alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    if not Path("/proc/self/stat").exists():
        return True  # no such file system: the signal's word counts
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")
