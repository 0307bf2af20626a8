"""Files: what is read back, published preprocessing on synthetic raw files, and what is refused."""

from __future__ import annotations

import math
import os
import re
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from flowzoo.data import Data, validate
from flowzoo.data.files import File
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

SPLITS = ("train", "val", "test")


def table(n=200, d=3, seed=0):
    return np.random.RandomState(seed).randn(n, d)


def write_csv(path, values, names=None, delimiter=","):
    lines = [delimiter.join(names)] if names else []
    lines += [delimiter.join(repr(float(cell)) for cell in row) for row in values]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows_of(data):
    """All rows of a dataset, sorted, to compare with a file's in any order."""
    rows = torch.cat([data.train, data.val, data.test]).numpy()
    return rows[np.lexsort(rows.T)]


def sort(values):
    return values[np.lexsort(values.T)]


# the user's own file


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("names", [None, ["a", "b", "c"]])
def test_a_csv_is_read_exactly(tmp_path, delimiter, names):
    values = table(9000)  # more than one block
    path = write_csv(tmp_path / "rows.csv", values, names, delimiter)
    data = File(str(path)).load()
    assert data.columns == tuple(names or ["1", "2", "3"])
    assert (len(data.train), len(data.val), len(data.test)) == (7200, 900, 900)
    assert data.name == "rows"
    assert data.train.dtype == torch.float64
    np.testing.assert_array_equal(rows_of(data), sort(values))


def test_csv_with_marks_quotes_empty_lines_and_text_in_unused_columns(tmp_path):
    lines = ['"name, first",x,y'] + [f"person {i},{i}.5,{i * i}" for i in range(120)]
    text = "\ufeff" + "\r\n".join([*lines[:50], "", *lines[50:]]) + "\r\n\r\n"
    path = tmp_path / "people.csv"
    path.write_bytes(text.encode())
    data = File(str(path), columns=["y", "x"]).load()
    assert data.columns == ("y", "x")
    expected = np.array([[i * i, i + 0.5] for i in range(120)])
    np.testing.assert_array_equal(rows_of(data), sort(expected))
    one = File(str(path), columns=["x"]).load()
    np.testing.assert_array_equal(rows_of(one), sort(expected[:, 1:]))


def test_the_header_option_overrules_the_guess(tmp_path):
    path = write_csv(tmp_path / "years.csv", table(150, 2), ["2001", "2002"])
    guessed = File(str(path)).load()
    assert guessed.columns == ("1", "2")
    assert len(rows_of(guessed)) == 151
    data = File(str(path), header=True).load()
    assert data.columns == ("2001", "2002")
    assert len(rows_of(data)) == 150


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "bool"])
def test_npy_and_npz_of_one_array_are_read_exactly(tmp_path, dtype):
    values = (table(200) > 0) if dtype == "bool" else (table(200) * 10).astype(dtype)
    np.save(tmp_path / "rows.npy", values)
    np.savez_compressed(tmp_path / "rows.npz", anything=values)
    for name in ("rows.npy", "rows.npz"):
        data = File(str(tmp_path / name), columns=["3", "1"]).load()
        np.testing.assert_array_equal(rows_of(data), sort(values[:, [2, 0]].astype(np.float64)))


def test_npz_with_splits_keeps_them(tmp_path):
    splits = {"train": table(50), "val": table(20, seed=1), "test": table(30, seed=2)}
    np.savez(tmp_path / "rows.npz", **splits, extra=np.zeros(3))
    data = File(str(tmp_path / "rows.npz"), columns=["2"]).load()
    for name, values in splits.items():
        np.testing.assert_array_equal(getattr(data, name).numpy(), values[:, 1:2])


def test_splits_follow_the_seed_and_do_not_overlap(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, np.arange(400.0).reshape(200, 2) ** 1.5)
    first, again, other = (File(str(path), seed=seed).load() for seed in (0, 0, 1))
    assert torch.equal(first.test, again.test)
    assert not torch.equal(first.test, other.test)
    assert len(np.unique(rows_of(first), axis=0)) == 200
    data = File(str(path), val_fraction=0.25, test_fraction=0.3).load()
    assert (len(data.train), len(data.val), len(data.test)) == (90, 50, 60)


def test_fingerprint_follows_the_contents_not_the_place(tmp_path):
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, table())
    a, b = (File(str(tmp_path / name)) for name in ("a.npy", "b.npy"))
    before = a.fingerprint()
    assert before == b.fingerprint()
    assert before != File(a.path, seed=1).fingerprint()
    np.save(tmp_path / "a.npy", table(seed=1))
    os.utime(tmp_path / "a.npy", (1, 1))  # a clock may be coarser than this test
    assert a.fingerprint() != before


def test_standardising_is_the_default_and_an_option():
    assert File("x.csv").standardise
    assert not File("x.csv", standardise=False).standardise


def test_parquet_is_read_and_its_bad_cells_named(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    path = tmp_path / "rows [1].parquet"

    def write(query):
        duckdb.sql(f"copy ({query}) to '{path}' (format parquet)")

    write("select i / 7.0 as a, (i * i)::integer as b, 'text' as c from range(120) t(i)")
    data = File(str(path), columns=["b", "a"]).load()
    expected = np.array([[i * i, i / 7.0] for i in range(120)])
    np.testing.assert_allclose(rows_of(data), sort(expected))
    with pytest.raises(BadData, match="column 'c', row 1 is not a number: 'text'"):
        File(str(path)).load()
    write("select case when i = 41 then null else i end as a from range(120) t(i)")
    with pytest.raises(BadData, match="column 'a', row 42 is empty"):
        File(str(path)).load()
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(BadData, match=r"is no readable \.parquet file"):
        File(str(path)).load()


def test_parquet_without_duckdb_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"pip install 'flowzoo\[parquet\]'"):
        File(str(tmp_path / "rows.parquet")).load()


# bad files: (file name, what writes it, what the sentence must say)


def changed(row, column, value, n=200):
    values = table(n)
    values[row, column] = value
    return values


def csv_of(*lines):
    good = [f"{i},{i * i},{i % 7}" for i in range(100)]
    text = "\n".join([lines[0], *good[:20], *lines[1:], *good[20:]]) + "\n"
    return lambda path: path.write_text(text)


def save(values, **options):
    return lambda path: np.save(path, values, **options)


def savez(**arrays):
    return lambda path: np.savez(path, **arrays)


def cut(write, keep):
    def truncated(path):
        write(path)
        path.write_bytes(path.read_bytes()[:keep])

    return truncated


BAD_FILES = {
    "csv NaN": ("x.csv", csv_of("a,b,c", "1,nan,3"), "column 'b', row 22 is NaN"),
    "csv NaN without header": ("x.csv", csv_of("1,2,3", "1,NaN,3"), "column 2, row 22 is NaN"),
    "csv infinite": ("x.csv", csv_of("a,b,c", "1,2,-inf"), "row 22 is not finite: -inf"),
    "csv overflow": ("x.csv", csv_of("a,b,c", "1e999,2,3"), "column 'a', row 22 is not finite"),
    "csv missing value": ("x.csv", csv_of("a,b,c", "1, ,3"), "column 'b', row 22 is empty"),
    "csv text": ("x.csv", csv_of("a,b,c", "1,2,?"), "column 'c', row 22 is not a number: '?'"),
    "csv after empty lines": ("x.csv", csv_of("a,b,c", "", "", "1,2,x"), "'c', row 24 is not"),
    "csv counts the header": ("x.csv", csv_of("a,b,c", "x,1,1"), "the header included"),
    "csv text in row 1": ("x.csv", csv_of("1,setosa,3"), "column 2, row 1 .*'setosa'"),
    "csv short row": ("x.csv", csv_of("a,b,c", "1,2"), "row 22 has 2 cells where 3 are expected"),
    "csv long row": ("x.csv", csv_of("a,b,c", "1,2,3,4"), "row 22 has 4 cells where 3"),
    "csv cut off": ("x.csv", cut(csv_of("a,b,c"), -4), "row 101 has 2 cells.*may be truncated"),
    "csv header only": ("x.csv", lambda p: p.write_text("a,b\n"), "has a header but no rows"),
    "csv blank": ("x.csv", lambda p: p.write_text("\n\n"), "is empty"),
    "csv empty": ("x.csv", lambda p: p.write_text(""), "is empty"),
    "csv binary": ("x.csv", lambda p: p.write_bytes(b"\xff\xfe\x00\x81" * 9), "is not UTF-8 text"),
    "csv constant": (
        "x.csv",
        lambda p: write_csv(p, np.c_[table(), np.full(200, 0.1)], list("abcd")),
        "column 'd' is constant in the training rows .always 0.1.",
    ),
    "csv few rows": ("x.csv", lambda p: write_csv(p, table(40)), "gives 4 val rows.*at least 10"),
    "npy NaN": ("x.npy", save(changed(6, 1, np.nan)), "column 2, row 7 is NaN.*counted from 1"),
    "npy infinite": ("x.npy", save(changed(0, 2, np.inf)), "column 3, row 1 is not finite: inf"),
    "npy constant": ("x.npy", save(np.ones((200, 2))), "column '1' is constant"),
    "npy huge": ("x.npy", save(table() * 1e200), "has no usable standard deviation"),
    "npy text": ("x.npy", save(np.array([["1", "2"], ["3", "x"]])), "column 2, row 2 .*'x'"),
    "npy dates": ("x.npy", save(np.zeros((90, 2), "M8[s]")), "holds values of type datetime64"),
    "npy records": ("x.npy", save(np.zeros(90, "f8,f8")), "is a structured array"),
    "npy complex": ("x.npy", save(table() + 0j), "holds complex numbers"),
    "npy 1-D": ("x.npy", save(table().ravel()), "has 1 dimension, shape .600,."),
    "npy 3-D": ("x.npy", save(np.zeros((5, 4, 3))), "has 3 dimensions"),
    "npy 0 columns": ("x.npy", save(np.zeros((50, 0))), "has no columns"),
    "npy pickled": (
        "x.npy",
        save(np.array([[1, None]], dtype=object), allow_pickle=True),
        "holds pickled objects",
    ),
    "npy cut off": ("x.npy", cut(save(table()), 700), "is truncated or damaged"),
    "npy cut header": ("x.npy", cut(save(table()), 30), "is truncated or damaged"),
    "npy of something else": ("x.npy", lambda p: p.write_text("1,2,3\n" * 9), "is not in numpy's"),
    "npy empty": ("x.npy", lambda p: p.write_bytes(b""), "is empty"),
    "npz NaN": (
        "x.npz",
        savez(train=table(), val=changed(4, 0, np.nan), test=table()),
        "array 'val': column 1, row 5 is NaN",
    ),
    "npz widths": (
        "x.npz",
        savez(train=table(), val=table(), test=table(d=4)),
        "has 3 columns in train but 4 in test",
    ),
    "npz few rows": (
        "x.npz",
        savez(train=table(), val=table(9), test=table()),
        "gives 9 val rows",
    ),
    "npz two arrays": ("x.npz", savez(a=table(), b=table()), "it holds a, b"),
    "npz of one 1-D array": ("x.npz", savez(a=np.zeros(9)), "array 'a' has 1 dimension"),
    "npz pickled": ("x.npz", savez(a=np.array([[None]])), "array 'a' holds pickled objects"),
    "npz cut off": ("x.npz", cut(savez(a=table()), 900), r"is no readable \.npz archive"),
    "extension": ("x.xlsx", lambda p: p.write_text("1"), "unknown extension '.xlsx'"),
    "no extension": ("x", lambda p: p.write_text("1"), "unknown extension ''"),
    "folder": ("x.csv", lambda p: p.mkdir(), "is a folder"),
}


@pytest.mark.parametrize(("name", "write", "sentence"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_refused_in_one_sentence(tmp_path, name, write, sentence):
    path = tmp_path / name
    write(path)
    with pytest.raises(BadData) as caught:
        File(str(path)).load()
    message = str(caught.value)
    assert re.search(sentence, message), message
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith(".")


def test_a_bad_cell_far_down_is_named_by_its_line(tmp_path):
    values = table(20_000)
    values[19_990, 2] = np.inf
    path = write_csv(tmp_path / "rows.csv", values, ["a", "b", "c"])
    with pytest.raises(BadData, match="column 'c', row 19992 is not finite"):
        File(str(path)).load()


def test_missing_files_suggest_similar_names(tmp_path):
    (tmp_path / "measurements.csv").write_text("1\n")
    with pytest.raises(BadData, match=r"no file .*mesurements.csv; did you mean measurements.csv"):
        File(str(tmp_path / "mesurements.csv")).load()
    with pytest.raises(BadData, match=r"the folder .*nowhere does not exist"):
        File(str(tmp_path / "nowhere" / "x.csv")).load()
    with pytest.raises(BadData, match="no file"):
        File(str(tmp_path / "gone.npy")).fingerprint()


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (["temprature"], "no column 'temprature'; did you mean temperature?"),
        (["zzz"], "no column 'zzz'; it has temperature, b, b"),
        (["b"], "2 columns named 'b'"),
        (["temperature", "temperature"], "names 'temperature' twice"),
        ([], "the option columns is empty"),
    ],
)
def test_unknown_columns_are_refused(tmp_path, columns, sentence):
    path = write_csv(tmp_path / "x.csv", table(), ["temperature", "b", "b"])
    with pytest.raises(BadData, match=re.escape(sentence)):
        File(str(path), columns=columns).load()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"val_fraction": 0.0}, "val_fraction 0.0"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave rows for training"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_options_out_of_range_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        File("x.csv", **options)


def test_a_header_is_an_option_of_csv_only(tmp_path):
    np.save(tmp_path / "x.npy", table())
    with pytest.raises(BadData, match=r"for \.csv files only"):
        File(str(tmp_path / "x.npy"), header=True).load()


def test_validate_checks_names_and_contexts():
    rows = torch.from_numpy(table())
    with pytest.raises(BadData, match="names 1 columns but has 3"):
        validate(Data("x", rows, rows, rows, columns=("a",)), "x")
    with pytest.raises(BadData, match="200 val rows but none of context"):
        validate(Data("x", rows, rows, rows, train_context=rows), "x")
    contexts = {f"{split}_context": rows for split in SPLITS}
    data = Data("x", rows, rows, rows, columns=("a", "b", "c"), **contexts)
    assert validate(data, "x") is data


# published preprocessing: arithmetic on synthetic raw files


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
    np.testing.assert_array_equal(BSDS300(root=str(tmp_path)).load().test, finished["test"])
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
