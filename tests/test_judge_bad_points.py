"""What the judge says of test points that cannot be scored, before it solves anything."""

from __future__ import annotations

import math

import pytest
import torch
from judge_subjects import Field, Rows, Scale
from oracles import F64

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible, UserError
from flowzoo.judge import Subject, evaluate
from flowzoo.judge.likelihood import NLL


def flow():
    return Continuous(Field(lambda t, x: -x, 3))


def test_points_that_are_no_table(places):
    with pytest.raises(UserError, match=r"must be a table \(n, d\), .* got shape \(150,\)"):
        evaluate(flow(), Rows(places(50).flatten()), metrics=[NLL()])


def test_points_of_another_dimension(places):
    with pytest.raises(Incompatible, match="the flow has 2 dimensions and the test points 3"):
        evaluate(Scale(2), Rows(places(50)), metrics=[NLL()])


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_points_that_are_not_finite_are_not_blamed_on_the_flow(wrong, places):
    x = places(50)
    x[3, 1] = x[7, 0] = x[7, 2] = wrong
    with pytest.raises(UserError, match="2 of the 50 test points are not finite"):
        evaluate(flow(), Rows(x), metrics=[NLL()])
    with pytest.raises(UserError, match="2 of the 50 contexts are not finite"):
        evaluate(flow(), Rows(places(50), x), metrics=[NLL()])


@pytest.mark.parametrize("shape", [(30, 2), (70, 2), (50,)])
def test_contexts_that_are_not_one_for_each_point(shape, places):
    context = torch.zeros(shape, dtype=F64)
    with pytest.raises(UserError, match="one row for each of the 50 test points"):
        evaluate(flow(), Rows(places(50), context), metrics=[NLL()])


@pytest.mark.parametrize("tolerance", [0.0, -1e-5, math.nan, math.inf])
def test_a_tolerance_that_is_none(tolerance, places):
    with pytest.raises(UserError, match="tolerance must be positive and finite"):
        Subject(flow(), Rows(places(50)), tolerance=tolerance)


def test_a_class_is_no_object(places):
    with pytest.raises(UserError, match="Scale is a class: give an object of it"):
        evaluate(Scale, Rows(places(50)), metrics=[NLL()])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(places):
    with pytest.raises(UserError, match="compute on cuda, but there is no CUDA: use 'cpu'"):
        evaluate(flow(), Rows(places(50)), metrics=[NLL()], device="cuda")
