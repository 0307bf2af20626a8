"""Each wrong launcher is caught by the check that is meant for it."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from checking import failed, outcomes

from flowzoo.bench import launchers
from flowzoo.bench.launchers import Launcher, Local
from flowzoo.errors import UserError


class Hopeful(Local):
    """Tells of every end that it went well."""

    def launch(self, jobs, devices):
        for end in super().launch(jobs, devices):
            yield end and replace(end, code=0)


class Twice(Local):
    """Tells of every end twice."""

    def launch(self, jobs, devices):
        for end in super().launch(jobs, devices):
            yield end
            if end:
                yield end


class Greedy(Local):
    """Takes all jobs before there is room."""

    def launch(self, jobs, devices):
        yield from super().launch(iter(list(jobs)), devices)


class AnyThreads(Local):
    """Forgets the number of threads."""

    def launch(self, jobs, devices):
        told = (replace(job, resources=replace(job.resources, threads=1)) for job in jobs)
        yield from super().launch(told, devices)


class Patient(Local):
    """Waits as long as it takes."""

    def launch(self, jobs, devices):
        told = (replace(job, resources=replace(job.resources, timeout=None)) for job in jobs)
        yield from super().launch(told, devices)


class Mute(Local):
    """Gives no sign of life before a cell ends."""

    def launch(self, jobs, devices):
        yield from filter(None, super().launch(jobs, devices))


class Process(launchers._Process):
    """Forgets what a process started itself, and never ends it."""

    def signal(self, number):
        return


class Litter(Local):
    """Sends no signals: children and unfinished cells go on."""

    def launch(self, jobs, devices):
        before, launchers._Process = launchers._Process, Process
        try:
            yield from super().launch(jobs, devices)
        finally:
            launchers._Process = before

    def _end(self, processes):
        return


class Absent(Launcher):
    """Runs cells somewhere that is not here."""

    def launch(self, jobs, devices):
        raise UserError("absent needs a cluster; there is none here")
        yield


class Slow(Local):
    """Takes a moment between two looks, rightly."""

    def launch(self, jobs, devices):
        for end in super().launch(jobs, devices):
            time.sleep(0.05)
            yield end


CAUGHT = {
    Hopeful: (["ends", "timeout"], "cell exit is told to end by exit with code 0, expected"),
    Twice: (["ends", "timeout"], "the cells ok, exit, crash end as ok, ok, exit, exit"),
    Greedy: (["ends"], "3 jobs are taken at a time where there is room for 1"),
    AnyThreads: (["ends"], "a cell with threads 3 has '1'"),
    Patient: (["timeout"], "a cell with a timeout of 0.2 s ends by exit with code"),
    Mute: (["closes"], "it gives no sign of life"),
    Litter: (["leftovers", "closes", "timeout"], "a process that a cell started goes on"),
}


SLOW = (Patient, Mute, Litter)  # their cells sleep on: only what they do wrong is looked at


@pytest.mark.parametrize("launcher", CAUGHT, ids=lambda cls: cls.__name__)
def test_a_wrong_one_is_caught_by_its_check(launcher):
    checks, said = CAUGHT[launcher]
    found = failed(launcher, only=checks if launcher in SLOW else ())
    assert set(found) == set(checks)
    assert said in found[checks[0]]


def test_right_ones_pass_and_nothing_is_skipped():
    assert {result.outcome for result in outcomes(Slow).values()} == {"pass"}


def test_one_that_cannot_run_here_is_skipped_with_its_sentence():
    found = outcomes(Absent)
    assert {result.outcome for result in found.values()} == {"skip"}
    assert all("there is none here" in result.detail for result in found.values())
