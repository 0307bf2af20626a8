"""Couplings of points that come with conditions: plain pairs skew the noise, aware ones do not."""

from __future__ import annotations

import pytest
import torch
from matching_oracles import F64, close, least, mean_cost

from flowzoo_matching.assignment import ExactOT
from flowzoo_matching.conditional_coupling import with_conditions
from flowzoo_matching.coupling import Independent
from flowzoo_matching.sliced import NearOT


def test_distances_with_conditions(places, seeded):
    x, z, c = places(9), places(9, seed=1), places(9, 2, seed=2)
    own = torch.randperm(9, generator=seeded(0))
    expected = torch.cdist(x, z).square() + 7 * torch.cdist(c, c[own]).square()
    close(torch.cdist(*with_conditions(x, z, c, 7.0, seeded(0))).square(), expected)


def noise_means(coupling, generator, continuous=False):
    """Return the mean noise of the data on the right of the middle, over many batches.

    Data are 3 c + noise in both coordinates, c = -1 or 1, or uniform in between.
    """
    means = []
    for _ in range(30):
        c = 2 * torch.rand(64, 1, generator=generator, dtype=F64) - 1
        c = c if continuous else c.sign()
        x = 3 * c + torch.randn(64, 2, generator=generator, dtype=F64)
        z = torch.randn(64, 2, generator=generator, dtype=F64)
        pairs = coupling.pair(x, z, c, generator)
        means.append(pairs.of_noise(z)[pairs.of_data(c)[:, 0] > 0].mean(0))
    return torch.stack(means).mean(0)


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("cls", [ExactOT, NearOT])
def test_conditions_keep_the_noise_from_depending_on_them(cls, continuous, seeded):
    """Half the batch has the noise of one side, of mean (2 / pi)^1/2 / 2^1/2 each; then of all."""
    skewed = noise_means(cls(), seeded(0), continuous)
    cured = noise_means(cls(condition_weight=1000.0), seeded(0), continuous)
    assert skewed.min() > 0.4
    assert cured.abs().max() < 0.1  # standard error (30 * 32)^-1/2 = 0.03


def test_conditions_still_leave_straighter_pairs_than_independent_ones(seeded):
    generator = seeded(0)
    c = torch.randint(2, (256, 1), generator=generator).to(F64)
    x = 5 * c + torch.randn(256, 2, generator=generator, dtype=F64)
    z = torch.randn(256, 2, generator=generator, dtype=F64)
    pairs = ExactOT(condition_weight=1e6).pair(x, z, c, generator)
    free, least_ = mean_cost(Independent().pair(x, z), x, z), least(x, z)
    assert least_ < mean_cost(pairs, x, z) < 0.95 * free
    # Without a context, or a weight, it is the same as ever.
    for same in (ExactOT(1e6).pair(x, z), ExactOT().pair(x, z, c)):
        assert mean_cost(same, x, z) == pytest.approx(least_, rel=1e-9)
