"""The experiment with Gaussians: what it measures is right, and it runs."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles import F64, gap, jacobian

from flowzoo.data.wishart import WishartGaussian
from flowzoo.flow import Encoded, Flow

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
experiment = importlib.import_module("gaussian_transport")

QUICK = experiment.Settings(300, 0.01, 10_000, scaled=True, quadratic=0.5, weight=6.0)
LONGER = experiment.Settings(1000, 0.05, 10_000, scaled=True)


class Turned(Flow):
    """The optimal map of a Gaussian, turned: N(0, I) still, at another cost."""

    def __init__(self, oracle, turn):
        super().__init__()
        self.oracle, self.turn, self.dim = oracle, turn, oracle.dim

    def encode(self, x, running=(), context=None, generator=None):
        z = self.oracle.transport(x) @ self.turn.to(x).mT
        return Encoded(z, x.new_full((len(x),), self.oracle.ladj), x.new_zeros(len(x), 0))

    def decode(self, z, context=None):
        return self.oracle.inverse_transport(z @ self.turn.to(z))


def test_cost_and_kl_are_those_of_the_law_not_of_the_points():
    source = WishartGaussian(3, train=2, val=2, test=300, seed=1)
    oracle, test = source.oracle, source.load().test
    best = Turned(oracle, torch.eye(3, dtype=F64)).train()
    kl, cost = experiment.seen(best, oracle, test)
    assert kl == pytest.approx(0, abs=1e-5)
    assert cost == pytest.approx(oracle.w2_squared, rel=1e-5)
    assert best.training
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=F64))[0]
    kl, cost = experiment.seen(Turned(oracle, turn), oracle, test)
    assert kl == pytest.approx(0, abs=1e-5)
    # E |x - R S^-1/2 (x - m)|^2 = |m|^2 + tr S + d - 2 tr R S^1/2
    root = (oracle.basis * oracle.variances.sqrt()) @ oracle.basis.mT
    law = oracle.mean.square().sum() + oracle.variances.sum() + 3 - 2 * torch.trace(turn @ root)
    assert cost == pytest.approx(float(law), rel=0.15)  # this one is not paired


@pytest.mark.parametrize("method", list(experiment.COLOURS))
def test_flows_in_units_of_the_data_are_flows_of_the_data(method):
    train = 3 * torch.randn(2000, 4)
    settings = replace(QUICK, weight=2.0)
    flow = experiment.made(method, settings, train).double()
    flow.encode(train.double())  # sets what is normalised
    flow.eval()
    x = train[:5].double().requires_grad_()
    encoded = flow.encode(x)
    slopes = jacobian(encoded.z, x)
    assert gap(encoded.ladj, torch.linalg.slogdet(slopes)[1]) < 1e-10
    if method == "CP-Flow":  # dividing by a number keeps it the gradient of a convex function
        assert gap(slopes, slopes.mT) < 1e-12
        assert float(torch.linalg.eigvalsh(slopes).min()) > 0
    unscaled = experiment.made(method, replace(settings, scaled=False), train)
    assert not hasattr(unscaled, "blocks")


def test_both_flows_fit_and_one_moves_points_less_far():
    runs = {
        "CP-Flow": experiment.trained("CP-Flow", 2, QUICK, seed=0, looks=4),
        "autoregressive": experiment.trained("autoregressive", 2, LONGER, seed=0, looks=4),
    }
    convex, other = runs.values()
    for run in runs.values():
        assert len(run.kl) == len(run.cost) == 5  # four on the way, one at the end
        assert run.kl[-1] < 0.05
        assert run.kl[-1] < run.kl[0]
        ratio = run.measures["displacement-optimality"]
        assert run.cost[-1] == pytest.approx(run.optimum * ratio.value, rel=1e-4)
        assert run.measures["kl"].value == pytest.approx(run.kl[-1], abs=1e-4)
    assert convex.cost[-1] == pytest.approx(convex.optimum, rel=0.05)
    assert other.cost[-1] > 1.07 * other.optimum


def test_one_command_prints_the_table_and_draws_the_figure(tmp_path, capsys):
    out = tmp_path / "new" / "figure.png"
    experiment.main(
        ["--dims", "2", "3", "--steps", "20", "--looks", "1", "--published", "--out", str(out)]
    )
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1:3] for row in rows[1:]] == [
        [f" {dim}   ", f" {method:<14} "] for dim in (2, 3) for method in experiment.COLOURS
    ]
    assert "3.706" in rows[1]
    assert out.read_bytes().startswith(b"\x89PNG")
