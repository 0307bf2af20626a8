"""Files that cannot be used are refused with one sentence that names file, column and row."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from tables import SPLITS, table, write_csv

from flowzoo.data import Data, validate
from flowzoo.data.files import File
from flowzoo.errors import BadData, UserError

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
