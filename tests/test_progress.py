"""The progress bar, and the lines in its place."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from flowzoo.training.progress import Progress, ProgressBar, duration, status

AT = Progress("likelihood", 0, 50, 0.25, 30.0, 400, 0, {"nll": 1.23456, "hjb": 0.5}, 2.5, 0.01)


def shown(observed, **kwargs):
    text = io.StringIO()
    with ProgressBar("cell [1]", Console(file=text, width=200, **kwargs), every=10.0) as bar:
        for progress in observed:
            bar(progress)
    return text.getvalue()


def test_the_status_has_terms_validation_and_time_left():
    assert status(AT) == "step 50  nll 1.235  hjb 0.5  validation 2.5000  1m30s left"


def test_plain_lines_are_rare_and_the_last_is_always_shown():
    observed = [Progress(**{**vars(AT), "step": k, "fraction": k / 100}) for k in range(1, 101)]
    lines = shown(observed).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("cell [1] likelihood   1% step 1  nll 1.235")
    assert lines[1].startswith("cell [1] likelihood 100% step 100")
    assert "left" not in lines[1]


def test_a_terminal_gets_a_bar_that_ends_as_a_line():
    text = shown([AT], force_terminal=True)
    assert "━" in text
    assert "cell [1] likelihood" in text
    assert text.rstrip().endswith("1m30s left")


def test_nothing_is_shown_of_a_fit_that_never_began():
    assert shown([]) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (185, "3m05s"), (7620, "2h07m")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
