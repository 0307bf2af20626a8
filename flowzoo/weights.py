"""Weights in other people's files: tensors and plain settings, read without running what they hold.

A `.pth` file is a pickle, and a pickle is a program. It is read by torch's `weights_only` reader,
which knows tensors and plain containers; of all classes it is allowed `argparse.Namespace` alone,
in which published checkpoints keep their command line. Anything else is refused by its name.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from flowzoo.errors import BadData, UserError

_STATES = ("state_dict/", "model/", "param/")  # below which files keep a model's own tensors
_ARGUMENTS = "args/"  # below which they keep the command line
_ZIP, _PICKLE = b"PK", b"\x80"  # how torch's files begin, new and old
_NUMBERS = "biuf"  # numpy's kinds of numbers
_PLAIN = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class Weights:
    """What a file of weights holds. Names of nested entries are joined by `/`.

    Arguments:
        tensors: Tensors by name, on the CPU, as in `state_dict/A` or `param/A`.
        settings: Numbers, texts, and lists of them by name, as in `args/nt`.
    """

    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """What stands before the names of the model's own tensors, '' where nothing does.

        That is `state_dict/`, `model/` or `param/`, the first below which there are tensors.
        """
        found = (p for p in _STATES if any(name.startswith(p) for name in self.tensors))
        return next(found, "")

    def model(self) -> dict[str, Tensor]:
        """Return the model's own tensors, named without `prefix`."""
        p = self.prefix
        return {name[len(p) :]: v for name, v in self.tensors.items() if name.startswith(p)}

    def others(self) -> tuple[str, ...]:
        """Return the names of the tensors that are not the model's own, e.g. an optimizer's."""
        return tuple(name for name in self.tensors if not name.startswith(self.prefix))

    def setting(self, name: str, default: Any = None) -> Any:
        """Return a setting, be it at the top, among the arguments, or a list stored as a tensor."""
        for key in (name, _ARGUMENTS + name):
            if key in self.settings:
                return self.settings[key]
            if key in self.tensors:
                return self.tensors[key].tolist()
        return default


def fill(module: nn.Module, state: Mapping[str, Any], what: str) -> None:
    """Load published weights, under the module's own names, into it.

    Axes of length 1 need not be the same: published codes keep numbers and vectors as matrices.

    Arguments:
        module: What is filled.
        state: Arrays or tensors by name, all that the module has and no others.
        what: What the module is and which of its sizes to check, for the error.

    Raises:
        UserError: Names or shapes are not those of the module.
    """
    ours, given = module.state_dict(), {}
    for name, value in state.items():
        value, like = torch.as_tensor(value), ours.get(name)
        if like is not None and value.squeeze().shape == like.squeeze().shape:
            value = value.reshape(like.shape)
        given[name] = value
    try:
        module.load_state_dict(given)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise UserError(f"these weights are not of this {what}; {said}") from error


def read_weights(path: str | Path) -> Weights:
    """Return the tensors and settings of a .npz, .safetensors, .pth or .pt file.

    Nothing in the file is run, and no class is made but tensors, containers and
    `argparse.Namespace`. Texts in the metadata of a .safetensors file that are JSON are read so.

    Raises:
        BadData: The file is missing, empty, damaged, of another format, holds no tensors, or
            objects that would have to be unpickled; the sentence names these.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if path.is_dir():
        raise BadData(f"{path} is a folder; name a file of weights ({', '.join(_READERS)})")
    if not path.is_file():
        raise BadData(f"there is no file {path}")
    if reader is None:
        raise BadData(f"{path} is no file of weights: its name must end in {', '.join(_READERS)}")
    if not path.stat().st_size:
        raise BadData(f"{path} is empty; get the file again")
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for name, value in _flat(reader(path), path):
        (tensors if isinstance(value, Tensor) else settings)[name] = value
    if not tensors:
        raise BadData(f"{path} holds no named tensors")
    return Weights(tensors, settings)


def _flat(content: Mapping[Any, Any], path: Path) -> Iterator[tuple[str, Any]]:
    """Yield tensors and plain values of nested containers, their names joined by `/`."""
    todo, seen = [("", content, frozenset[int]())], 0
    while todo:
        name, value, above = todo.pop()
        inner = _inner(value)
        if inner is None:
            yield name, value.detach() if isinstance(value, Tensor) else _plain(value)
            continue
        seen += 1
        if id(value) in above or seen > 100_000:
            raise BadData(f"{path} is no checkpoint: {name or 'its content'} is nested endlessly")
        above, start = above | {id(value)}, f"{name}/" if name else ""
        todo += [(f"{start}{key}", item, above) for key, item in reversed(inner.items())]


def _inner(value: Any) -> dict[Any, Any] | None:
    """Return what a container holds; None for what is none, as a list of plain values is not."""
    if isinstance(value, argparse.Namespace):
        return vars(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple) and not all(isinstance(item, _PLAIN) for item in value):
        return dict(enumerate(value))
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return list(value)
    return value if isinstance(value, _PLAIN) else str(value)


def _npz(path: Path) -> dict[str, Any]:
    """Read numpy's arrays; texts, and single numbers that are in no group, are settings."""
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise BadData(f"{path} holds one array without a name; save it by numpy.savez")
        with archive:
            return {name: _array(name, _stored(archive, name, path), path) for name in archive}
    except BadData:
        raise
    except Exception as error:  # whatever numpy and zlib make of a damaged file
        raise BadData(_damaged(path, "no .npz file", error)) from error


def _stored(archive: Mapping[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    try:
        return archive[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise BadData(_refused(path, f"Python objects (array '{name}')")) from error


def _array(name: str, value: np.ndarray, path: Path) -> Any:
    kind = value.dtype.kind
    if kind == "U" or (kind in _NUMBERS and not value.ndim and "/" not in name):
        return value.tolist()
    try:
        if kind in _NUMBERS:
            return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    except TypeError:
        pass  # numbers that torch does not have, as long doubles
    raise BadData(f"{path}: array '{name}' is of type {value.dtype}, which no tensor has")


def _safetensors(path: Path) -> dict[str, Any]:
    """Read the tensors and, as settings, the metadata."""
    try:
        with safe_open(path, "pt") as file:
            found: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            texts = file.metadata() or {}
    except (OSError, SafetensorError, RuntimeError) as error:
        raise BadData(_damaged(path, "no .safetensors file", error)) from error
    return {**{key: _json(text) for key, text in texts.items()}, **found}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _torch(path: Path) -> Mapping[Any, Any]:
    """Read what `torch.save` wrote, tensors and plain containers only."""
    what, written = "not written by torch.save", path.read_bytes()
    try:
        if not written.startswith((_ZIP, _PICKLE)):
            raise ValueError("it begins as no checkpoint does")
        if written.startswith(_ZIP):
            with zipfile.ZipFile(path) as archive:  # torch reads flipped bits without a word
                wrong = archive.testzip()
            if wrong:
                raise ValueError(f"the checksum of {wrong} is wrong")
        # From memory, because torch tries files for its oldest format, a tar, which some versions
        # unpack without its restrictions.
        with _allowed(argparse.Namespace), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(io.BytesIO(written), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch makes of a damaged file
        if foreign := _foreign(error, written):
            raise BadData(_refused(path, foreign)) from error
        raise BadData(_damaged(path, what, error)) from error
    if not isinstance(content, Mapping):
        raise BadData(f"{path} holds a {type(content).__name__}, not tensors by name")
    return content


@contextmanager
def _allowed(*classes: type) -> Iterator[None]:
    """Let torch's reader make these classes and no others that anybody has allowed it."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([*classes])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _foreign(error: BaseException, written: bytes) -> str:
    """Return in words what torch refused to load; empty where it did not refuse."""
    found = re.search(r"GLOBAL ([\w.<>]*[\w>])\s", str(error))
    if found:
        return f"the object {found[1] if '.' in found[1] else 'builtins.' + found[1]}"
    # An instruction that torch does not know is an error in a pickle of its own protocol, 2.
    strange = "Unsupported operand" in str(error) and written[:2] != _PICKLE + b"\2"
    return "a pickle of another protocol than torch.save's" if strange else ""


def _refused(path: Path, what: str) -> str:
    return (
        f"{path} holds {what}, which could run any code when unpickled, so it is not read; where "
        "you trust it, save its tensors alone, by safetensors or numpy.savez"
    )


def _damaged(path: Path, what: str, error: BaseException) -> str:
    # Before and after what its reader found, torch says how to read a file without precautions.
    said = str(error).rpartition("WeightsUnpickler error:")[2].partition("Check the doc")[0]
    reason = ": ".join(filter(None, (type(error).__name__, " ".join(said.split())[:120])))
    return f"{path} is damaged, or {what} ({reason})"


_READERS: dict[str, Callable[[Path], Mapping[Any, Any]]] = {
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".pth": _torch,
    ".pt": _torch,
}
