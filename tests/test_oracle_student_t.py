"""The Student-t oracle against mpmath and scipy, far into both tails."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from flowzoo.data.heavy_tailed import StudentT
from flowzoo.data.student_t import StudentTOracle

F64 = torch.float64
SIZES = [0.0, 1e-8, 1e-3, 0.3, 0.499, 0.501, 1.0, 7.0, 37.9, 38.1, 200.0, 1e3, 1e6]
DF = [0.1, 0.5, 1.0, 2.0, 3.0, 30.0, 1e4]
TIMES = [0.0, 1e-6, 0.3, 0.5, 0.9, 1 - 1e-6, 1.0]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def exact_map(df, x):
    """Phi^-1(F(x)) for x > 0 to fifty digits, by the logarithms of both tails."""
    with mp.workdps(50):
        n, x = mp.mpf(df), mp.mpf(x)
        tail = mp.log(mp.betainc(n / 2, 0.5, 0, n / (n + x * x), regularized=True) / 2)
        start = -special.ndtri_exp(float(tail))
        return float(mp.findroot(lambda z: mp.log(mp.erfc(z / mp.sqrt(2)) / 2) - tail, start))


def both(values):
    """Places in both tails, one a row, and zero."""
    x = torch.tensor(values, dtype=F64)[:, None]
    return torch.cat([-x.flip(0), x])


def cost_by_quadrature(df, scale):
    """1/2 E (x - T(x))^2 of one coordinate, over the logarithm of x > 0."""
    law = stats.t(df)

    def weighed(u):
        x = math.exp(u)
        tail = special.stdtr(df, -x)
        if tail < 1e-200:
            return 0.0
        return (scale * x + special.ndtri_exp(np.log(tail))) ** 2 * law.pdf(x) * x

    parts = [integrate.quad(weighed, low, low + 5, epsabs=1e-13)[0] for low in range(-20, 60, 5)]
    return math.fsum(parts)


@pytest.mark.parametrize("df", DF)
def test_the_map_is_exact_in_both_tails(df):
    oracle = StudentTOracle(df, 1, scale=2.0)
    x = both(SIZES)
    z = oracle.transport(2 * x)
    expected = torch.tensor([0.0, *(exact_map(df, size) for size in SIZES[1:])], dtype=F64)
    torch.testing.assert_close(z, torch.cat([-expected.flip(0), expected])[:, None],
                               rtol=1e-12, atol=1e-15)  # fmt: skip
    torch.testing.assert_close(oracle.inverse_transport(z), 2 * x, rtol=3e-11, atol=1e-15)


@pytest.mark.parametrize("df", DF)
def test_density_score_and_entropy_agree_with_scipy(df):
    oracle, law = StudentTOracle(df, 3, scale=0.7), stats.t(df, scale=0.7)
    x = (both(SIZES)[:, 0] * torch.tensor([[1.0], [-0.6], [0.01]])).mT.contiguous().double()
    expected = torch.from_numpy(law.logpdf(x.numpy()).sum(1))
    torch.testing.assert_close(oracle.log_prob(x), expected, rtol=1e-11, atol=1e-10)
    x.requires_grad_()
    (score,) = torch.autograd.grad(oracle.log_prob(x).sum(), x)
    torch.testing.assert_close(oracle.score(x), score)
    entropy = 3 * float(law.entropy())
    assert oracle.entropy == pytest.approx(entropy, rel=1e-9)
    assert StudentTOracle(1.0, 2).entropy == pytest.approx(2 * math.log(4 * math.pi))


@pytest.mark.parametrize("df", DF)
def test_the_slope_of_the_map_is_the_ratio_of_densities(df):
    """log p(x) = log N(T(x)) + log det dT/dx, with the derivative by central differences."""
    oracle = StudentTOracle(df, 1, scale=1.5)
    x = both([1e-3, 0.3, 0.74, 0.76, 1.0, 7.0, 56.0, 58.0, 1e3, 1e6])
    step = 1e-5 * (1 + x.abs())
    slope = (oracle.transport(x + step) - oracle.transport(x - step)) / (2 * step)
    log_normal = -0.5 * (oracle.transport(x).square() + math.log(2 * math.pi))
    torch.testing.assert_close(
        oracle.log_prob(x), (log_normal + slope.log())[:, 0], rtol=1e-8, atol=1e-6
    )


@pytest.mark.parametrize("df", DF)
@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_the_velocity_undoes_the_interpolation_at_every_time(df, scale):
    oracle = StudentTOracle(df, 1, scale)
    x = scale * both(SIZES)
    way = oracle.transport(x) - x
    for t in TIMES:
        place = oracle.interpolate(t, x)
        torch.testing.assert_close(place, x + t * way)
        torch.testing.assert_close(oracle.velocity(t, place), way, rtol=3e-11, atol=1e-11)


def test_times_and_coordinates_do_not_mix():
    oracle = StudentTOracle(2.5, 3)
    x, t = oracle.sample(40, generator()), torch.rand(40, generator=generator(1), dtype=F64)
    place = oracle.interpolate(t, x)
    velocity = oracle.velocity(t, place)
    torch.testing.assert_close(velocity, oracle.transport(x) - x)
    single = StudentTOracle(2.5, 1)
    alone = single.velocity(float(t[3]), place[3, 1].reshape(1, 1))
    torch.testing.assert_close(velocity[3, 1], alone.squeeze(), rtol=1e-12, atol=1e-12)
    assert torch.equal(oracle.velocity(t[:1].squeeze(), place), oracle.velocity(t[0], place))


def test_the_flow_of_the_velocity_is_the_interpolation():
    oracle = StudentTOracle(1.0, 2)
    x = oracle.sample(4, generator())

    def velocity(t, flat):
        return oracle.velocity(t, torch.from_numpy(flat).reshape(4, 2)).numpy().ravel()

    way = integrate.solve_ivp(velocity, (0, 1), x.numpy().ravel(), "DOP853", rtol=1e-10, atol=1e-10)
    ends = torch.from_numpy(way.y[:, -1].reshape(4, 2))
    torch.testing.assert_close(ends, oracle.transport(x), rtol=0, atol=1e-7)


@pytest.mark.parametrize("df", [2.5, 3.0, 30.0, 1e3])
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_the_cost_agrees_with_a_quadrature(df, scale):
    oracle = StudentTOracle(df, 4, scale)
    expected = 4 * cost_by_quadrature(df, scale)
    assert oracle.transport_cost == pytest.approx(expected, rel=1e-10, abs=1e-13)


def test_the_cost_is_the_mean_squared_way_and_none_where_infinite():
    oracle = StudentTOracle(30.0, 2, 2.0)
    x = oracle.sample(100_000, generator())
    way = 0.5 * (oracle.transport(x) - x).square().sum(1)
    assert oracle.transport_cost is not None
    error = float(way.std()) / 100_000**0.5
    assert abs(float(way.mean()) - oracle.transport_cost) < 4 * error
    assert StudentTOracle(2.0, 2).transport_cost is None
    assert StudentT(df=1.0, train=20, val=20, test=20).load().transport_cost is None


@pytest.mark.parametrize("df", [0.1, 1.0, 3.0, 1e4])
def test_samples_follow_the_law(df):
    """Kolmogorov-Smirnov on uniforms, and independence of coordinates and of sizes."""
    oracle = StudentTOracle(df, 2, 3.0)
    x = oracle.sample(20_000, generator(5))
    assert x.shape == (20_000, 2)
    for column in x.T:
        assert stats.kstest(stats.t(df, scale=3.0).cdf(column.numpy()), "uniform").pvalue > 1e-3
    z = oracle.transport(x).numpy()
    for one, other in ((z[:, 0], z[:, 1]), (np.abs(z[:, 0]), np.abs(z[:, 1]))):
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / 20_000**0.5
    assert torch.equal(x, oracle.sample(20_000, generator(5)))


def test_the_dataset_reaches_its_entropy():
    data = StudentT(dim=3, df=1.0, scale=0.5, train=20, val=20, test=20_000).load()
    assert data.log_prob is not None
    nll = -data.log_prob(data.test)
    assert abs(float(nll.mean()) - data.entropy) < 4 * float(nll.std()) / 20_000**0.5
    assert data.title == "Student-t, df = 1, d = 3"
    assert StudentT().fingerprint() != StudentT(df=4.0).fingerprint()
    wild = StudentT(df=0.1).load()  # values up to 1e40, still finite and with a spread
    assert bool(wild.train.isfinite().all())


def test_results_follow_the_dtype_and_meet_empty_and_huge_input():
    oracle = StudentTOracle(3.0, 2)
    x = oracle.sample(6, generator())
    for ask in (oracle.transport, oracle.inverse_transport, lambda y: oracle.velocity(0.4, y),
                lambda y: oracle.interpolate(0.4, y), oracle.log_prob, oracle.score):  # fmt: skip
        single = ask(x.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), ask(x), rtol=1e-4, atol=1e-5)
        assert ask(x[:0]).shape[0] == 0
        assert ask(torch.full((1, 2), math.nan, dtype=F64)).isnan().all()
    far = torch.tensor([[1e150, -1e150]], dtype=F64)
    torch.testing.assert_close(oracle.inverse_transport(oracle.transport(far)), far, rtol=1e-10,
                               atol=0)  # fmt: skip
    wild, z = StudentTOracle(0.1, 1), both([1.0, 5.0, 8.0])  # up to 1e151
    torch.testing.assert_close(wild.transport(wild.inverse_transport(z)), z)
    beyond = StudentTOracle(0.1, 1).inverse_transport(torch.tensor([[30.0], [-30.0]], dtype=F64))
    assert beyond.flatten().tolist() == [math.inf, -math.inf]
