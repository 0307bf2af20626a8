"""Couplings: pairs of least cost, and nearly so; plans; pools; conditions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matching_oracles import F64, close, golden, least, mean_cost

from flowzoo.errors import Diverged, Incompatible
from flowzoo.testing import conformance
from flowzoo_matching.assignment import ExactOT, Pooled
from flowzoo_matching.coupling import Coupling, Independent, Pairs
from flowzoo_matching.plan import PotPlan, plan
from flowzoo_matching.sinkhorn import Sinkhorn, conditionals
from flowzoo_matching.sliced import NearOT, Sorted

CLASSES = (ExactOT, NearOT, Sorted, Sinkhorn, PotPlan, Pooled)
PERMUTATIONS = (ExactOT, NearOT, Sorted)


@conformance(*CLASSES)
def test_conformance(check):
    check()


@pytest.fixture(scope="module")
def stored():
    return golden("couplings")


def noise_of(pairs, n):
    """Return the noise row of each data row, of pairs that are a permutation."""
    rows = torch.arange(n)
    noise = torch.full((n,), -1)
    noise[pairs.of_data(rows)] = pairs.of_noise(rows)
    assert torch.equal(noise.sort().values, rows)
    return noise


def moons(n, generator):
    """Return two arcs and eight Gaussians around them: no map between them is simple."""
    angle = torch.pi * torch.rand(n, generator=generator, dtype=F64)
    side = torch.where(torch.rand(n, generator=generator) < 0.5, 1.0, -1.0)
    x = torch.stack([3 * side * angle.cos() - 1.5 * side, 3 * side * angle.sin()], 1)
    corner = torch.pi / 4 * torch.randint(8, (n,), generator=generator)
    centre = 5 * torch.stack([corner.cos(), corner.sin()], 1)
    return x, centre + 0.5 * torch.randn(n, 2, generator=generator, dtype=F64)


# --- the published numbers -----------------------------------------------------------------------


def test_golden_exact(stored):
    x, z = stored["x0"], stored["x1"]
    pairs = ExactOT().pair(x, z)
    assert torch.equal(noise_of(pairs, 16), stored["perm"])
    close(mean_cost(pairs, x, z), stored["mean_cost_ot"], 1e-10)
    close(mean_cost(pairs, x, z).sqrt(), stored["w2"], 1e-10)


def test_golden_plan(stored):
    rows, columns, mass = plan(stored["x0"], stored["x1"])
    found = np.zeros((16, 16))
    found[rows, columns] = mass
    close(torch.from_numpy(found), stored["plan_exact"], 1e-10)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 10.0])
def test_golden_sinkhorn(stored, epsilon):
    found = conditionals(stored["M"] / epsilon, 100_000, 1e-13)
    close(found / 16, stored[f"plan_sinkhorn_reg{epsilon}"], 1e-10)


def test_golden_order(stored):
    x, z = stored["x0"][:, :1], stored["x1"][:, :1]
    assert torch.equal(noise_of(Sorted().pair(x, z), 16), stored["perm_1d_dim0"])
    axis = Sorted(axis=0).pair(stored["x0"], stored["x1"])
    assert torch.equal(noise_of(axis, 16), stored["perm_1d_dim0"])
    other = Sorted(axis=1).pair(stored["x0"], stored["x1"])
    assert torch.equal(other.noise, stored["x1"][:, 1].argsort())


# --- permutations --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(("n", "d"), [(1, 2), (2, 1), (40, 3), (150, 2), (200, 30)])
def test_exact_pairs_have_the_least_cost(n, d, dtype, places):
    x, z = (3 * places(n, d) + 100).to(dtype), places(n, d, seed=1).to(dtype)
    pairs = ExactOT().pair(x, z)
    noise_of(pairs, n)
    cost = mean_cost(pairs, x.double(), z.double())
    close(cost, torch.tensor(least(x, z), dtype=F64), 0, 1e-9)


@pytest.mark.parametrize("n", [150, 3])
def test_exact_pairs_of_points_that_repeat(n, places):
    x, z = places(n, 2)[:3].repeat(n // 3, 1), places(n, 2, seed=1)
    assert mean_cost(ExactOT().pair(x, z), x, z) == pytest.approx(least(x, z), rel=1e-9)
    still = torch.ones(n, 2, dtype=F64)
    noise_of(ExactOT().pair(still, still), n)


def test_exact_pairs_far_from_the_origin(places):
    x, z = places(150, 2), places(150, 2, seed=1)
    assert torch.equal(ExactOT().pair(x + 1e8, z + 1e8).noise, ExactOT().pair(x, z).noise)


@pytest.mark.parametrize("n", [100, 255, 256])
def test_near_pairs_are_near(n, seeded):
    generator, ratios = seeded(0), []
    for _ in range(12):
        x, z = moons(n, generator)
        pairs = NearOT().pair(x, z, None, generator)
        noise_of(pairs, n)
        ratios.append(mean_cost(pairs, x, z) / least(x, z))
    assert min(ratios) > 1 - 1e-12
    assert torch.stack(ratios).mean() < 1.02
    assert max(ratios) < 1.06


def test_sweeps_pay(seeded):
    x, z = moons(300, seeded(0))
    costs = [mean_cost(NearOT(sweeps).pair(x, z, None, seeded(1)), x, z) for sweeps in (0, 1, 4)]
    assert costs[0] > 1.01 * costs[1] > 1.01 * costs[2]


@pytest.mark.parametrize("cls", PERMUTATIONS)
def test_in_one_dimension_all_are_exact(cls, places, seeded):
    x, z = places(64, 1), places(64, 1, seed=1)
    slack = 1.02 if cls is NearOT else 1 + 1e-9
    assert mean_cost(cls().pair(x, z, None, seeded(0)), x, z) < slack * least(x, z)


@pytest.mark.parametrize("coupling", [ExactOT(), Sorted(axis=1)])
def test_the_order_of_the_rows_does_not_matter(coupling, places):
    x, z = places(120), places(120, seed=1)
    i, j = torch.randperm(120), torch.randperm(120)
    before, after = noise_of(coupling.pair(x, z), 120), noise_of(coupling.pair(x[i], z[j]), 120)
    assert torch.equal(j[after], before[i])


def test_sorted_takes_another_direction_each_time(places, seeded):
    x, z, generator = places(64), places(64, seed=1), seeded(0)
    first, second = (noise_of(Sorted().pair(x, z, None, generator), 64) for _ in range(2))
    assert not torch.equal(first, second)


# --- plans ---------------------------------------------------------------------------------------


def test_sinkhorn_draws_follow_the_plan(stored, seeded):
    x, z, draws = stored["x0"], stored["x1"], seeded(0)
    coupling = Sinkhorn(epsilon=0.1, iterations=10_000, tolerance=1e-9)
    drawn = torch.zeros(16, 16, dtype=F64)
    for _ in range(2000):
        drawn[torch.arange(16), coupling.pair(x, z, None, draws).of_noise(torch.arange(16))] += 1
    epsilon = 0.1 * stored["mean_cost_indep"]
    expected = conditionals(stored["M"] / epsilon, 10_000, 1e-9)
    # Standard deviation of a frequency at most (1/4 / 2000)^1/2 = 0.011.
    close(drawn / 2000, expected, 0.05)
    assert expected.max() < 0.95


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_sinkhorn_goes_from_exact_to_independent(size, dtype, places, seeded):
    x, z = (size * places(128, 2, s).to(dtype) for s in (0, 1))
    cold, warm, hot = (
        mean_cost(Sinkhorn(e, 20_000).pair(x, z, None, seeded(0)), x, z) / size**2
        for e in (0.003, 0.3, 100.0)
    )
    assert float(cold) == pytest.approx(least(x, z) / size**2, rel=0.15)
    assert cold < 0.8 * warm < 0.8 * hot


def test_sinkhorn_says_when_it_has_not_converged(places):
    x, z = places(64), places(64, seed=1)
    with pytest.raises(Diverged, match="after 10 iterations, tolerance 1e-09: raise epsilon"):
        Sinkhorn(epsilon=0.01, iterations=10, tolerance=1e-9).pair(x, z)


def test_pot_pairs_are_exact_ones_drawn_with_replacement(places, seeded):
    x, z = places(128), places(128, seed=1)
    pairs, exact = PotPlan().pair(x, z, None, seeded(0)), noise_of(ExactOT().pair(x, z), 128)
    assert torch.equal(exact[pairs.data], pairs.noise)
    # (1 - 1/128)^128 of them are missing, 0.37.
    assert 0.5 < len(pairs.data.unique()) / 128 < 0.75


# --- pools ---------------------------------------------------------------------------------------


def test_a_pool_gives_pairs_of_the_whole(places, seeded):
    x, z, generator = places(128), places(128, seed=1), seeded(0)
    exact = noise_of(ExactOT().pair(x, z), 128)
    first, second = (Pooled(pairs=32).pair(x, z, None, generator) for _ in range(2))
    for pairs in (first, second):
        assert len(pairs.data.unique()) == 32
        assert torch.equal(exact[pairs.data], pairs.noise)
    assert not torch.equal(first.data, second.data)
    assert noise_of(Pooled(pairs=128).pair(x, z), 128).equal(exact)
    alone = Pooled(Independent(), 5).pair(x, z, None, generator)
    assert torch.equal(alone.data, alone.noise)


def test_a_pool_of_more_has_straighter_pairs(places, seeded):
    x, z = 1 + places(512, 2), places(512, 2, seed=1)
    small = torch.stack(
        [
            mean_cost(ExactOT().pair(a, b), a, b)
            for a, b in zip(x.split(16), z.split(16), strict=True)
        ]
    )
    pool = mean_cost(Pooled(pairs=256).pair(x, z, None, seeded(0)), x, z)
    assert pool < 0.9 * small.mean()


def test_a_pool_hands_on_the_context(places, seeded):
    class Seen(Coupling):
        def pair(self, x, z, context=None, generator=None):
            self.context, self.generator = context, generator
            return Pairs()

    inner, context, generator = Seen(), places(8, 1), seeded(0)
    Pooled(inner, 4).pair(places(8), places(8), context, generator)
    assert inner.context is context
    assert inner.generator is generator


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [ExactOT, NearOT, Sinkhorn, PotPlan, Pooled])
@pytest.mark.parametrize("n", [5, 120])
def test_points_that_are_not_finite_are_refused(cls, n, places):
    x, z = places(n), places(n, seed=1)
    for bad in (torch.nan, torch.inf, 1e200):
        with pytest.raises(Diverged, match="look for missing or huge values in the data"):
            cls().pair(torch.cat([x[1:], torch.full((1, 3), bad, dtype=F64)]), z)


def test_options_that_make_no_sense_are_refused(places):
    for weight in (-1.0, float("inf"), float("nan")):
        for cls in (ExactOT, NearOT):
            with pytest.raises(Incompatible, match="condition_weight must be finite"):
                cls(condition_weight=weight)
    with pytest.raises(Incompatible, match="sweeps of 0 or more, got -1"):
        NearOT(-1)
    with pytest.raises(Incompatible, match="at least one of the pairs, got pairs: 0"):
        Pooled(pairs=0)
    for options in ({"epsilon": 0.0}, {"iterations": 0}, {"tolerance": -1.0}):
        with pytest.raises(Incompatible, match="above 0"):
            Sinkhorn(**options)
    for axis in (3, -1):
        with pytest.raises(Incompatible, match=f"axis {axis}, but points have 3 coordinates"):
            Sorted(axis=axis).pair(places(4), places(4))


@pytest.mark.gpu
@pytest.mark.parametrize("cls", CLASSES)
def test_pairs_are_on_the_device_of_the_points(cls):
    x, z = torch.randn(64, 2, device="cuda"), torch.randn(64, 2, device="cuda")
    pairs = cls().pair(x, z, None, torch.Generator("cuda").manual_seed(0))
    assert pairs.of_data(x).shape == pairs.of_noise(z).shape
    assert all(rows is None or rows.device.type == "cuda" for rows in (pairs.data, pairs.noise))
