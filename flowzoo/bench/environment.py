"""Where a result was made: versions, machine, device, threads, revision."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("flowzoo", "torch", "numpy", "scipy", "torchdiffeq")


def environment(device: str) -> dict[str, Any]:
    """Return what a result may depend on beyond its recipe; imports torch.

    Arguments:
        device: Where the cell runs, as torch names it.
    """
    import torch

    found: dict[str, Any] = {
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "device": device,
        "device_name": cpu_model(),
        "threads": torch.get_num_threads(),
        "revision": revision(Path(__file__).parent),
    }
    if torch.device(device).type == "cuda":
        found["device_name"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda
    return found


def peak_memory() -> int:
    """Return the largest resident memory that this process had, in bytes."""
    try:
        # ru_maxrss of a process started by another also counts what that one had.
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cpu_model() -> str:
    """Return the processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def revision(folder: Path) -> str | None:
    """Return a checkout's git revision, with `+` where files differ from it; None elsewhere."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
