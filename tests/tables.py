"""Tables of numbers and csv files of them, for tests of the loaders."""

from __future__ import annotations

import numpy as np

SPLITS = ("train", "val", "test")


def table(n=200, d=3, seed=0):
    return np.random.RandomState(seed).randn(n, d)


def write_csv(path, values, names=None, delimiter=","):
    lines = [delimiter.join(names)] if names else []
    lines += [delimiter.join(repr(float(cell)) for cell in row) for row in values]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
