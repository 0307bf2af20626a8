"""Files: what is read back, published preprocessing on synthetic raw files, and what is refused."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import torch
from tables import table, write_csv

from flowzoo.data.files import File
from flowzoo.errors import BadData, UserError


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
