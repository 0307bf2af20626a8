"""What comes of a check: outcomes, declarations, repetition, words."""

from __future__ import annotations

import random
import warnings
from dataclasses import replace
from pathlib import Path

import conformance_fakes
import numpy as np
import pytest
import torch

from flowzoo.conformance.check import Failed, check, off_by
from flowzoo.conformance.finding import cases, specimens
from flowzoo.conformance.report import Result, badge, tally
from flowzoo.conformance.runner import run, settled
from flowzoo.errors import UserError
from flowzoo.registry import Registry

FAKES = Path(conformance_fakes.__file__)


@pytest.fixture(scope="module")
def fakes():
    return Registry().with_files([FAKES])


@pytest.fixture
def outcome(fakes):
    """Return a maker of the result of a check of a fake."""

    def made(name, check="positive"):
        (case,) = cases(specimens([name], fakes), [check])
        return run(case.specimen, case.check)

    return made


# What comes of a check


def test_a_pass_says_what_was_measured(outcome):
    found = outcome("plain")
    assert (found.kind, found.name, found.check) == ("widget", "widget/plain", "positive")
    assert (found.outcome, found.detail) == ("pass", "weighs 1")
    assert found.about == "A weight is positive."
    assert not found.bad


def test_a_failure_says_what_was_expected(outcome):
    found = outcome("debtor")
    assert (found.outcome, found.traceback) == ("fail", "")
    assert found.detail == "the weight is -1, expected a positive one"
    assert found.bad


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raising", "raised ZeroDivisionError: division by zero"),
        ("quitting", "SystemExit: no more"),
    ],
)
def test_anything_raised_is_a_failure_with_its_traceback(outcome, name, said):
    found = outcome(name)
    assert found.outcome == "fail"
    assert said in found.detail
    assert "in weigh" in found.traceback


def test_parts_that_do_not_fit_are_skipped_with_the_sentence(outcome):
    found = outcome("misfit")
    assert (found.outcome, found.detail) == ("skip", "a misfit does not fit the scales")
    assert not found.bad


@pytest.mark.parametrize(
    ("name", "came"),
    [("dataset/gas-maf", "skip"), ("trace/exact", "fail")],
)
def test_files_that_are_not_here_are_no_failure_of_a_data_set(name, came):
    def absent(specimen):
        raise UserError("there is no file gas.npy")

    found = run(specimens([name])[0], check("any")(absent))
    assert (found.outcome, "there is no file gas.npy" in found.detail) == (came, True)


def test_a_declared_failure_is_expected_and_shows_reason_and_measurement(outcome):
    found = outcome("declared")
    assert found.outcome == "expected"
    assert found.detail.startswith("it owes (the weight is -1")
    assert not found.bad


def test_a_declared_failure_that_passes_is_out_of_date(outcome):
    found = outcome("outdated")
    assert found.outcome == "unexpected"
    assert "it once owed" in found.detail
    assert found.bad


def test_a_declaration_of_no_check_is_a_failure(outcome):
    found = outcome("misnamed", "declarations")
    assert found.outcome == "fail"
    assert "did you mean 'positive'" in found.detail


# The same every time


def numpy_state():
    return np.random.get_state()[1].tolist()  # noqa: NPY002 (what old code draws from)


def test_a_check_repeats_whatever_ran_before(outcome, fakes):
    first = outcome("random").detail
    torch.rand(3)
    assert outcome("random").detail == first
    (other,) = cases(specimens(["random"], fakes), ["positive"])
    assert run(replace(other.specimen, name="another"), other.check).detail != first


def test_a_check_leaves_what_is_global_as_it_was(outcome):
    torch.set_num_threads(2)
    filters = list(warnings.filters)
    states = torch.get_rng_state(), random.getstate(), numpy_state()
    with torch.enable_grad():
        outcome("random")
        assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_num_threads() == 2
    assert warnings.filters == filters
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert numpy_state() == states[2]


def test_every_generator_is_seeded():
    def drawn(seed):
        with settled(seed):
            numpy = float(np.random.rand())  # noqa: NPY002 (what old code draws from)
            return random.random(), numpy, float(torch.rand(()))

    assert drawn("a") == drawn("a")
    assert not {*drawn("a")} & {*drawn("b")}


# Words


def result(outcome, **more):
    return Result("trace", "trace/a", "c", "About.", outcome, "said", **more)


def test_counts_in_words():
    outcomes = ["pass", "pass", "expected", "skip", "unexpected", "unexpected", "fail"]
    assert tally(map(result, outcomes)) == (
        "2 passed, 1 failed, 2 unexpected passes, 1 expected failure, 1 skipped"
    )
    assert tally([]) == "nothing to check"


@pytest.mark.parametrize(
    ("outcomes", "ending"),
    [
        (["pass", "pass", "skip"], "2%2F2-brightgreen"),
        (["pass", "expected"], "1%2F2-yellow"),
        (["pass", "fail"], "1%2F2-red"),
        (["pass", "unexpected"], "1%2F2-red"),
    ],
)
def test_a_badge_counts_what_applies(outcomes, ending):
    made = badge([result(outcome) for outcome in outcomes])
    assert made.endswith(f"(https://img.shields.io/badge/flowzoo_check-{ending})")
    assert made.startswith("![flowzoo check ")


def test_off_by_measures_relative_to_one_plus_the_size():
    ten = torch.tensor([9.0, -9.0])
    assert off_by(ten + 0.1, ten, 0.02, "it") == "it off by 1.0e-02, allowed 2e-02"
    with pytest.raises(Failed, match=r"it is off by 0.01 \(relative\), allowed 0.005"):
        off_by(ten + 0.1, ten, 0.005, "it")
    with pytest.raises(Failed, match="off by inf"):
        off_by(ten * torch.nan, ten, 1.0, "it")
    with pytest.raises(Failed, match=r"shape \(1,\), expected \(2,\)"):
        off_by(ten[:1], ten, 1.0, "it")
    assert "empty" in off_by(ten[:0], ten[:0], 0.0, "it")
