"""Checkpoints on disk: files that cannot be used, and a disk that is full."""

from __future__ import annotations

import errno
import json
import os
import warnings
from dataclasses import replace

import pytest
import torch
from tiny_flows import (
    BUSY,
    BlockByBlock,
    Killed,
    Loud,
    Shift,
    chain,
    killed_at,
    points,
    running,
    same_weights,
)

from flowzoo.errors import UserError
from flowzoo.files import replace_file
from flowzoo.flow import Chain
from flowzoo.settings import Budget, Optimizer
from flowzoo.training import fit
from flowzoo.training.checkpoint import Folder

# --- files that cannot be used -------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    running(Shift, Loud, folder=tmp_path)
    return tmp_path / "checkpoint.pt"


def flipped(data):
    middle = bytearray(data)
    at = data.index(b"mu") if b"mu" in data else len(data) // 2
    middle[at] ^= 1
    return bytes(middle)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-100], lambda data: data[: len(data) // 2], lambda data: b"", flipped],
    ids=["cut", "half", "empty", "flipped"],
)
def test_a_damaged_checkpoint_is_named(saved, damage):
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(UserError, match=r"checkpoint\.pt .*delete it to start anew") as caught:
        running(Shift, Loud, folder=saved.parent)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_a_weight_is_noticed(saved):
    state = torch.load(saved, weights_only=True)
    weight = state["weights"]["mu"].numpy().tobytes()
    data = bytearray(saved.read_bytes())
    data[data.index(weight)] ^= 1
    saved.write_bytes(data)
    with pytest.raises(UserError, match="checksum"):
        running(Shift, Loud, folder=saved.parent)


def test_a_torch_file_of_another_kind_is_refused(saved):
    torch.save({"weights": {}}, saved)
    with pytest.raises(UserError, match="no checkpoint of this version"):
        running(Shift, Loud, folder=saved.parent)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Shift(3), r"mu was of shape \(2,\) and is of shape \(3,\) now"),
        (lambda: Chain([Shift()]), "blocks.0.mu was absent and is of shape"),
    ],
)
def test_a_checkpoint_of_another_composition_is_refused(saved, make, sentence):
    flow = make()
    with pytest.raises(UserError, match=sentence):
        fit(flow, Loud(), points(dim=flow.dim), budget=Budget(steps=30), folder=saved.parent)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seed": 5}, "seed was 0 and is 5 now"),
        ({"steps": 31}, "budget.steps was 30 and is 31 now"),
        (
            {"training": replace(BUSY, optimizer=Optimizer(lr=0.03))},
            "training.optimizer.lr was 0.3 and is 0.03 now",
        ),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused(saved, change, sentence):
    with pytest.raises(UserError, match=sentence):
        running(Shift, Loud, folder=saved.parent, **change)


def test_a_checkpoint_of_other_data_is_refused(saved):
    with pytest.raises(UserError, match="checksum of the training data"):
        fit(
            Shift(),
            Loud(),
            points(mean=1.001),
            points(40, mean=1.0, seed=1),
            budget=Budget(steps=30),
            training=BUSY,
            folder=saved.parent,
        )


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/fit cannot be used for checkpoints"):
        running(Shift, Loud, folder=tmp_path / "file" / "fit")


# --- a disk that is full -------------------------------------------------------------------------


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_a_warning_and_no_more(tmp_path, monkeypatch):
    whole = running(chain, BlockByBlock)
    kept = {"folder": tmp_path, "checkpoint_every": 0.0}
    with pytest.raises(Killed):
        running(chain, BlockByBlock, observe=killed_at(8), **kept)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(os, "fsync", full)
        finished = running(chain, BlockByBlock, **kept)
    (message,) = [str(w.message) for w in caught if w.category is RuntimeWarning]
    assert message.startswith(f"cannot write to {tmp_path} (No space left on device)")
    assert same_weights(whole.flow, finished.flow)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "curve.jsonl"]
    resumed = running(chain, BlockByBlock, **kept)
    assert same_weights(whole.flow, resumed.flow)


def test_a_curve_that_could_not_be_written_is_written_whole_later(tmp_path, monkeypatch):
    folder = Folder(tmp_path, {})
    rows = [{"step": k} for k in range(4)]
    folder.write_curve(rows[:1])
    folder.write_curve(rows[:2])
    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "open", full)
        with pytest.warns(RuntimeWarning, match="cannot write"):
            folder.write_curve(rows[:3])
    (tmp_path / "curve.jsonl").write_text('{"step": 0}\n{"st')
    folder.write_curve(rows)
    lines = (tmp_path / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a"
    replace_file(path, lambda file: file.write_bytes(b"old"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            replace_file(path, lambda file: file.write_bytes(b"new"))
    assert path.read_bytes() == b"old"
    replace_file(path, lambda file: file.write_bytes(b"new"))
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
