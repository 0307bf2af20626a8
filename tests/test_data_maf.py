"""Published preprocessing: its arithmetic, on synthetic raw files."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from tables import SPLITS, table, write_csv

from flowzoo.data.images import (
    BSDS300,
    MNIST,
    bits_per_dim,
    bsds_patches,
    logit_pixels,
)
from flowzoo.data.maf import (
    GasMAF,
    HepmassMAF,
    MAFSet,
    MinibooneMAF,
    PowerMAF,
    smallest_value_counts,
    uncorrelated,
)
from flowzoo.data.oracles import GaussianOracle
from flowzoo.data.real import split_from_the_end
from flowzoo.errors import BadData, UserError


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        (2_049_280, (1_659_917, 184_435, 204_928)),  # POWER
        (1_052_065, (852_174, 94_685, 105_206)),  # GAS
        (36_488, (29_556, 3_284, 3_648)),  # MINIBOONE
    ],
)
def test_splits_have_the_published_sizes(rows, sizes):
    parts = split_from_the_end(np.arange(rows, dtype=np.int32)[:, None])
    assert tuple(map(len, parts)) == sizes
    np.testing.assert_array_equal(np.concatenate(parts)[:, 0], np.arange(rows))


def test_power_is_shuffled_noised_and_standardised_as_published(tmp_path):
    raw = np.random.RandomState(3).rand(300, 8) * [10, 1, 5, 20, 30, 30, 30, 1440]
    (tmp_path / "power").mkdir()
    np.save(tmp_path / "power" / "data.npy", raw)
    data = PowerMAF(root=str(tmp_path)).load()
    rng = np.random.RandomState(42)  # the published loader, line by line
    rows = raw.copy()
    rng.shuffle(rows)
    rows = np.delete(np.delete(rows, 3, axis=1), 1, axis=1)
    voltage, gap, submeters = 0.01 * rng.rand(300, 1), 0.001 * rng.rand(300, 1), rng.rand(300, 3)
    rows = rows + np.hstack((gap, voltage, submeters, np.zeros((300, 1))))
    fitted = rows[:270]
    rows = (rows - fitted.mean(0)) / fitted.std(0)
    np.testing.assert_array_equal(data.train.numpy(), rows[:243])
    np.testing.assert_array_equal(data.val.numpy(), rows[243:270])
    np.testing.assert_array_equal(data.test.numpy(), rows[270:])


def gas_table():
    base = np.random.RandomState(0).randn(300, 8)
    noise = 0.01 * np.random.RandomState(1).randn(300, 8)
    return np.concatenate([base, base + noise], 1)  # column i and i + 8 correlate


def test_gas_drops_the_first_of_correlated_columns(tmp_path):
    sensors = gas_table()
    assert uncorrelated(sensors) == list(range(8, 16))
    chain = np.cumsum(np.random.RandomState(2).randn(500, 3) * [1, 0.15, 0.15], 1)
    # 0 ~ 1 ~ 2 but not 0 ~ 2: dropping 0, then 1
    correlation = np.corrcoef(chain, rowvar=False)
    assert correlation[0, 1] > 0.98 < correlation[1, 2]
    assert uncorrelated(chain) == [2]
    (tmp_path / "data" / "gas").mkdir(parents=True)
    names = ["Time", "Meth", "Eth", *[f"R{i}" for i in range(16)]]
    write_csv(tmp_path / "data/gas/ethylene_CO.csv", np.c_[table(300), sensors], names)
    from_csv = GasMAF(root=str(tmp_path)).load()
    np.save(tmp_path / "data/gas/ethylene_CO.npy", sensors)
    from_npy = GasMAF(root=str(tmp_path)).load()
    kept = sensors[:, 8:]
    expected = (kept - kept.mean(0)) / kept.std(0, ddof=1)  # test rows included
    np.testing.assert_allclose(from_npy.test.numpy(), expected[270:], rtol=0, atol=1e-13)
    np.testing.assert_allclose(from_npy.train.numpy(), expected[:243], rtol=0, atol=1e-13)
    assert torch.equal(from_csv.train, from_npy.train)


def test_hepmass_keeps_the_signal_and_drops_columns_by_their_smallest_value(tmp_path):
    rng = np.random.RandomState(0)
    features = rng.randn(400, 4)
    features[:, 1] = np.maximum(features[:, 1], -0.5)  # smallest value often: dropped
    features[:, 2] = np.minimum(features[:, 2], 0.5)  # largest value often: kept by the rule
    label = (np.arange(400) % 2).astype(float)
    train, test = np.c_[label, features], np.c_[label, rng.randn(400, 4), np.full(400, 1000.0)]
    (tmp_path / "hepmass").mkdir()
    names = ["# label", "f0", "f1", "f2", "f3"]
    write_csv(tmp_path / "hepmass/1000_train.csv", train, names)
    write_csv(tmp_path / "hepmass/1000_test.csv", test, [*names, "mass"])
    data = HepmassMAF(root=str(tmp_path)).load()
    signal, tested = train[label == 1, 1:], test[label == 1, 1:-1]
    mean, std = signal.mean(0), signal.std(0, ddof=1)
    signal, tested = (signal - mean) / std, (tested - mean) / std
    counts = [sorted(Counter(column).items())[0][1] for column in signal.T]  # as published
    assert counts == smallest_value_counts(signal).tolist()
    assert [count > 5 for count in counts] == [False, True, False, False]
    keep = [0, 2, 3]
    np.testing.assert_allclose(data.train.numpy(), signal[:180, keep], rtol=0, atol=1e-12)
    np.testing.assert_allclose(data.val.numpy(), signal[180:, keep], rtol=0, atol=1e-12)
    np.testing.assert_allclose(data.test.numpy(), tested[:, keep], rtol=0, atol=1e-12)


def test_miniboone_is_standardised_by_train_and_val(tmp_path):
    raw = table(1000, 43) * 5 + 3
    (tmp_path / "miniboone").mkdir()
    np.save(tmp_path / "miniboone/data.npy", raw)
    data = MinibooneMAF(root=str(tmp_path)).load()
    fitted = torch.cat([data.train, data.val])
    torch.testing.assert_close(fitted.mean(0), torch.zeros(43).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(fitted.std(0, correction=0), torch.ones(43).double())
    std = torch.from_numpy(raw[:900].std(0))
    torch.testing.assert_close(data.test * std, torch.from_numpy(raw[900:] - raw[:900].mean(0)))
    short = MinibooneMAF(root=str(tmp_path), rows=100).load()
    assert torch.equal(short.train, data.train[:100])


def test_bsds_patches_are_finished_as_documented(tmp_path):
    rng = np.random.RandomState(0)
    grey = {name: rng.randint(0, 256, (60, 64)).astype(np.uint8) for name in SPLITS}
    np.savez(tmp_path / "bsds300_patches_uint8.npz", **grey)
    data = BSDS300(root=str(tmp_path)).load()
    for (name, values), seed in zip(grey.items(), (10, 11, 12), strict=True):
        got = getattr(data, name).numpy()
        full = np.c_[got, -got.sum(1)]  # the last pixel is minus the sum of the others
        noisy = (values + np.random.RandomState(seed).rand(60, 64)) / 256
        np.testing.assert_allclose(full, noisy - noisy.mean(1, keepdims=True), rtol=0, atol=1e-12)
    assert not np.array_equal(bsds_patches(grey["val"], 10), bsds_patches(grey["val"], 11))
    finished = {name: table(60, 63) for name in grey}
    (tmp_path / "BSDS300").mkdir()
    np.savez(tmp_path / "BSDS300/BSDS300.npz", **finished)
    data = BSDS300(root=str(tmp_path)).load()
    np.testing.assert_array_equal(data.test, finished["test"])
    assert data.bits_per_dim is None  # patches without their mean have no bits of grey values
    np.savez(tmp_path / "BSDS300/BSDS300.npz", **{name: table(60, 64) for name in grey})
    with pytest.raises(BadData, match=r"finished patches \(n, 63\)"):
        BSDS300(root=str(tmp_path)).load()


def test_mnist_is_dequantised_by_one_generator_and_invertible(tmp_path):
    rng = np.random.RandomState(0)
    grey = {name: rng.randint(0, 256, (20, 28, 28)).astype(np.uint8) for name in SPLITS}
    np.savez(tmp_path / "mnist_uint8.npz", **{f"{name}_x": v for name, v in grey.items()})
    data = MNIST(root=str(tmp_path)).load()
    noise = np.random.RandomState(42)
    for name in SPLITS:
        x = torch.sigmoid(getattr(data, name))
        pixels = ((x - 1e-6) / (1 - 2e-6)).numpy()
        expected = (grey[name].reshape(20, 784) + noise.rand(20, 784)) / 256
        np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-12)
    nll = torch.zeros(20, dtype=torch.float64)
    assert data.bits_per_dim is not None
    assert torch.equal(data.bits_per_dim(nll, data.test), bits_per_dim(nll, data.test))
    np.savez(tmp_path / "mnist_uint8.npz", train_x=grey["train"], val_x=grey["val"])
    with pytest.raises(BadData, match="no array test_x"):
        MNIST(root=str(tmp_path)).load()


def test_bits_per_dim_is_the_change_of_variables():
    """A uniform density of pixels has 8 bits per dimension, whatever the logit constant."""
    alpha = 0.05
    grey = np.random.RandomState(0).randint(0, 256, (7, 30))
    y = torch.from_numpy(logit_pixels(grey, np.random.RandomState(1), alpha)).requires_grad_()
    pixels = (torch.sigmoid(y) - alpha) / (1 - 2 * alpha)
    (slope,) = torch.autograd.grad(pixels.sum(), y)
    nll = -slope.log().sum(1)  # of a uniform density on [0, 1]^d, seen in logit space
    bits = bits_per_dim(nll, y.detach(), alpha)
    torch.testing.assert_close(bits, torch.full((7,), 8.0).double())


FULL_SETS = MAFSet.__subclasses__()


@pytest.mark.parametrize("cls", FULL_SETS, ids=lambda c: c.name)
def test_full_sets_say_which_file_goes_where(tmp_path, monkeypatch, cls):
    monkeypatch.delenv("FLOWZOO_DATA", raising=False)
    expected = cls.wanted[0][0]
    with pytest.raises(UserError, match=f"{cls.name} needs .*FLOWZOO_DATA.*{expected}"):
        cls().load()
    monkeypatch.setenv("FLOWZOO_DATA", str(tmp_path))
    with pytest.raises(BadData, match=f"{cls.name} expects {expected}") as caught:
        cls().load()
    assert str(tmp_path) in str(caught.value)
    assert "zenodo.1161203" in str(caught.value) or "MNIST database" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_full_sets_refuse_other_widths_and_follow_the_environment(tmp_path, monkeypatch):
    (tmp_path / "power").mkdir()
    np.save(tmp_path / "power/data.npy", table(100, 6))
    monkeypatch.setenv("FLOWZOO_DATA", str(tmp_path))
    with pytest.raises(BadData, match="has 6 columns; the published file has 8"):
        PowerMAF().load()
    assert PowerMAF().fingerprint() == PowerMAF(root=str(tmp_path)).fingerprint()


def test_gaussian_baseline_of_logit_images_is_finite():
    grey = np.random.RandomState(0).randint(0, 256, (200, 5))
    y = torch.from_numpy(logit_pixels(grey, np.random.RandomState(1)))
    nll = -GaussianOracle.fit(y).log_prob(y)
    # uniform pixels: no model is below 8 bits per dimension, a Gaussian in logit space little above
    assert 8 < float(bits_per_dim(nll, y).mean()) < 8.3
    assert math.isfinite(float(nll.max()))
