"""Runs of tiny chains that were trained block by block, for tests of tables and pictures."""

from __future__ import annotations

import numpy as np
import yaml

from flowzoo.bench import Record, Store, load_matrix
from flowzoo.bench.cell import run_cell
from flowzoo.bench.store import write_record

_BLOCK = {
    "name": "continuous",
    "velocity": {"name": "mlp", "hidden": [4]},
    "integrator": {"name": "rk4", "steps": 2},
    "trace": "exact",
}
RECIPES = {
    "tiny": {
        "flow": {"name": "growing", "blocks": {"repeat": 3, "of": _BLOCK}},
        "objective": {"name": "jko", "steps": {"first": 0.5, "growth": 2.0}},
        "training": {"batch_size": 32, "validate_every": 5, "optimizer": {"lr": 0.02}},
        "budget": {"steps": 12},
    },
    "again": {
        "extends": "tiny",
        "objective": {"reparametrise": {"even": 0.0}, "fine_tune": {"share": 0.2}},
    },
    "short": {"extends": "tiny", "objective": {"stop": {"ratio": 1e9, "decrease": None}}},
    "noisy": {"extends": "tiny", "flow": {"blocks": {"of": {"trace": "hutchinson"}}}},
    "whole": {
        "flow": _BLOCK,
        "objective": "likelihood",
        "training": {"batch_size": 32, "validate_every": 5},
        "budget": {"steps": 2},
    },
}
SOLID = {"name": "gaussian", "dim": 3, "train": 100, "val": 50, "test": 50}


def oval(n):
    """Return points (n, 2) that are wide, oblique and far from 0."""
    x = np.random.RandomState(n).randn(n, 2)
    return 10 + x @ np.array([[3.0, 1.0], [0.0, 0.5]])


def write_files(folder):
    """Write the recipes and data to a folder; return the spec of the data, which are standardised.

    So the coordinates of data and flow differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump({"recipes": RECIPES}))
    np.savez(folder / "oval.npz", train=oval(200), val=oval(100), test=oval(80))
    return {"name": "file", "path": str(folder / "oval.npz")}


def run(folder, flows, seeds=(0,), data=()):
    """Run a matrix on the oval and more data in this process; return its store."""
    data = [write_files(folder), *data]
    matrix = {"recipes": ["tiny.yaml"], "flows": flows, "data": data, "seeds": list(seeds)}
    (folder / "m.yaml").write_text(yaml.safe_dump(matrix))
    store = Store(folder / "run")
    for cell in store.plan(load_matrix(folder / "m.yaml")):
        made = run_cell(cell, store.path(cell))
        assert made.state == "ok", made.reason
        write_record(store.path(cell), made)
    return store


def record(stages, label="chain", data="dots", seed=0, entropy=None, **more):
    """Return a record with these stages."""
    known = {"reference": {"entropy": entropy}, "state": "ok", **more}
    return Record(
        flow=label, data=data, seed=seed, stages=stages, folder=f"{label}-{seed}", **known
    )


def stage(name, block, nll, movement=0.5, **more):
    """Return the row of a stage."""
    return {"stage": name, "block": block, "h": 0.25, "nll": nll, "movement": movement, **more}
