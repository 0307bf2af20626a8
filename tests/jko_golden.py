"""The golden values of JKO-iFlow's blocks, and the networks that they were computed with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from flowzoo.continuous import Continuous
from flowzoo.integrators import RK438
from flowzoo_ffjord.velocity import ODENet
from flowzoo_jko_iflow.growing import Growing

FOLDER = Path(__file__).parent / "golden" / "jko"


def golden(name="blocks"):
    """Return a file of golden values as float64 tensors."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}


def network(values, prefix="w"):
    """Return a golden network: 3-16-16-3, softplus of 20 h, without time."""
    net = ODENet(3, (16, 16), layer="ignore", activation="softplus20").double()
    state = {
        f"layers.{i}.linear.{part}": values[f"{prefix}_{i}_{part}"]
        for i in range(3)
        for part in ("weight", "bias")
    }
    net.load_state_dict(state)
    return net


def block(values, steps=3, prefix="w", trace=None):
    """Return a golden block on steps of the 3/8 rule."""
    return Continuous(network(values, prefix), RK438(steps), trace)


def chain(values, steps=3):
    """Return the golden chain of three blocks."""
    return Growing([block(values, steps, f"m{k}") for k in range(3)]).double()
