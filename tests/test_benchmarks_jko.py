"""JKO-iFlow's benchmarks: the transcription is the published one, all sides agree, scripts run."""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jko_golden import golden, network
from oracles import F64, gap
from scipy.optimize import minimize

from flowzoo.traces import Exact
from flowzoo_ffjord.velocity import ODENet
from flowzoo_jko_iflow.difference import FiniteDifference
from flowzoo_jko_iflow.steps import reparametrised, unevenness

# The scripts import each other by these names, as they do when they are run.
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path += [str(BENCHMARKS), str(BENCHMARKS / "speed")]
NAMES = "machine published_jko jko_jobs jko_bytes jko gaussian_jko"
machine, published, jobs, kept, jko, gaussian = map(importlib.import_module, NAMES.split())

DOUBLE = machine.Machine("cpu", double=True)
TINY = [
    jobs.Case(2, (8, 7, 6), "ignore", 9, training=5),
    jobs.Case(5, (8, 8), "concat", 6, training=5),
]


@pytest.fixture(scope="module")
def values():
    return golden() | golden("adjoint")


@pytest.fixture(params=TINY, ids=["without time", "with time"])
def bench(request):
    return jobs.Bench(request.param, DOUBLE)


# --- the transcription ---------------------------------------------------------------------------


def golden_block(values, **more):
    return published.PublishedBlock(network(values), lambda _: values["e"], **more)


def test_the_published_divergence_is_the_golden_one(values):
    block, x = golden_block(values), values["x"]
    v, minus, zeros = block(torch.tensor(0.3, dtype=F64), (x, x.new_zeros(8), x.new_zeros(8)))
    assert gap(v, values["f_x"]) < 1e-12
    assert gap(-minus, values["div_fd_hutchinson"]) < 1e-9
    assert not zeros.any()


@pytest.mark.parametrize("steps", [1, 3, 8])
@pytest.mark.parametrize("adjoint", [True, False])
def test_the_published_map_is_the_golden_one(values, steps, adjoint):
    moved, minus_ladj, _ = golden_block(values).solve(values["x"], steps, adjoint)
    assert gap(moved, values[f"T_x_rk4_S{steps}"]) < 1e-12
    assert gap(minus_ladj, values[f"neg_int_div_fd_rk4_S{steps}"]) < 1e-9


@pytest.mark.parametrize("way", ["adjoint", "backprop"])
def test_the_published_gradients_are_the_golden_ones(values, way):
    """They are 4e-5 apart: the adjoint is not the gradient of the discrete map."""
    block, h = golden_block(values), float(values["h"])
    loss = block.loss(values["x"], h, 3, adjoint=way == "adjoint")
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in block.parameters()])
    expected = values[f"grad_total_fd_{way}"]
    assert gap(loss, values["loss_total_fd"]) < 1e-9
    assert (found - expected).norm() / expected.norm() < 1e-9
    assert (block.nfe.forward, block.nfe.backward) == (12, 12 if way == "adjoint" else 0)


def test_the_published_adjoint_goes_back_along_stale_noise(bench):
    """All solves but the last find the last one's noise: another gradient, of the same loss."""
    (loss, slope, _), (same, other, _) = (
        bench.step(jobs.published(adjoint=way)) for way in (False, True)
    )
    assert gap(loss, same) < 1e-12
    assert jko.distance(other, slope) > 0.02
    steady = (jobs.published(adjoint=way, same_noise=True) for way in (False, True))
    a, b = (bench.step(side)[1] for side in steady)
    assert jko.distance(b, a) < 0.01


def test_the_published_push_is_a_tight_solve(values):
    assert gap(golden_block(values).push(values["x"]), values["T_x_ref"]) < 1e-4
    assert gap(golden_block(values).push(values["x"]), values["T_x_rk4_S1"]) > 1e-4


@pytest.mark.parametrize(
    "option",
    [{"activation": "tanh"}, {"layer": "squash"}, {"residual": True}, {"context_dim": 1}],
)
def test_a_network_that_the_published_code_does_not_have_is_refused(option):
    usual = {"layer": "ignore", "activation": "softplus20"}
    with pytest.raises(AssertionError):
        published.PublishedBlock(ODENet(2, (4,), **(usual | option)))


# --- the sides -----------------------------------------------------------------------------------


def test_exact_sides_have_one_loss_and_backprop_one_gradient(bench):
    found = {name: bench.step(side) for name, side in jobs.STEP_SIDES.items() if "exact" in name}
    loss, slope, _ = found["exact"]
    assert len(slope) == sum(p.numel() for p in bench.net.parameters())
    assert all(gap(other, loss) < 1e-12 for other, _, _ in found.values())
    assert jko.distance(found["exact recompute"][1], slope) < 1e-12
    assert 1e-9 < jko.distance(found["exact adjoint"][1], slope) < 1e-2


def test_both_ways_to_hutchinsons_product_are_one(bench):
    (loss, slope, _), (same, other, _) = (
        bench.step(jobs.STEP_SIDES[name]) for name in ("hutchinson", "hutchinson autograd")
    )
    assert gap(loss, same) < 1e-11
    assert jko.distance(other, slope) < 1e-10


def test_sides_on_the_same_noise_agree_and_others_stop(bench, monkeypatch):
    jko.require_alike(bench, "tiny")
    ours = jobs.ours

    def elsewhere(trace):
        return ours(FiniteDifference(sigma0=0.1))

    monkeypatch.setattr(jko, "ours", elsewhere)
    with pytest.raises(SystemExit, match="nothing to compare"):
        jko.require_alike(bench, "tiny")


def test_a_case_has_the_same_weights_each_time(bench):
    again = jobs.Bench(replace(bench.case, rows=4), DOUBLE)
    assert all(map(torch.equal, bench.net.parameters(), again.net.parameters()))
    fresh = bench.case.fresh().double()
    assert gap(next(fresh.parameters()), next(bench.net.parameters())) > 1e-4


# --- bytes ---------------------------------------------------------------------------------------


def test_bytes_of_a_product_by_hand():
    """y = (x W) (x W) keeps x W once; x and W do not count, nor what is gone."""
    x, w = torch.ones(3, 4, dtype=F64), torch.ones(4, 5, dtype=F64, requires_grad=True)
    tally = kept.Tally([x, w])
    with tally.counting():
        y = x @ w
        total = (y * y).sum()
        assert (tally.bytes, tally.peak) == (8 * 15, 8 * 15)
        total.backward()
        del y, total
        assert (tally.bytes, tally.peak) == (0, 8 * 15)


@pytest.mark.parametrize("trace", [FiniteDifference(), Exact()], ids=["difference", "exact"])
def test_a_block_keeps_the_same_however_many_come_before_it(trace):
    def found(way, blocks):
        return kept.kept_bytes(way, trace, TINY[0], blocks, DOUBLE)

    one = found("block by block", 1)
    assert found("block by block", 4) == one
    assert found("end to end", 4) == pytest.approx(4 * one, rel=0.02)
    assert found("block by block, recompute", 1) == pytest.approx(one / 3, rel=0.1)  # of 3 steps
    assert found("fine-tuning", 4) < 0.5 * one
    assert found("block by block, adjoint", 1) < 0.15 * one


def test_the_published_code_keeps_what_was_measured():
    """35.5 MiB, at a batch of 500 (here 50) in float32; the adjoint, one evaluation's part."""
    case = replace(jobs.CASES["rose-500"], rows=50)
    backprop = kept.published_bytes(case, False, machine.Machine())
    assert backprop / 2**20 == pytest.approx(3.55, rel=0.02)
    assert kept.published_bytes(case, True, machine.Machine()) < 0.15 * backprop


# --- pushing -------------------------------------------------------------------------------------


def test_both_pushes_go_to_the_same_places_again_and_again(bench):
    pushes = jobs.push_jobs(bench, chunk=4)
    before = bench.points.clone()
    first, again = pushes["flowzoo"]().clone(), pushes["flowzoo"]()
    assert gap(first, again) == 0
    assert torch.equal(bench.points, before)
    assert 0 < gap(first, pushes["published"]()) < 1e-3
    assert gap(first, before) > 1e-2


# --- a Gaussian ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "movements", "uneven"),
    [  # independently computed: movements, and their std / mean before and after seven rounds
        ("h = 1", [2.12, 0.98, 0.44, 0.21, 0.10, 0.05, 0.02, 0.01], (1.40, 0.72)),
        ("h = 0.25 · 1.4^k", [0.87, 0.89, 0.80, 0.62, 0.40, 0.22, 0.10, 0.04], (0.66, 0.43)),
    ],
)
def test_closed_form_movements(name, movements, uneven):
    h = gaussian.SCHEDULES[name].sizes(8)
    moved, kl = gaussian.closed_form(h)
    assert moved == pytest.approx(movements, abs=0.006)
    assert unevenness(moved) == pytest.approx(uneven[0], abs=0.006)
    assert kl == pytest.approx({"h = 1": 6.9e-5}.get(name, 1.1e-4), rel=0.05)
    for _ in range(7):
        h = reparametrised(h, gaussian.closed_form(h)[0], 0.5, gaussian.LARGEST)
    assert unevenness(gaussian.closed_form(h)[0]) == pytest.approx(uneven[1], abs=0.006)


def test_a_closed_form_step_minimises_the_objective():
    """KL(rho || N(0, I)) + W2^2 / (2 h) over all Gaussians rho with these directions."""
    h, starts = 0.7, [*gaussian.MEANS, *map(math.sqrt, gaussian.VARIANCES)]
    (moved,), kl = gaussian.closed_form([h])

    def objective(at):
        left = sum(0.5 * (v * v - 0.5) for v in at) - math.log(at[2] * at[3])
        return left + sum((a - b) ** 2 for a, b in zip(at, starts, strict=True)) / (2 * h)

    found = minimize(objective, starts, bounds=[(None, None)] * 2 + [(0.1, None)] * 2)
    assert found.fun == pytest.approx(kl + moved**2 / (2 * h), rel=1e-9)


def test_points_have_the_moments_of_the_law():
    x = gaussian.points(50, seed=0)
    assert gap(torch.cov(x.T, correction=0), torch.tensor(gaussian.COVARIANCE, dtype=F64)) < 1e-12
    variances = (x.mean(0) @ torch.linalg.eigh(torch.cov(x.T)).eigenvectors).abs()
    assert gap(variances.flip(0), torch.tensor(gaussian.MEANS, dtype=F64)) < 1e-12


# --- the scripts ---------------------------------------------------------------------------------


def _run(script, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script", *arguments.split()])
    script.main()
    return capsys.readouterr().out


def test_jko_runs(monkeypatch, capsys):
    out = _run(jko, "--quick --double --batch 6 --cases power", monkeypatch, capsys)
    for name in (*jobs.STEP_SIDES, *kept.WAYS, "flowzoo"):
        assert f"| {name} " in out
    assert out.count("training step") == 1
    assert "to its adjoint" in out


def test_gaussian_jko_trains_towards_the_closed_form_and_draws(tmp_path, capsys):
    """30 steps a block bring all movements within 3 percent."""
    gaussian.main(["--quick", "--steps", "30", "--out", str(tmp_path / "figure.png")])
    out = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in out.splitlines() if line.startswith("| ")]
    moved = [row for row in rows if len(row) == 6 and "block" not in row[1]]
    assert len(moved) == 2 * 2 * 2  # schedules, rounds, blocks
    assert all(abs(float(row[-1])) < 3 for row in moved), moved
    assert {file.suffix for file in tmp_path.iterdir()} == {".png", ".pdf"}
