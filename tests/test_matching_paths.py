"""Schedules, paths and conversions of matching against published values.

The golden files run from source (t = 0) to data (t = 1); ours is 1 - t with velocities turned.
"""

from __future__ import annotations

import pytest
import torch
from matching_oracles import F64, MEMBERS, close, golden, member
from oracles import make, names

from flowzoo_matching.path import Affine
from flowzoo_matching.schedule import OT, VP, Cosine

QUANTITIES = ["velocity", "data", "noise", "score"]


@pytest.fixture(scope="module")
def paths():
    return golden("paths")


@pytest.mark.parametrize("key", MEMBERS)
def test_schedules_and_paths_match_published_values(key, paths):
    want = member(paths, key)
    t = 1 - paths["t_interior"]
    at = MEMBERS[key].at(t)
    close(at.alpha, want["alpha"])
    close(at.sigma, want["sigma"])
    close(at.d_alpha, -want["d_alpha"])
    close(at.d_sigma, -want["d_sigma"])
    sample = Affine(MEMBERS[key]).sample(t, paths["x1"], paths["x0"])
    close(sample.x, want["xt"])
    close(sample.v, -want["ut"])


@pytest.mark.parametrize("key", MEMBERS)
def test_endpoints_are_published_values_infinities_included(key, paths):
    at = MEMBERS[key].at(1 - paths["t"])
    for name, sign in [("alpha", 1), ("sigma", 1), ("d_alpha", -1), ("d_sigma", -1)]:
        # t = 0.999 is rounded differently in 1 - t, where d_sigma is steep.
        close(getattr(at, name), sign * member(paths, key)[f"endpoints_{name}"], rtol=1e-11)


@pytest.mark.parametrize("key", MEMBERS)
def test_conversions_match_published_values(key, paths):
    path, want = Affine(MEMBERS[key]), member(paths, key)
    t, x, data, noise = 1 - paths["t_interior"], want["xt"], paths["x1"], paths["x0"]
    v = -want["ut"]
    close(path.convert(t, x, v, "velocity", "data"), want["x1_from_v"], 1e-8)
    close(path.convert(t, x, v, "velocity", "noise"), want["eps_from_v"], 1e-8)
    close(path.convert(t, x, data, "data", "velocity"), -want["v_from_x1"], 1e-8)
    close(path.convert(t, x, data, "data", "noise"), want["eps_from_x1"], 1e-8)
    close(path.convert(t, x, noise, "noise", "velocity"), -want["v_from_eps"], 1e-8)
    close(path.convert(t, x, noise, "noise", "data"), want["x1_from_eps"], 1e-8)
    close(path.convert(t, x, v, "velocity", "score"), want["score"], 1e-8)


@pytest.mark.parametrize(
    ("key", "schedule"),
    [
        ("icfm_s0", OT()),
        ("vptrig_s0", Cosine()),
        ("fm_s0", OT()),
        ("fm_s1e-4", OT(1e-4)),
        ("fm_s01", OT(0.1)),
    ],
)
def test_torchcfm_paths(key, schedule, paths):
    """Its flow matching ignores the source and mixes in the noise instead."""
    t, noise = 1 - paths[f"cfm/{key}/t"], paths["eps" if key.startswith("fm") else "x0"]
    sample = Affine(schedule).sample(t, paths["x1"], noise)
    close(sample.x, paths[f"cfm/{key}/xt"])
    close(sample.v, -paths[f"cfm/{key}/ut"])


def test_the_ot_target_is_exact_at_both_ends(paths):
    """Written as a quotient by sigma it would be 0 / 0 at the data."""
    x, z = paths["x1"], paths["x0"]
    for sigma_min in (0.0, 1e-4):
        for t in (0.0, 1.0):
            sample = Affine(OT(sigma_min)).sample(torch.full((8,), t, dtype=F64), x, z)
            close(sample.v, (1 - sigma_min) * z - x)


def test_rectified_flow_path(paths):
    path = Affine(OT(), t_range=(0.0, 0.999))
    sample = path.sample(1 - paths["rf/t"], paths["x1"], paths["x0"])
    close(sample.x, paths["rf/xt"])
    close(sample.v, -paths["rf/ut"])


def test_score_sde_runs_in_our_time(paths):
    t = paths["scoresde/t"]
    at, path = VP().at(t), Affine(VP())
    close(at.alpha, paths["scoresde/mean_coef"])
    close(at.sigma, paths["scoresde/std"])
    close(-2 * at.d_alpha / at.alpha, paths["scoresde/beta"])
    x, score = paths["scoresde/xt"], paths["scoresde/score"]
    close(path.convert(t, x, score, "score", "velocity"), paths["scoresde/pf_drift"], 1e-8)


@pytest.mark.parametrize("name", names("schedule"))
def test_registered_schedules_go_from_data_to_noise(name):
    schedule = make("schedule", name)
    low, high = schedule.t_range
    ends = schedule.at(torch.tensor([0.0, 1.0], dtype=F64))
    # One that leaves more at its ends says so; how much is tested where it is.
    left, rest = (0.01, 0.02) if "ends" in getattr(schedule, "expected_failures", {}) else (0, 0.01)
    close(torch.stack([ends.alpha[0], ends.sigma[0]]), torch.tensor([1.0, 0.0], dtype=F64), left)
    assert ends.alpha[1] < rest
    assert abs(ends.sigma[1] - 1) < rest**2
    t = torch.linspace(low, high, 41, dtype=F64).requires_grad_()
    at = schedule.at(t)
    for value, rate in ((at.alpha, at.d_alpha), (at.sigma, at.d_sigma)):
        assert rate.isfinite().all()
        (slope,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        close(rate, slope, 1e-12, rtol=1e-10)


@pytest.mark.parametrize("given", QUANTITIES)
@pytest.mark.parametrize("wanted", QUANTITIES)
@pytest.mark.parametrize("name", names("schedule"))
def test_conversions_invert_each_other(name, given, wanted, places):
    path, x, z = Affine(make("schedule", name)), places(8), places(8, seed=1)
    t = torch.linspace(0.1, 0.9, 8, dtype=F64)
    sample = path.sample(t, x, z)
    score = -z / path.schedule.at(t[:, None]).sigma
    truth = {"velocity": sample.v, "data": x, "noise": z, "score": score}
    close(path.convert(t, sample.x, truth[given], given, wanted), truth[wanted], 1e-8, rtol=1e-8)
    alone = path.convert(t[3], sample.x[3:4], truth[given][3:4], given, wanted)
    close(alone, truth[wanted][3:4], 1e-8, rtol=1e-8)
