"""What the benchmarks of this folder share: one clock, one yardstick, one way to print.

Times are processor times of a single thread; on CUDA, wall times between synchronisations. The jobs
of a comparison run in turn, so that a busy moment hits all alike, and the median counts. The
yardstick is the best of several products of two square matrices, measured in the same process.
Peak memory is measured in a process of its own that does nothing else.
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import torch
from tabulate import tabulate
from torch import Tensor

from flowzoo.bench.environment import cpu_model, peak_memory

Job: TypeAlias = Callable[[], Any]

M_MMAP_THRESHOLD = -3  # of mallopt
SIDE = {"cpu": 1536, "cuda": 8192}  # of the matrices whose product is the yardstick


@dataclass(frozen=True)
class Timed:
    """What became of a job.

    Arguments:
        ms: Median time in milliseconds.
        runs: How many runs it is the median of.
        first: What the first run returned.
    """

    ms: float
    runs: int
    first: Any


@dataclass(frozen=True)
class Machine:
    """The processor that is measured, and the precision.

    Arguments:
        device: `cpu`, of which one thread is used, or `cuda`.
        double: float64 in place of float32.
    """

    device: str = "cpu"
    double: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The precision as torch names it."""
        return torch.float64 if self.double else torch.float32

    def begin(self) -> None:
        """Set this process up: one thread, the precision, a seed."""
        torch.set_num_threads(1)
        torch.set_default_dtype(self.dtype)
        torch.manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers."""
        return torch.randn(shape, dtype=self.dtype).to(self.device)

    def seconds(self) -> float:
        """Return the clock's time, after all that was begun is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def once(self, job: Job) -> tuple[float, Any]:
        """Return the seconds that one run took, and what it returned."""
        start = self.seconds()
        found = job()
        return self.seconds() - start, found

    def compare(
        self, jobs: Mapping[str, Job], repeat: int, patience: float = 20.0
    ) -> dict[str, Timed]:
        """Time jobs in turn.

        Each runs once to warm up, then `repeat` times, or until its measured runs have taken
        `patience` seconds. A job that needs longer than that for its first run has that one
        counted, and is not run again.
        """
        taken: dict[str, list[float]] = {}
        first: dict[str, Any] = {}
        for name, job in jobs.items():
            seconds, first[name] = self.once(job)
            taken[name] = [seconds] if seconds > patience else []
        for _ in range(repeat):
            for name, job in jobs.items():
                if sum(taken[name]) < patience:
                    taken[name].append(self.once(job)[0])
        return {
            name: Timed(1e3 * statistics.median(runs), len(runs), first[name])
            for name, runs in taken.items()
        }

    def peak(self, repeat: int = 9) -> float:
        """Return the most operations per second that a product of square matrices reached."""
        side = SIDE[self.device]
        a, b = self.normal(side, side), self.normal(side, side)
        return 2 * side**3 / min(self.once(lambda: a @ b)[0] for _ in range(repeat))

    def memory(self, make: Callable[..., Job], *arguments: object) -> int | None:
        """Return the bytes by which memory rises at most while `make(*arguments)()` runs.

        Both calls happen in a new process; what `make` allocates (weights, inputs) is not counted.
        `make` is a function of a module, as it is sent there by name. None: that process was
        ended, as systems do that have no memory left.
        """
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
            try:
                return child.submit(_rise, self, make, arguments).result()
            except BrokenProcessPool:
                return None

    def __str__(self) -> str:
        """Return processor, system, threads, versions and precision, as a line."""
        name = torch.cuda.get_device_name() if self.device == "cuda" else cpu_model()
        return (
            f"{name}, {platform.system()}, threads: {torch.get_num_threads()}, "
            f"Python {platform.python_version()}, torch {torch.__version__}, {self.dtype}"
        )


def _rise(machine: Machine, make: Callable[..., Job], arguments: Sequence[object]) -> int:
    machine.begin()
    with suppress(OSError, AttributeError):
        # With glibc every tensor of 64 kB or more has pages of its own, which it gives back.
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    job = make(*arguments)
    # The libraries' own buffers are not the job's.
    small = machine.normal(64, 64).requires_grad_()
    (small @ small).sum().backward()
    if machine.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        return torch.cuda.max_memory_allocated() - before
    with suppress(OSError, AttributeError):
        # On Linux free memory goes back, and the peak so far is forgotten.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    job()
    return peak_memory() - before


def options(text: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark; `text` says what is compared."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=list(SIDE), default="cpu")
    parser.add_argument("--double", action="store_true", help="float64 in place of float32")
    parser.add_argument("--repeat", type=int, default=3, help="runs whose median counts")
    parser.add_argument(
        "--patience", type=float, default=20.0, help="seconds of runs after which a job rests"
    )
    return parser


def started(args: argparse.Namespace) -> Machine:
    """Return the machine that the options ask for, set up, and print what it is."""
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here: leave out --device cuda")
    machine = Machine(args.device, args.double)
    machine.begin()
    print(machine)
    return machine


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table at once, for those who wait."""
    table = tabulate(rows, head, tablefmt="github", disable_numparse=True)
    print(f"\n{title}\n\n{table}", flush=True)


def megabytes(amount: int | None) -> str:
    """Return an amount of memory in megabytes (10^6 bytes)."""
    return "more than there is" if amount is None else f"{amount / 1e6:.1f} MB"


def agree(found: Sequence[Tensor], expected: Sequence[Tensor], what: str) -> None:
    """Stop where two sides do not compute the same, up to rounding.

    Each tensor is compared relative to its largest entry.
    """
    for ours, theirs in zip(found, expected, strict=True):
        gap = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        if not gap < (1e-9 if theirs.dtype == torch.float64 else 1e-3):
            sys.exit(f"{what}: the two sides differ by {gap:.1e} relative; nothing to compare")
