"""Checks a matrix with its classes and data at hand, in a process of its own.

It reads a request from its input and prints what is wrong and which devices there are, so that the
process that runs a matrix need not import torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from flowzoo.bench.grid import Matrix
from flowzoo.errors import FlowzooError, UserError
from flowzoo.registry.reader import Problem, Problems


@dataclass(frozen=True)
class Checked:
    """What a check found out: the CUDA devices of this machine."""

    gpus: int


def check(matrix: Matrix, datasets: set[str]) -> Checked:
    """Check a matrix whole, before anything runs.

    Arguments:
        matrix: The matrix.
        datasets: Labels of the data sets to load; those of finished cells need not be.

    Raises:
        Problems: Everything that is wrong, data files included.
    """
    request = {
        "content": matrix.content,
        "source": str(matrix.source.resolve()),
        "shown": str(matrix.source),
        "datasets": sorted(datasets),
    }
    done = subprocess.run(
        [sys.executable, "-c", "from flowzoo.bench.check import main; main()"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        answer = json.loads(done.stdout.rpartition("\n\x1e")[2])
    except ValueError as error:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise FlowzooError(f"the check of {matrix.source} did not end well: {tail}") from error
    if answer["problems"]:
        raise Problems(Problem(**problem) for problem in answer["problems"])
    return Checked(answer["gpus"])


def find_problems(matrix: Matrix, datasets: set[str]) -> list[Problem]:
    """Return what is wrong with a matrix; imports torch, builds and loads the data sets named."""
    from flowzoo.build import build

    found = matrix.problems(deep=True)
    os.chdir(matrix.source.resolve().parent)
    for entry in matrix.data:
        if entry.label not in datasets or any(p.path.startswith(entry.path) for p in found):
            continue
        try:
            build("dataset", entry.spec, matrix.registry, entry.path).load()
        except Problems as error:
            found += error.problems
        except UserError as error:
            found.append(Problem(entry.path, str(error), str(matrix.source)))
    return found


def main() -> None:
    """Answer one request on standard input."""
    from flowzoo.bench.matrix import matrix_from

    request: dict[str, Any] = json.loads(sys.stdin.read())
    try:
        matrix = matrix_from(request["content"], request["source"])
        found = find_problems(matrix, set(request["datasets"]))
    except Problems as error:
        found = list(error.problems)
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    shown = [
        asdict(p) | {"file": request["shown"] if p.file == request["source"] else p.file}
        for p in found
    ]
    # What plugins print while they are imported goes before the separator.
    print("\n\x1e" + json.dumps({"problems": shown, "gpus": gpus}), flush=True)
