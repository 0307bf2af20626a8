"""CP-Flow's benchmarks: the transcribed algorithms are the published ones, and all sides agree."""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cp_flow_oracles import flow, golden, off
from oracles import F64, gap, with_spectrum
from torch import nn

from flowzoo.traces import Exact

# The scripts import each other by these names, as they do when they are run.
sys.path.append(str(Path(__file__).parent.parent / "benchmarks" / "speed"))
NAMES = "machine published_cp_flow cp_flow_jobs cp_flow logdet"
machine, published, jobs, cp_flow, logdet = map(importlib.import_module, NAMES.split())

DOUBLE = machine.Machine("cpu", double=True)
TINY = jobs.Case(5, 3, 8, 6, training=40)
GOLDEN = ["icnn3_gauss_symm_d2_depth20", "icnn3_gauss_symm_d43"]


# --- the transcription against values of the published code --------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_potential_gradient_and_brute_force_are_the_published_ones(name):
    there, g = published.PublishedCPFlow(flow(name)), golden(name)
    f, ladj = there.brute(g["x"])
    assert off(there.potential(g["x"]), g["potential"]) < 1e-14
    assert off(f, g["grad"]) < 1e-14
    assert off(ladj, g["logdet"]) < 1e-13


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("atol", ["0.1", "0.001"])
def test_conjugate_gradients_are_the_published_ones(name, atol):
    """Its start, its step length and its stop: each alone moves the solution by 1e-9 or more."""
    there, g = published.PublishedCPFlow(flow(name)), golden(name)
    _, product = there.recorded(g["x"], training=False)
    v = g["probe_rademacher"]
    z, iterations = published.conjugate_gradients(product, v, g["x"].shape[1], float(atol))
    assert iterations == int(g[f"cg_iters_atol{atol}"])
    assert off(z, g[f"cg_solution_atol{atol}"]) < 1e-10


@pytest.mark.parametrize("name", GOLDEN)
def test_the_surrogate_is_the_published_one(name):
    made, g = flow(name), golden(name)
    there = published.PublishedCPFlow(made)
    _, value, _ = there.surrogate(g["x"], g["probe_rademacher"])
    value.mean().backward()
    assert off(value, g["surrogate_atol0.001"]) < 1e-10
    network: Any = made.potential
    for ours, theirs in [
        (made.raw_weight, "w1"),
        (made.raw_quadratic, "w0"),
        (network.entry.weight, "icnn.Wzs.0.weight"),
        (network.positive[-1].raw, f"icnn.Wzs.{len(network.positive)}.weight"),
        (network.norms[0].log_scale, "icnn.actnorms.0.logs"),
    ]:
        expected = g[f"surrogate_grad/{theirs}"].reshape(ours.shape)
        assert off(ours.grad, expected) < 1e-9, theirs


@pytest.mark.parametrize(
    ("name", "steps"), [(GOLDEN[0], 2), *((GOLDEN[1], m) for m in (2, 10, 43))]
)
def test_lanczos_is_the_published_one(name, steps):
    there, g = published.PublishedCPFlow(flow(name)), golden(name)
    v = nn.functional.normalize(g["probe_rademacher"], dim=-1)
    _, product = there.recorded(g["x"], training=False)
    assert off(published.tridiagonal(product, v, steps), g[f"lanczos_T_m{steps}"]) < 1e-9
    assert off(there.lanczos(g["x"], v, steps)[1], g[f"slq_m{steps}"]) < 1e-12


@pytest.mark.parametrize("name", GOLDEN)
def test_inversion_is_the_published_one(name):
    there, g = published.PublishedCPFlow(flow(name)), golden(name)
    x, evaluations = there.invert(g["inverse_input"])
    assert off(x, g["inverse_official_batch"]) < 1e-12
    assert evaluations > 5


def test_conjugate_gradients_of_the_published_code_lose_termination_after_d_steps():
    """What 1e-8 in the step length costs: with it, d steps are far from enough."""
    a, v = with_spectrum([1e-4, 1e-3, 1e-2, 0.1, 1.0], n=3), torch.ones(3, 5, dtype=F64)

    def product(p):
        return (a @ p[..., None])[..., 0]

    z, iterations = published.conjugate_gradients(product, v, 5, 1e-9)
    assert iterations == 5
    assert (v - product(z)).abs().max() > 1e-7


def test_conjugate_gradients_of_the_published_code_wait_for_the_slowest():
    a = torch.cat([with_spectrum([1.0] * 6, n=2), with_spectrum([1, 2, 4, 8, 16, 32])])

    def product(b, p):
        return (b @ p[..., None])[..., 0]

    v = torch.ones(3, 6, dtype=F64)
    alone = published.conjugate_gradients(partial(product, a[:2]), v[:2], 6, 1e-3)[1]
    together = published.conjugate_gradients(partial(product, a), v, 6, 1e-3)[1]
    assert alone == 0
    assert together > 4


def test_a_correction_of_the_published_orthogonalisation_can_make_it_worse():
    q = torch.eye(4, 40, dtype=F64)[None]
    q = q + 1e-4 * torch.randn(q.shape, dtype=F64)
    w = 1e4 * torch.randn(1, 40, dtype=F64)
    assert published.orthogonal(q, w).norm() > 1e3 * w.norm()
    assert published.orthogonal(q, w / 1e4).norm() < 2 * (w / 1e4).norm()


def test_lanczos_of_the_published_code_starts_again_where_a_space_is_exhausted():
    a = torch.cat([with_spectrum([2.0] * 4), with_spectrum([1.0, 2.0, 3.0, 4.0])])
    v = nn.functional.normalize(torch.randn(2, 4, dtype=F64), dim=-1)

    def product(b, p):
        return (b @ p[..., None])[..., 0]

    t = published.tridiagonal(partial(product, a), v, 3)
    assert gap(t[0], 2 * torch.eye(3, dtype=F64)) < 1e-7
    assert gap(t[1:], published.tridiagonal(partial(product, a[1:]), v[1:], 3)) < 1e-12
    assert gap(published.quadrature(t, 4)[0], torch.tensor(4 * math.log(2), dtype=F64)) < 1e-7


@pytest.mark.parametrize("option", [{"least": 0.1}, {"activation": "logistic"}])
def test_a_flow_that_the_published_code_does_not_have_is_refused(option):
    network = {k: option[k] for k in option if k == "activation"}
    made = jobs.ConvexFlow(jobs.InputAugmented(3, 4, 2, **network), least=option.get("least", 0.0))
    with pytest.raises(AssertionError):
        published.PublishedCPFlow(made)


# --- the sides -----------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["trained", "stiff"])
def bench(request):
    return jobs.Bench(replace(TINY, stiff=request.param), DOUBLE)


def test_all_steps_have_noise_in_common_and_exact_ones_all_else(bench):
    found = {name: bench.step(side) for name, side in jobs.STEP_SIDES.items()}
    z, _, *slopes = found["exact"]
    brute = found["published brute"]
    assert max(gap(a, b) for a, b in zip(brute, found["exact"], strict=True)) < 1e-9
    assert all(gap(one[0], z) < 1e-12 for one in found.values())
    assert len(slopes) == sum(p.requires_grad for p in bench.flow.parameters())
    assert gap(found["exact value, cg"][1], found["exact"][1]) < 1e-12
    assert cp_flow.distance(found["exact value, cg"][2:], slopes) > 1e-3


def test_steps_with_the_same_probe_have_the_same_gradient(bench):
    """With d steps the space is exhausted: conjugate gradients and Lanczos solve for z exactly."""
    found = {name: bench.step(side) for name, side in jobs.STEP_SIDES.items()}
    size = cp_flow.length(bench.slopes(jobs.STEP_SIDES["exact"](bench)[1]))
    ours = found["cg"][2:]
    for name in ("exact value, cg", "slq", "published cg"):
        assert cp_flow.distance(found[name][2:], ours) / size < 1e-2, name
    assert cp_flow.distance(found["exact"][2:], ours) / size > 1e-2  # the noise of one probe


def test_densities_with_the_same_probe_are_the_same(bench):
    found = {name: bench.density(side) for name, side in jobs.DENSITY_SIDES.items()}
    assert (
        gap(found["slq 1"][1], found["published slq"][1]) < 1e-6
    )  # of which 1e-8 in the logarithm
    assert gap(found["exact"][1], found["published brute"][1]) < 1e-10
    assert gap(found["slq 1"][1], found["exact"][1]) > 1e-3
    assert not any(part.requires_grad for parts in found.values() for part in parts)


def test_all_inversions_find_the_points(bench):
    for name, side in jobs.INVERSIONS.items():
        found = side(bench)
        assert gap(found.x, bench.points) < 1e-4, name
        assert cp_flow.within(found, jobs.Found(bench.points, 0 * found.residual, None), bench)
        assert found.iterations.max() > 1


def test_an_inversion_that_is_elsewhere_is_noticed(bench):
    found = jobs.INVERSIONS["newton"](bench)
    moved = replace(found, x=found.x + 1e-6 * torch.eye(*found.x.shape, dtype=F64))
    assert not cp_flow.within(moved, found, bench)
    with pytest.raises(SystemExit, match="newton is elsewhere; nothing to compare"):
        cp_flow.require(cp_flow.within(moved, found, bench), "newton is elsewhere")


def test_a_case_has_the_same_weights_each_time_and_stiff_ones_a_worse_condition():
    flows = [case.flow(DOUBLE) for case in (TINY, replace(TINY, rows=3), replace(TINY, stiff=True))]
    x = TINY.points(DOUBLE)
    spectra = [torch.linalg.eigvalsh(one.at(x).hessian.dense()) for one in flows]
    assert gap(spectra[0], spectra[1]) == 0
    conditions = [(s[:, -1] / s[:, 0]).median() for s in spectra]
    assert conditions[2] > 5 * conditions[0]


def test_training_lowers_the_loss():
    x = TINY.points(DOUBLE, rows=512)
    before, after = (
        -replace(TINY, training=steps).flow(DOUBLE).log_prob(x).mean() for steps in (0, 40)
    )
    assert after < before - 0.5


# --- log-determinants ----------------------------------------------------------------------------


def test_biases_have_the_signs_of_their_rules(bench):
    one = jobs.Bench(replace(bench.case, rows=64), DOUBLE)
    rows = {
        "gauss": logdet.lanczos(5, 4, 2),
        "radau": logdet.lanczos(5, 4, 2, rule="radau"),
        "all": logdet.lanczos(5, 4, 5),
        "published": logdet.published_lanczos(5),
    }
    found = logdet.samples(rows, lambda side, p: side(one, p).detach(), one, 2)
    bias = {name: (a - b).mean().item() for name, (a, b) in found}
    assert bias["gauss"] > 1e-4
    assert bias["radau"] < -1e-4
    assert abs(bias["all"]) < 1e-12
    assert abs(bias["published"]) < 1e-6


def test_gradients_tend_to_that_of_d_steps(bench):
    rows = {str(atol): logdet.conjugate(5, atol) for atol in (3, 0.1, 1e-9)}
    rows["published"] = logdet.published_conjugate(5, 1e-9)
    rows["shared"] = logdet.conjugate(5, 1e-9, shared=6)
    found = logdet.samples(rows, partial(logdet.gradient, bench), bench, 3)
    size = logdet.gradient(bench, logdet.ours(Exact()), None).norm()
    bias = {name: ((a - b).mean(0).norm() / size).item() for name, (a, b) in found}
    assert bias["3"] > 10 * bias["0.1"]
    assert bias["1e-09"] < 1e-7
    assert bias["shared"] < 1e-7
    assert bias["published"] < 1e-3


def test_rows_with_the_same_limit_share_it():
    assert logdet.lanczos(5, 4, 2).limit is logdet.conjugate(5, 0.1, 4).limit
    assert logdet.lanczos(5, 4, 2).limit is not logdet.lanczos(5, 4, 2, shared=3).limit
    assert logdet.lanczos(5, 4, 2).limit is not logdet.lanczos(5, 1, 2).limit


# --- the scripts ---------------------------------------------------------------------------------


def _run(script, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script", *arguments.split()])
    script.main()
    return capsys.readouterr().out


def test_cp_flow_runs(monkeypatch, capsys):
    sizes = "--cases 2 --batch 5 --training 2 --repeat 1 --no-memory --double"
    out = _run(cp_flow, sizes, monkeypatch, capsys)
    for name in (*jobs.STEP_SIDES, *jobs.DENSITY_SIDES, *jobs.INVERSIONS):
        assert f"| {name} " in out
    assert out.count("training step, d=2") == 2  # trained and stiff
    assert "to published brute" in out


def test_cp_flow_leaves_brute_force_out_of_many_dimensions(monkeypatch, capsys):
    sizes = "--cases 2 --nets stiff --batch 5 --training 0 --repeat 1 --no-memory --brute 1"
    out = _run(cp_flow, f"{sizes} --tables step density", monkeypatch, capsys)
    assert "published cg" in out
    assert "brute" not in out


def test_logdet_runs(monkeypatch, capsys):
    sizes = "--cases 8 --rows 4 --few 3 --training 1 --draws 2 --repeat 1 --double"
    out = _run(logdet, sizes, monkeypatch, capsys)
    for name in (*logdet.value_rows(8), *logdet.gradient_rows(8), "exact"):
        assert f"| {name} " in out
    assert out.count("gradient of its mean") == 2
