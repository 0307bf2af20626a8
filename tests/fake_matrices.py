"""Matrices of cheap fakes, for tests of the bench."""

from __future__ import annotations

import shutil
from pathlib import Path

FAKES = Path(__file__).parent / "bench_fakes" / "fakes.py"
RECIPE = """
recipes:
  affine:
    title: Affine
    flow: affine
    objective: likelihood
    training: {batch_size: 50, validate_every: 20}
    budget: {steps: 40}
"""


def make(folder, text, name="m.yaml"):
    """Write a matrix with its recipe and plugin; return its path."""
    folder.mkdir(exist_ok=True)
    shutil.copy(FAKES, folder / "fakes.py")
    (folder / "mine.yaml").write_text(RECIPE)
    (folder / name).write_text("recipes: [mine.yaml]\nplugins: [fakes.py]\n" + text)
    return folder / name
