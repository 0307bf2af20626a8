"""Toys, shipped sets and standardisation, against quadrature, closed forms and tables."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flowzoo.data import Data, standardised
from flowzoo.data.heavy_tailed import StudentT
from flowzoo.data.oracles import GaussianOracle
from flowzoo.data.shipped import Miniboone, Power, ShippedSet
from flowzoo.data.synthetic import Gaussian, Mixture
from flowzoo.data.toys import EightGaussians, Moons, Toy
from flowzoo.errors import UserError

TOYS = Toy.__subclasses__()
SHIPPED = ShippedSet.__subclasses__()
RAW_MINIBOONE = Path(__file__).parent / "data" / "miniboone_raw_first1523.npy"

# mean test NLL of a diagonal and of a full-covariance Gaussian fitted to train, as in docs/data.md;
# parkinsons to three digits, as 6.8847 sits on the edge of two
BASELINES = {
    "power": (8.52, 7.78),
    "miniboone": (60.91, 37.87),
    "protein": (13.07, 7.17),
    "parkinsons": (15.66, 6.885),
    "redwine": (14.10, 12.45),
    "whitewine": (15.48, 12.88),
    "magic": (14.40, 10.91),
    "higgs7k": (35.00, 31.40),
}
SIZES = {
    "power": (41553, 4617, 5129, 6),
    "miniboone": (4307, 500, 3648, 43),
    "protein": (37042, 4115, 4573, 9),
    "parkinsons": (4760, 528, 587, 12),
    "redwine": (1296, 144, 159, 10),
    "whitewine": (3969, 440, 489, 11),
    "magic": (15407, 1711, 1902, 10),
    "higgs7k": (6075, 675, 750, 24),
}
# Monte Carlo estimates with their standard errors, made independently of our densities
REFERENCE_ENTROPIES = {
    "8gaussians": (2.8315, 0.0007),
    "2spirals": (2.644, 0.005),
    "checkerboard": (math.log(32), 0),
    "rings": (2.620, 0.004),
    "circles": (3.267, 0.001),
    "moons": (2.381, 0.005),
    "pinwheel": (2.318, 0.007),
    "swissroll": (2.663, 0.006),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def named(classes):
    return pytest.mark.parametrize("cls", classes, ids=lambda c: c.name)


def grid(half=6.0, n=150):
    """Midpoints of n x n cells on [-half, half]^2 and the area of a cell."""
    line = (torch.arange(n, dtype=torch.float64) + 0.5) * (2 * half / n) - half
    return torch.cartesian_prod(line, line), (2 * half / n) ** 2


def features(x):
    """r cos(m angle) and r sin(m angle): moments that tell turned and mirrored copies apart."""
    r, angle = x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0])
    waves = [f(m * angle) for m in range(6) for f in (torch.cos, torch.sin)]
    return torch.stack([r * w for w in waves] + [x[:, 0] ** 2, x[:, 1] ** 2], 1)


# toys


@named(TOYS)
def test_toy_density_integrates_to_one_and_gives_the_entropy(cls):
    x, area = grid()
    log_p = cls().log_prob(x)
    p = log_p.exp()
    assert float(p.sum() * area) == pytest.approx(1, abs=1e-6)
    assert -float(torch.special.xlogy(p, p).sum() * area) == pytest.approx(cls.entropy, abs=5e-6)
    value, error = REFERENCE_ENTROPIES[cls.name]
    assert abs(cls.entropy - value) < 3 * error + 5e-4


@named(TOYS)
def test_toy_samples_follow_the_density(cls):
    x, area = grid()
    p = cls().log_prob(x).exp() * area
    drawn = features(cls().sample(20_000, generator(1)))
    expected = p @ features(x)
    error = drawn.std(0) / math.sqrt(len(drawn))
    # checkerboard: the midpoint rule for r cos(m angle) is off by up to 1e-3 at the origin
    assert bool(((drawn.mean(0) - expected).abs() < 4.5 * error + 1e-3).all())
    nll = -cls().log_prob(cls().sample(4000, generator(2)))
    assert abs(float(nll.mean()) - cls.entropy) <= 4 * float(nll.std()) / math.sqrt(4000) + 1e-12


@named(TOYS)
def test_toy_log_prob_follows_the_dtype_and_meets_bad_places(cls):
    x = torch.tensor([[0.3, 0.7], [40.0, -30.0]])
    log_p = cls().log_prob(x)
    assert log_p.dtype == torch.float32
    assert log_p.shape == (2,)
    torch.testing.assert_close(
        log_p[:1].double(), cls().log_prob(x.double())[:1], rtol=0, atol=2e-3
    )
    assert log_p[1] < -100


@named(TOYS)
def test_toy_splits_repeat_and_are_independent(cls):
    data, again = (cls(train=40, val=30, test=20).load() for _ in range(2))
    assert (len(data.train), len(data.val), len(data.test), data.dim) == (40, 30, 20, 2)
    assert data.train.dtype == torch.float64
    for split in ("train", "val", "test"):
        assert torch.equal(getattr(data, split), getattr(again, split))
    other = cls(train=400, val=30, test=20).load()
    assert torch.equal(data.test, other.test), "the test rows must not depend on the size of train"
    same = cls(train=40, val=40, test=40).load()
    for first, second in ((same.train, same.val), (same.val, same.test), (same.test, same.train)):
        assert not torch.equal(first, second)
    assert not torch.equal(data.train, cls(train=40, val=30, test=20, seed=1).load().train)


def test_eight_gaussians_have_the_published_radius_and_width():
    oracle = EightGaussians().oracle
    torch.testing.assert_close(oracle.means.norm(dim=1), torch.full((8,), 4 / 1.414).double())
    x = EightGaussians().sample(20_000, generator())
    nearest = torch.cdist(x, oracle.means).argmin(1)
    residual = x - oracle.means[nearest]
    assert float(residual.std()) == pytest.approx(0.5 / 1.414, rel=0.02)
    assert bool((nearest.bincount(minlength=8) - 2500).abs().max() < 250)


def test_moons_are_those_of_make_moons():
    angle = (torch.arange(20_000, dtype=torch.float64) + 0.5) * (math.pi / 20_000)
    outer = torch.stack([angle.cos(), angle.sin()], 1)
    inner = torch.stack([1 - angle.cos(), 1 - angle.sin() - 0.5], 1)
    curve = torch.cat([outer, inner]) * 2 + torch.tensor([-1, -0.2])
    x = Moons().sample(50, generator())
    squares = (x[:, None] - curve).square().sum(-1)
    log_p = (-squares / (2 * 0.2**2)).logsumexp(1) - math.log(len(curve) * 2 * math.pi * 0.2**2)
    torch.testing.assert_close(Moons().log_prob(x), log_p, rtol=0, atol=1e-6)


def test_a_toy_refuses_sizes_and_seeds():
    with pytest.raises(UserError, match="at least 2 rows"):
        Moons(test=1)
    with pytest.raises(UserError, match="seed is -1"):
        Moons(seed=-1).load()


# fingerprints and standardisation


def test_fingerprint_follows_what_determines_the_rows():
    assert Moons().fingerprint() == Moons().fingerprint()
    prints = [Moons(), Moons(seed=1), Moons(train=100), EightGaussians(), Gaussian(), Power()]
    prints += [Power(rows=100), Gaussian(dim=3)]
    assert len({dataset.fingerprint() for dataset in prints}) == len(prints)
    loaded = Gaussian(condition=4.0)
    loaded.load()
    assert loaded.fingerprint() == Gaussian(condition=4.0).fingerprint()


def test_standardised_rows_entropy_and_density_belong_together():
    dataset = Gaussian(dim=3, condition=50.0, mean=2.0, train=500, val=50, test=60)
    data = dataset.load()
    scaled, scaling = standardised(data)
    torch.testing.assert_close(scaled.train.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(scaled.train.std(0, correction=0), torch.ones(3).double())
    torch.testing.assert_close(scaling.inverse(scaled.test), data.test)
    jacobian = torch.autograd.functional.jacobian(scaling.forward, data.test[0])
    assert torch.linalg.slogdet(jacobian)[1].item() == pytest.approx(scaling.ladj, abs=1e-12)
    assert data.log_prob is not None
    assert scaled.log_prob is not None
    torch.testing.assert_close(
        data.log_prob(data.test), scaled.log_prob(scaled.test) + scaling.ladj
    )
    assert scaled.entropy == pytest.approx(data.entropy + scaling.ladj)
    std = 1 / data.train.std(0, correction=0)
    closed = GaussianOracle.of(dataset.oracle.mean, std * dataset.oracle.covariance * std[:, None])
    assert scaled.entropy == pytest.approx(closed.entropy, abs=1e-10)


def test_standardising_rows_of_unknown_density_keeps_it_unknown():
    rows = torch.randn(20, 2, dtype=torch.float64, generator=generator())
    scaled, _ = standardised(Data("x", rows, rows, rows))
    assert scaled.entropy is None
    assert scaled.log_prob is None


def test_standardising_drops_the_oracle_and_keeps_the_meaning_of_bits():
    """Bits are those of the published coordinates, in which the NLL is."""
    data = Gaussian(dim=2, condition=9.0, mean=3.0, train=50, val=20, test=20).load()
    data = replace(data, bits_per_dim=lambda nll, x: nll + x.exp().sum(1))
    scaled, scaling = standardised(data)
    assert data.oracle is not None
    assert scaled.oracle is None
    assert scaled.transport_cost is None
    assert scaled.bits_per_dim is not None
    nll = torch.arange(20).double()
    expected = nll + data.test.exp().sum(1)
    torch.testing.assert_close(scaled.bits_per_dim(nll, scaling.forward(data.test)), expected)
    assert standardised(replace(data, bits_per_dim=None))[0].bits_per_dim is None


# what a dataset says of its law


@pytest.mark.parametrize("dataset", [Gaussian, Mixture, StudentT, EightGaussians])
def test_data_bring_their_oracle(dataset):
    made = dataset(train=20, val=20, test=50)
    data = made.load()
    assert type(data.oracle) is type(made.oracle)
    assert data.log_prob is not None
    torch.testing.assert_close(data.oracle.log_prob(data.test), data.log_prob(data.test))
    known = getattr(data.oracle, "transport_cost", None)
    assert data.transport_cost == known
    if hasattr(data.oracle, "entropy"):
        assert data.entropy == data.oracle.entropy
        assert data.entropy_error == 0


def test_a_toy_without_oracle_says_none():
    assert Moons(train=20, val=20, test=20).load().oracle is None


# shipped sets


@named(SHIPPED)
def test_gaussian_baselines_of_shipped_sets_are_the_published_ones(cls):
    data = cls().load()
    assert (len(data.train), len(data.val), len(data.test), data.dim) == SIZES[cls.name]
    diagonal, full = BASELINES[cls.name]
    mean, variance = data.train.mean(0), data.train.var(0, correction=0)
    normal = torch.distributions.Normal(mean, variance.sqrt())
    half_digit = 0.0051
    nll = -normal.log_prob(data.test).sum(1).mean()
    assert float(nll) == pytest.approx(diagonal, abs=half_digit)
    nll = -GaussianOracle.fit(data.train).log_prob(data.test).mean()
    assert float(nll) == pytest.approx(full, abs=half_digit)


@named(SHIPPED)
def test_shipped_sets_say_what_they_are_and_can_be_shortened(cls):
    full, short = cls().load(), cls(rows=100).load()
    assert (len(short.train), len(short.val), len(short.test)) == (100, 20, 20)
    assert torch.equal(short.train, full.train[:100])
    assert "First 100 training rows" in short.notes
    assert not cls.standardise
    assert len(full.notes) > 20
    attribution = Path(inspect.getfile(cls)).parent / "uci" / "ATTRIBUTION.md"
    assert f"`{cls.name}.npz`" in attribution.read_text(encoding="utf-8")


def test_reduced_sets_are_labelled_and_rows_are_checked():
    assert "reduced" in Power.title
    assert "reduced" in Miniboone.title
    with pytest.raises(UserError, match="rows of power is 49"):
        Power(rows=49)


def test_miniboone_training_rows_are_the_raw_ones_normalised():
    raw = np.load(RAW_MINIBOONE).astype(np.float64)
    with np.load(Miniboone().files()[0]) as archive:
        normalised = (raw - archive["norm_mu"]) / archive["norm_s"]
    train = Miniboone().load().train[: len(raw)].numpy()
    np.testing.assert_allclose(train, normalised, rtol=0, atol=5e-6)
