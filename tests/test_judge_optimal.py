"""Optimal couplings of samples and their potentials, against POT."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from judge_samples import normal
from oracles import F64

from flowzoo.judge import optimal
from flowzoo.judge.optimal import exact_w2, sliced_w2

LINE = torch.ones(1, 1, dtype=F64)


def slack(coupled, x, y):
    """Return |x_i - y_j|^2 - phi_i - psi_j (n, m): not negative, and zero for coupled points."""
    return torch.cdist(x, y).square() - coupled.phi[:, None] - coupled.psi


@pytest.mark.parametrize("dim", [1, 2, 8, 43])
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_the_exact_distance_is_that_of_pot(dim, shift):
    x, y = normal(60, dim), normal(60, dim, seed=1, shift=shift, scale=1.3)
    coupled = exact_w2(x, y)
    weights = np.full(60, 1 / 60)
    cost = ot.dist(x.numpy(), y.numpy())
    assert coupled.squared.shape == (1,)
    assert coupled.squared.item() == pytest.approx(ot.emd2(weights, weights, cost), rel=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 20])
def test_exact_potentials_are_feasible_and_add_up_to_the_distance(dim):
    x, y = normal(80, dim), normal(80, dim, seed=1, shift=0.7, scale=1.5)
    coupled = exact_w2(x, y)
    assert slack(coupled, x, y).min() > -1e-10
    total = coupled.phi.mean() + coupled.psi.mean()
    assert total.item() == pytest.approx(coupled.squared.item(), rel=1e-12)


def test_points_that_coincide_have_potentials_too():
    x = torch.ones(5, 2, dtype=F64)
    coupled = exact_w2(x, x + 1)
    assert coupled.squared.item() == pytest.approx(2)
    assert slack(coupled, x, x + 1).abs().max() < 1e-12


@pytest.mark.parametrize(("n", "m"), [(30, 30), (30, 45), (30, 60), (31, 64), (1, 7), (7, 1)])
def test_the_distance_along_a_line_is_that_of_pot(n, m):
    x, y = normal(n, 1), normal(m, 1, seed=1, shift=0.5, scale=2.0)
    expected = ot.wasserstein_1d(x[:, 0].numpy(), y[:, 0].numpy(), p=2)
    assert sliced_w2(x, y, LINE).squared.item() == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(30, 30), (30, 45), (20, 60), (31, 64), (1, 7)])
def test_potentials_along_a_line_are_feasible_and_tight(n, m):
    x, y = normal(n, 1), normal(m, 1, seed=1, shift=0.5, scale=2.0)
    coupled = sliced_w2(x, y, LINE)
    gap = slack(coupled, x, y)
    gap -= gap.min()  # each potential is known up to a constant
    plan = ot.emd(np.full(n, 1 / n), np.full(m, 1 / m), ot.dist(x.numpy(), y.numpy()))
    assert gap[torch.from_numpy(plan) > 1e-9].abs().max() < 1e-10


@pytest.mark.parametrize(("n", "m"), [(40, 40), (40, 55)])
def test_the_sliced_distance_is_that_of_pot(n, m):
    x, y = normal(n, 4), normal(m, 4, seed=1, shift=0.5)
    along = torch.nn.functional.normalize(normal(30, 4, seed=2), dim=1)
    expected = ot.sliced_wasserstein_distance(x, y, projections=along.mT) ** 2
    found = sliced_w2(x, y, along).squared
    assert found.shape == (30,)
    assert found.mean().item() == pytest.approx(float(expected), rel=1e-12)


def test_sliced_potentials_are_means_over_directions():
    x, y = normal(20, 3), normal(25, 3, seed=1)
    along = torch.nn.functional.normalize(normal(6, 3, seed=2), dim=1)
    each = [sliced_w2(x, y, u[None]) for u in along]
    every = sliced_w2(x, y, along)
    torch.testing.assert_close(every.phi, torch.stack([c.phi for c in each]).mean(0))
    torch.testing.assert_close(every.psi, torch.stack([c.psi for c in each]).mean(0))


def test_directions_in_parts_change_nothing(monkeypatch):
    x, y = normal(20, 3), normal(25, 3, seed=1)
    along = torch.nn.functional.normalize(normal(11, 3, seed=2), dim=1)
    whole = sliced_w2(x, y, along)
    monkeypatch.setattr(optimal, "_ELEMENTS", 45 * 3)
    parts = sliced_w2(x, y, along)
    for name in ("squared", "phi", "psi"):
        torch.testing.assert_close(
            getattr(parts, name), getattr(whole, name), rtol=1e-13, atol=1e-13
        )
