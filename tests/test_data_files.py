"""Files: what is read back, published preprocessing on synthetic raw files, and what is refused."""

from __future__ import annotations

import os
import re
import sys

import numpy as np
import pytest
import torch
from tables import SPLITS, table, write_csv

from flowzoo.data import Data, validate
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
