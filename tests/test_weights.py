"""Reading weights of others: what is in a file arrives, and nothing in it runs."""

from __future__ import annotations

import argparse
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flowzoo.errors import BadData
from flowzoo.weights import Weights, read_weights

RAN = "ran"  # a file that appears when a pickle is run


class Command:
    """Unpickled, it runs a command of the shell."""

    def __reduce__(self):
        return os.system, (f"touch {RAN}",)


class Plain:
    """An object that does no harm, but might."""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in an empty folder, in which nothing must have run in the end."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / RAN).exists()


def checkpoint(**more):
    state = OrderedDict(A=torch.arange(6.0).reshape(2, 3), b=torch.nn.Parameter(torch.ones(2)))
    args = argparse.Namespace(nt=8, alph=[1.0, 30.0, 15.0], data="swissroll", resume=None, lr=1e-2)
    return {"state_dict": state, "args": args, **more}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".PTH"])
def test_a_published_checkpoint(zipped, suffix):
    torch.save(checkpoint(epoch=3), f"c{suffix}", _use_new_zipfile_serialization=zipped)
    weights = read_weights(f"c{suffix}")
    assert list(weights.tensors) == ["state_dict/A", "state_dict/b"]
    assert torch.equal(weights.model()["A"], torch.arange(6.0).reshape(2, 3))
    assert not weights.model()["b"].requires_grad
    assert weights.settings == {
        "args/nt": 8,
        "args/alph": [1.0, 30.0, 15.0],
        "args/data": "swissroll",
        "args/resume": None,
        "args/lr": 1e-2,
        "epoch": 3,
    }
    assert weights.setting("nt") == 8
    assert weights.setting("epoch") == 3
    assert weights.setting("absent", 5) == 5


def test_what_stands_beside_the_model_is_told_apart():
    torch.save(
        checkpoint(optim={"state": {0: {"m": torch.ones(1)}}, "groups": [{"lr": 0.1}]}), "c.pt"
    )
    weights = read_weights("c.pt")
    assert weights.others() == ("optim/state/0/m",)
    assert list(weights.model()) == ["A", "b"]
    assert weights.settings["optim/groups/0/lr"] == 0.1


def test_a_state_alone_has_no_prefix():
    torch.save(checkpoint()["state_dict"], "c.pt")
    weights = read_weights("c.pt")
    assert list(weights.model()) == ["A", "b"]
    assert weights.others() == ()


def test_arrays_of_numpy():
    np.savez(
        "w.npz",
        **{"param/A": np.ones((2, 3)), "dJ/A": np.zeros((2, 3), np.float32)},
        nt=16,
        alph=np.array([1.0, 2.0]),
        big=np.arange(3, dtype=">f8"),
        data="moons",
    )
    weights = read_weights("w.npz")
    assert list(weights.model()) == ["A"]
    assert weights.others() == ("dJ/A", "alph", "big")
    assert weights.settings == {"nt": 16, "data": "moons"}
    assert weights.tensors["dJ/A"].dtype == torch.float32
    assert weights.tensors["big"].tolist() == [0.0, 1.0, 2.0]
    assert weights.setting("nt") == 16
    assert weights.setting("alph") == [1.0, 2.0]
    assert weights.setting("data") == "moons"


def test_safetensors_with_metadata():
    save_file({"A": torch.eye(2)}, "w.safetensors", {"nt": "12", "alph": "[1, 2.5]", "by": "me"})
    weights = read_weights(Path("w.safetensors"))
    assert torch.equal(weights.model()["A"], torch.eye(2))
    assert weights.settings == {"nt": 12, "alph": [1, 2.5], "by": "me"}


# What might run


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("what", "named"),
    [
        (Command(), f"{os.system.__module__}.system"),
        (Plain(), "test_weights.Plain"),
        (Path("a"), "pathlib"),
        (np.float64(1.0), "numpy"),
        (getattr, "builtins.getattr"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_objects_are_refused_by_name(what, named, zipped):
    for content in (checkpoint(extra=what), what, checkpoint(extra=[{"deep": what}])):
        torch.save(content, "c.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(BadData, match="could run any code when unpickled") as refused:
            read_weights("c.pth")
        assert named in str(refused.value)
        assert "Weights only" not in str(refused.value)


def test_an_object_inside_the_arguments_is_refused():
    args = argparse.Namespace(nt=8, hook=Command())
    torch.save({"state_dict": {"A": torch.ones(1)}, "args": args}, "c.pth")
    with pytest.raises(BadData, match="system"):
        read_weights("c.pth")


@pytest.mark.parametrize("protocol", range(6))
def test_a_plain_pickle_is_refused(protocol):
    Path("c.pth").write_bytes(pickle.dumps(Command(), protocol))
    with pytest.raises(BadData, match=r"c\.pth"):
        read_weights("c.pth")


def test_another_pickle_protocol_is_refused(recwarn):
    torch.save(checkpoint(extra=Command()), "c.pth", pickle_protocol=4)
    with pytest.raises(BadData, match=r"another protocol than .*, which could run"):
        read_weights("c.pth")
    assert not recwarn.list


def test_objects_in_arrays_are_refused():
    np.savez("w.npz", A=np.ones(2), o=np.array([Command()], dtype=object))
    with pytest.raises(BadData, match=r"Python objects \(array 'o'\), which could run"):
        read_weights("w.npz")
    Path("w.npz").write_bytes(pickle.dumps(Command()))
    with pytest.raises(BadData, match="damaged"):
        read_weights("w.npz")


def test_what_others_allow_torch_to_load_is_not_allowed_here():
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([Plain])
    try:
        torch.save(checkpoint(extra=Plain()), "c.pth")
        with pytest.raises(BadData, match="Plain"):
            read_weights("c.pth")
        assert set(torch.serialization.get_safe_globals()) == {*before, Plain}
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def test_no_allowance_stays_behind():
    before = torch.serialization.get_safe_globals()
    torch.save(checkpoint(), "c.pth")
    read_weights("c.pth")
    assert set(torch.serialization.get_safe_globals()) == set(before)
    with pytest.raises(pickle.UnpicklingError, match="Namespace"):
        torch.load("c.pth", weights_only=True)


# What cannot be read


def written(name):
    """Return the bytes of a right file of some format."""
    if name.endswith(".npz"):
        save = np.savez_compressed if name == "small.npz" else np.savez
        save(name, A=np.arange(64.0).reshape(8, 8) ** 3)
    elif name.endswith(".safetensors"):
        save_file({"A": torch.ones(8, 8)}, name)
    else:
        torch.save(checkpoint(), name, _use_new_zipfile_serialization=name != "old.pth")
    return Path(name).read_bytes()


@pytest.mark.parametrize(
    "name", ["w.npz", "small.npz", "w.safetensors", "w.pth", "old.pth", "w.pt"]
)
def test_a_damaged_file_is_one_sentence(name):
    right = written(name)
    read_weights(name)
    cuts = [1, 7, 60, len(right) // 2, len(right) - 1]
    for content in [right[:n] for n in cuts] + [b"hello", b"\x80\x02\0", b"\0" * 100]:
        Path(name).write_bytes(content)
        with pytest.raises(BadData, match=f"^{name} is damaged, or no"):
            read_weights(name)
    Path(name).write_bytes(b"")
    with pytest.raises(BadData, match=f"^{name} is empty"):
        read_weights(name)


@pytest.mark.parametrize("name", ["w.npz", "small.npz", "w.pth"])
def test_a_flipped_bit_is_noticed(name):
    content = bytearray(written(name))
    rows = {"w.npz": np.arange(64.0)[-4:] ** 3, "w.pth": np.ones(2, np.float32)}
    place = content.index(rows[name].tobytes()) + 7 if name in rows else len(content) // 2
    content[place] ^= 1
    Path(name).write_bytes(content)
    with pytest.raises(BadData, match="is damaged"):
        read_weights(name)


def test_a_file_that_is_none():
    Path("folder.pth").mkdir()
    Path("w.h5").write_bytes(b"x")
    for name, said in {
        "absent.pth": "there is no file absent.pth",
        "folder.pth": "folder.pth is a folder",
        "w.h5": "w.h5 is no file of weights: its name must end in .npz, .safetensors, .pth, .pt",
    }.items():
        with pytest.raises(BadData, match=said):
            read_weights(name)


@pytest.mark.parametrize("content", [[torch.ones(2)], torch.ones(2), 3])
def test_tensors_without_names(content):
    torch.save(content, "c.pt")
    with pytest.raises(BadData, match="not tensors by name"):
        read_weights("c.pt")


def test_files_without_tensors():
    torch.save({"args": argparse.Namespace(nt=3)}, "c.pt")
    np.savez("w.npz", note="hello")
    for name in ("c.pt", "w.npz"):
        with pytest.raises(BadData, match="holds no named tensors"):
            read_weights(name)
    np.save("one.npy", np.ones(3))
    os.rename("one.npy", "one.npz")
    with pytest.raises(BadData, match="one array without a name"):
        read_weights("one.npz")


def test_numbers_that_no_tensor_has():
    np.savez("w.npz", t=np.array(["2020-01-01"], dtype="datetime64[D]"))
    with pytest.raises(BadData, match=r"array 't' is of type datetime64\[D\]"):
        read_weights("w.npz")


def test_a_container_that_holds_itself():
    content = {"A": torch.ones(1)}
    content["again"] = content
    torch.save(content, "c.pt")
    with pytest.raises(BadData, match="nested endlessly"):
        read_weights("c.pt")


def test_settings_may_be_absent():
    weights = Weights({"A": torch.ones(1)})
    assert weights.setting("nt") is None
