"""Oracles against stored flows along linear paths, which run from noise to data: 1 - t, -v."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flowzoo.data.oracles import GaussianOracle, MixtureOracle

GOLDEN = Path(__file__).parent / "golden" / "matching"


def integrate(velocity, x, t0, t1, steps):
    h = (t1 - t0) / steps
    for i in range(steps):
        t = t0 + i * h
        k1 = velocity(t, x)
        k2 = velocity(t + h / 2, x + h / 2 * k1)
        k3 = velocity(t + h / 2, x + h / 2 * k2)
        k4 = velocity(t + h, x + h * k3)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def golden(name):
    with np.load(GOLDEN / name) as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files}


def test_mixture_agrees_with_the_golden_flow():
    g = golden("mixture_oracle.npz")
    oracle = MixtureOracle(g["w"], g["mu"], float(g["tau"]))
    tight = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(oracle.log_prob(g["x"]), g["logp"], **tight)
    torch.testing.assert_close(-oracle.matching_velocity(1 - g["t"], g["x0"]), g["u"], **tight)
    torch.testing.assert_close(-oracle.matching_divergence(1 - g["t"], g["x0"]), g["div"], **tight)
    data = integrate(oracle.matching_velocity, g["x0"], 1.0, 0.0, 400)
    noise = integrate(oracle.matching_velocity, g["x"], 0.0, 1.0, 400)
    torch.testing.assert_close(data, g["x1"], rtol=0, atol=1e-6)
    torch.testing.assert_close(noise, g["z0"], rtol=0, atol=1e-6)


def test_gaussian_agrees_with_the_golden_flow():
    g = golden("gaussian_flow.npz")
    oracle = GaussianOracle.of(g["m"], torch.diag(g["s"] ** 2))
    tight = {"rtol": 0, "atol": 1e-8}
    torch.testing.assert_close(-oracle.matching_velocity(1 - g["t"], g["x"]), g["u"], **tight)
    torch.testing.assert_close(-oracle.matching_divergence(1 - g["t"], g["x"]), g["div"], **tight)
    torch.testing.assert_close(oracle.inverse_transport(g["x"]), g["map_x1"], **tight)
    torch.testing.assert_close(oracle.log_prob(g["x"]), g["logp1_at_x"], **tight)
    assert oracle.w2_squared == pytest.approx(float(g["w2sq"]), abs=1e-12)
    ends = integrate(oracle.matching_velocity, g["x"], 1.0, 0.0, 200)
    torch.testing.assert_close(ends, g["map_x1"], rtol=0, atol=1e-6)
