"""Checks in processes of their own, and as tests of pytest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import conformance_fakes
import pytest

from flowzoo.conformance import workers
from flowzoo.conformance.finding import cases, specimens
from flowzoo.conformance.runner import run
from flowzoo.conformance.workers import Request, Session
from flowzoo.errors import UserError
from flowzoo.registry import Registry

FAKES = Path(conformance_fakes.__file__)


@pytest.fixture(scope="module")
def fakes():
    return Registry().with_files([FAKES])


def request(*names, **more):
    return Request(tuple(names), plugins=(str(FAKES),), **more)


def without_time(results):
    return [replace(result, seconds=0.0) for result in results]


def test_processes_say_what_one_process_says(fakes):
    names = ["several", "declared", "outdated", "raising", "random"]
    with Session(request(*names)) as session:
        found = dict(session.results(jobs=2))
    here = [run(c.specimen, c.check) for c in cases(specimens(names, fakes))]
    assert without_time(found[n] for n in sorted(found)) == without_time(here)


def test_a_crash_fails_one_check_and_the_rest_goes_on():
    with Session(request("crashing", "plain")) as session:
        found = dict(session.results(jobs=1))
        assert len(found) == len(session.headings)
    bad = [result for result in found.values() if result.bad]
    assert [(r.name, r.check) for r in bad] == [("widget/crashing", "positive")]
    assert bad[0].detail == "its process was ended by SIGABRT"
    assert "in weigh" in bad[0].traceback


def test_processes_refuse_what_finding_refuses():
    with pytest.raises(UserError, match="did you mean 'crashing'"):
        Session(request("crashign"))


def test_leaving_early_ends_the_processes():
    with Session(request("plain")) as session:
        next(session.results())
    assert all(worker.popen.returncode is not None for worker in session.workers)
    assert all(worker.errors.closed for worker in session.workers)
    assert not any(thread.is_alive() for thread in session.threads)


HANGING = """
import time
from conformance_fakes import Plain

class Hanging(Plain):
    \"\"\"A widget that is never weighed.\"\"\"

    def weigh(self):
        time.sleep(1000)

def flowzoo_components():
    return {"hanging": Hanging}
"""


@pytest.fixture
def hanging(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(FAKES.parent))
    (tmp_path / "hanging.py").write_text(HANGING)
    return Request(
        ("hanging",), only=("positive", "loads"), plugins=(str(tmp_path / "hanging.py"),)
    )


def test_a_check_that_hangs_fails_with_its_place(hanging, monkeypatch):
    monkeypatch.setattr(workers, "LONGEST", 1.0)
    with Session(hanging) as session:
        found = {result.check: result for _, result in session.results(jobs=1)}
    assert found["loads"].outcome == "pass"
    assert found["positive"].detail == "it takes longer than 1 s"
    assert "in weigh" in found["positive"].traceback


def test_nothing_outlives_who_asked(hanging):
    command = [sys.executable, "-m", "flowzoo.conformance.worker", json.dumps(asdict(hanging))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        assert it.stdin
        assert it.stdout
        names = [case[2] for case in json.loads(it.stdout.readline())["cases"]]
        print(names.index("positive"), file=it.stdin, flush=True)
        it.stdin.close()
        assert it.wait(30) == 0


def test_a_plugin_that_crashes_is_named(tmp_path):
    file = tmp_path / "aborts.py"
    file.write_text("import os; os.abort()")
    with pytest.raises(UserError, match=r"SIGABRT while .* components: File .*aborts.py"):
        Session(Request(("exact",), plugins=(str(file),)))


# The face for pytest

TESTS = """
import sys
sys.path.insert(0, {folder!r})
import conformance_fakes as fakes
from flowzoo.testing import conformance

@conformance(fakes.Plain, fakes.Declared, fakes.Outdated, fakes.Debtor, fakes.Misfit,
             check="positive")
def test_conformance(check):
    check()

@conformance("widget/several", plugins=[fakes.__file__], kind="widget")
def test_by_name(check):
    check()
"""


def test_one_test_for_each_check(tmp_path):
    (tmp_path / "test_it.py").write_text(TESTS.format(folder=str(FAKES.parent)))
    command = [sys.executable, "-m", "pytest", "-rA", "-n", "2", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "test_it.py"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "200"},
    )
    said = done.stdout
    assert done.returncode == 1, said + done.stderr
    for line in (
        "PASSED test_it.py::test_conformance[widget/Plain-positive]",
        "XFAIL test_it.py::test_conformance[widget/Declared-positive] - it owes",
        "FAILED test_it.py::test_conformance[widget/Outdated-positive] - [XPASS(strict)] it once",
        "FAILED test_it.py::test_conformance[widget/Debtor-positive]",
        "PASSED test_it.py::test_by_name[widget/several#2-plain]",
    ):
        assert line in said, said
    assert "SKIPPED" in said
    assert "a misfit does not fit the scales" in said
    assert "2 failed" in said
