"""Learning rates, the box, the moving average."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from flowzoo.settings import Budget, Optimizer, Schedule
from flowzoo.training.budget import Allotment, Spent, allot
from flowzoo.training.optimisers import Average, Rate, clamp, make_optimizer


def rates(schedule, steps, total=None):
    rate = Rate(schedule, 0.1, total)
    return [rate.at(k, k / steps) for k in range(steps)]


def test_a_constant_rate_after_warm_up():
    assert rates(Schedule(warmup=4), 6) == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_steps_are_counted_from_the_end_of_the_warm_up():
    found = rates(Schedule("step", warmup=1, every=2, factor=0.5), 6)
    assert found == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05, 0.025])


def test_the_cosine_falls_to_zero_over_the_steps():
    found = rates(Schedule("cosine", warmup=2), 6, total=6)
    expected = [0.05, 0.1, 0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05, 0.05 * (1 - math.sqrt(0.5))]
    assert found == pytest.approx(expected)


def test_the_cosine_without_steps_follows_the_budget():
    found = rates(Schedule("cosine"), 4)
    expected = [0.05 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert found == pytest.approx(expected)
    assert Rate(Schedule("cosine"), 0.1, None).at(9, 1.0) == 0


def test_the_plateau_waits_drops_and_ends():
    rate = Rate(Schedule("plateau", patience=2, factor=0.1, drops=2), 1.0, None)
    seen = []
    for improved in (True, False, True, False, False, False, False, False, False):
        ended = rate.validated(improved)
        seen.append((round(rate.at(50, 0.5), 6), ended))
    assert [lr for lr, _ in seen] == [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01]
    assert [ended for _, ended in seen] == [False] * 8 + [True]
    other = Rate(rate.schedule, 1.0, None)
    other.load(rate.state())
    assert other.at(50, 0.5) == rate.at(50, 0.5)


def test_the_average_follows_its_formula():
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    average, expected = Average([p], 0.3), torch.zeros(3, dtype=torch.float64)
    for k in range(8):
        with torch.no_grad():
            p.copy_(torch.randn(3))
        average.update()
        decay = min(0.3, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * p.detach()
    torch.testing.assert_close(average.values[0], expected, rtol=1e-14, atol=0)
    before = p.detach().clone()
    with average.in_place():
        torch.testing.assert_close(p.detach(), expected, rtol=1e-14, atol=0)
    assert torch.equal(p, before)
    average.store()
    torch.testing.assert_close(p.detach(), expected, rtol=1e-14, atol=0)


def test_the_box_moves_only_what_is_outside():
    p = nn.Parameter(torch.tensor([-3.0, 0.5, 2.0]))
    clamp([p], 1.5)
    assert p.tolist() == [-1.5, 0.5, 1.5]


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_first_step_of_adam(name):
    p, scalar = nn.Parameter(torch.full((2,), 2.0)), nn.Parameter(torch.tensor(1.0))
    settings = Optimizer(name, lr=0.1, betas=(0.8, 0.9), weight_decay=0.5)
    optimizer = make_optimizer([p, scalar], settings)
    (3 * p.sum() + scalar).backward()
    optimizer.step()
    # The first step moves by lr against the sign of the gradient; adamw shrinks the weight first.
    expected = 2 - 0.1 if name == "adam" else 2 * (1 - 0.1 * 0.5) - 0.1
    assert p.tolist() == pytest.approx([expected] * 2)


def test_adam_adds_the_weight_decay_to_the_gradient():
    p = nn.Parameter(torch.tensor([2.0]))
    optimizer = make_optimizer([p], Optimizer(lr=0.1, weight_decay=0.5))
    (-0.4 * p.sum()).backward()
    optimizer.step()  # -0.4 + 0.5 * 2 is positive
    assert p.item() == pytest.approx(1.9)


def test_a_stage_is_allotted_its_share_of_what_is_left():
    spent = Spent(steps=10, seconds=2.0, samples=100, nfe_forward=30, nfe_backward=10)
    part = allot(Budget(steps=20, seconds=10.0, nfe=41), spent, 0.5)
    assert part.end == {"steps": 15, "seconds": 6.0, "nfe": 41}  # at least one of what is counted
    assert part.reached(spent) is None
    assert allot(Budget(nfe=40), spent, 0.5).reached(spent) == "nfe"
    assert allot(Budget(steps=20), spent, 1.0).steps == 10


def test_the_used_fraction_is_that_of_the_nearest_limit():
    part = Allotment({"steps": 10, "seconds": 0.0}, {"steps": 20, "seconds": 100.0})
    assert part.fraction(Spent(steps=14, seconds=20.0)) == pytest.approx(0.4)
    assert part.fraction(Spent(steps=12, seconds=50.0)) == pytest.approx(0.5)
    assert part.fraction(Spent(steps=25)) == 1.0
    assert part.reached(Spent(steps=19, seconds=99.0)) is None
    assert part.reached(Spent(steps=20)) == "steps"
