"""Runs one check: in surroundings that are the same every time, and left as they were."""

from __future__ import annotations

import random
import time
import traceback
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from flowzoo.build import Problems
from flowzoo.conformance.check import Check, Failed, Skipped
from flowzoo.conformance.report import Outcome, Result
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import Incompatible, UserError
from flowzoo.registry.component import reason


def run(specimen: Specimen, check: Check) -> Result:
    """Run a check of a component, and return what came of it, whatever that is.

    A failure that the component declares is `expected`; a declared one that does not happen is
    `unexpected`, because the declaration is out of date.
    """
    start = time.perf_counter()
    outcome, detail, trace = _attempt(specimen, check)
    declared = specimen.expected.get(check.name)
    if declared and outcome == "fail":
        outcome, detail = "expected", f"{declared} ({detail})"
    elif declared and outcome == "pass":
        outcome = "unexpected"
        detail = f"passes ({detail}), but is declared to fail: {declared}; drop the declaration"
    seconds = time.perf_counter() - start
    return Result(
        specimen.kind, specimen.name, check.name, check.about, outcome, detail, seconds, trace
    )


def measure(specimen: Specimen, check: Check) -> str:
    """Run a check of a component and return what it measured.

    Parts that do not fit, and a data set's files that are not here, are no failures.

    Raises:
        Skipped: The check does not apply, with the reason.
        Exception: It failed.
    """
    with settled(f"{specimen.name} {check.name}"):
        try:
            return check.run(specimen)
        except Incompatible as error:
            raise Skipped(str(error)) from error
        except UserError as error:
            if specimen.kind == "dataset" and not isinstance(error, Problems):
                raise Skipped(str(error)) from error
            raise


@contextmanager
def settled(seed: str) -> Iterator[None]:
    """Settle what is global for a while: generators, threads, precision, gradients, warnings.

    Arguments:
        seed: What the generators are seeded by.
    """
    number = zlib.crc32(seed.encode())
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (restored, not drawn from)
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
        torch.manual_seed(number)
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)


def _attempt(specimen: Specimen, check: Check) -> tuple[Outcome, str, str]:
    """Return outcome, detail and, where something unforeseen was raised, the traceback."""
    try:
        return "pass", measure(specimen, check), ""
    except Skipped as why:
        return "skip", str(why), ""
    except Failed as failure:
        return "fail", str(failure), ""
    except (Exception, SystemExit) as error:
        return "fail", f"raised {reason(error)}", traceback.format_exc()
