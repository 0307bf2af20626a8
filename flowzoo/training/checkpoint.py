"""A fit on disk: a checkpoint that is whole at every moment, and the curve of the losses."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowzoo.errors import UserError
from flowzoo.files import replace_file

FORMAT = 2
NAME = "checkpoint.pt"
CURVE = "curve.jsonl"


class Folder:
    """The folder of one fit.

    `checkpoint.pt` is a torch file of tensors and plain values (`weights_only`); `curve.jsonl` has
    one row every few steps. A disk that is full costs a warning, not the fit: the previous
    checkpoint stays.

    Arguments:
        path: The folder, made when missing.
        settings: What must be the same when the fit is resumed, by name.

    Raises:
        UserError: The folder cannot be made.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, dict(settings)
        self._written: int | None = None  # rows of the curve on disk, None where unknown
        self._warned = False
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path} cannot be used for checkpoints: {error.strerror}") from error

    def load(self, weights: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the saved state, or None where there is none.

        Arguments:
            weights: The present flow's state, whose names and shapes the saved one must have.

        Raises:
            UserError: The file is damaged, of another composition or of another fit.
        """
        path = self.path / NAME
        if not path.exists():
            return None
        state = _read(path)
        for reason in (
            _changed_weights(state["weights"], weights),
            _changed_settings(state["settings"], self.settings),
        ):
            if reason:
                raise UserError(
                    f"{path} is of another fit: {reason}; use another folder, or delete it to "
                    "start anew"
                )
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint, and bring the curve up to it."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "settings": self.settings, **state}, buffer)
        try:
            replace_file(self.path / NAME, lambda file: file.write_bytes(buffer.getbuffer()))
        except OSError as error:
            self._warn(error)
        self.write_curve(state["curve"])

    def write_curve(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append the rows that are new; the first time the whole file is written."""
        path, new = self.path / CURVE, rows[self._written or 0 :]
        text = "".join(json.dumps(row) + "\n" for row in new).encode()
        try:
            if self._written is None:
                replace_file(path, lambda file: file.write_bytes(text))
            elif new:
                with path.open("ab") as file:
                    file.write(text)
            self._written = len(rows)
        except OSError as error:
            self._written = None  # half a row may be there: the next attempt writes all
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            warnings.warn(
                f"cannot write to {self.path} ({error.strerror or error}); the fit goes on, and an "
                "interruption falls back to the checkpoint before",
                RuntimeWarning,
                stacklevel=2,
            )
        self._warned = True


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:  # torch reads flipped bits without a word
            damaged = archive.testzip()
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch makes of a damaged file
        raise UserError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); delete it to start "
            "anew"
        ) from error
    if damaged:
        raise UserError(f"{path} is damaged (its checksum is wrong); delete it to start anew")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is no checkpoint of this version; delete it to start anew")
    return state


def _changed_weights(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Name the first weight in which two compositions differ."""
    for name in (*now, *then):
        a, b = _shape(then.get(name)), _shape(now.get(name))
        if a != b:
            return f"{name} was {a} and is {b} now"
    return None


def _shape(value: Any) -> str:
    if value is None:
        return "absent"
    return f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "present"


def _changed_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Name the first setting in which two fits differ."""
    for name in (*now, *then):
        a, b = then.get(name), now.get(name)
        if a != b:
            return f"{name} was {a} and is {b} now"
    return None
