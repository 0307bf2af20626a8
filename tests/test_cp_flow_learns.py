"""What training teaches a convex flow, and that what the first batch sets survives everything."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from cp_flow_fits import F64, convex, trained
from tiny_flows import BUSY, Killed, killed_at, running, same_weights, without_seconds

from flowzoo.data.toys import EightGaussians
from flowzoo.flow import Chain
from flowzoo.logdet import CG
from flowzoo.objective import Likelihood
from flowzoo.settings import Optimizer
from flowzoo.traces import Exact
from flowzoo.training import fitting
from flowzoo_cp_flow.actnorm import ActNorm
from flowzoo_cp_flow.flow import ConvexFlow
from flowzoo_cp_flow.icnn import ICNN

RING = EightGaussians()
GAUSSIAN = math.log(2 * math.pi * math.e * (4 + 0.125))  # the NLL of a Gaussian of RING's variance


def blocks(count=2, trace=None):
    """Return [actnorm, convex, ...] of some convex flows."""
    flows = [convex(2, 32, 2, seed, trace=trace) for seed in range(count)]
    return Chain([part for flow in flows for part in (ActNorm(2).to(F64), flow)])


def ring(seed=0, n=128):
    """Return a source of batches (x,) of eight Gaussians."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: (RING.sample(n, generator).to(F64),)


def nll(flow):
    """Return the exact NLL on fresh points, in nats."""
    with torch.no_grad():
        return -flow.log_prob(*ring(1, 2000)()).mean().item()


@pytest.fixture(scope="module")
def by_trace():
    """Flows trained by the exact log-determinant and by conjugate gradients, from one start."""
    modes = {"exact": None, "cg": CG(1)}
    return {name: trained(blocks(trace=trace), ring(), 120, 0.03) for name, trace in modes.items()}


# --- likelihood ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["exact", "cg"])
def test_eight_gaussians_are_learnt(by_trace, name):
    found = nll(by_trace[name].with_numerics(trace=Exact()))
    assert RING.entropy < found < GAUSSIAN - 0.5


def test_training_by_conjugate_gradients_comes_to_the_same(by_trace):
    """In two dimensions two steps of either are exact; the probes' noise remains."""
    found = {name: nll(flow.with_numerics(trace=Exact())) for name, flow in by_trace.items()}
    assert abs(found["cg"] - found["exact"]) < 0.15


def test_samples_of_a_trained_flow_are_where_the_data_are(by_trace, seeded):
    """Without the training they are not."""
    for flow, near in ((by_trace["exact"], True), (blocks(1).eval(), False)):
        with torch.no_grad():
            x = flow.sample(2000, generator=seeded())
        assert (x.norm(dim=-1).median() > 2) == near


# --- what the first batch sets -------------------------------------------------------------------


def small(trace=None):
    """Return a chain in float32 that waits for its first batch."""
    torch.manual_seed(3)
    return Chain([ActNorm(2), ConvexFlow(ICNN(2, 8, 2), trace)])


CAREFUL = replace(BUSY, optimizer=Optimizer(lr=0.02), clamp=None)


@pytest.mark.parametrize("trace", [None, CG(1)], ids=["exact", "cg"])
@pytest.mark.parametrize("first", [1, 14])
def test_a_resumed_fit_does_not_settle_again(tmp_path, monkeypatch, trace, first):
    """Killed right after the batch that sets the normalisations, and later."""
    monkeypatch.setattr(fitting, "ROW_EVERY", 1)
    whole = running(lambda: small(trace), Likelihood, CAREFUL)
    kept = {"folder": tmp_path, "checkpoint_every": 0.0}
    for step in (first, 24):
        with pytest.raises(Killed):
            running(lambda: small(trace), Likelihood, CAREFUL, observe=killed_at(step), **kept)
        torch.rand(7)
    resumed = running(lambda: small(trace), Likelihood, CAREFUL, **kept)
    assert same_weights(whole.flow, resumed.flow)
    assert without_seconds(whole.curve) == without_seconds(resumed.curve)


@pytest.mark.parametrize(
    "training",
    [
        replace(CAREFUL, keep="best", ema=None),
        replace(CAREFUL, keep="best", ema=0.9),
        replace(CAREFUL, keep="last", ema=0.9),
    ],
    ids=["best", "best average", "last average"],
)
def test_best_and_averaged_weights_are_settled(training):
    """And so are copies, and flows that load them: another batch in training changes nothing."""
    result = running(small, Likelihood, training)
    loaded = small()
    loaded.load_state_dict(result.flow.state_dict())
    for flow in (result.flow, copy.deepcopy(result.flow), loaded):
        before = copy.deepcopy(flow.state_dict())
        flow.train().encode(100 + torch.randn(50, 2))
        assert all(torch.equal(before[k], v) for k, v in flow.state_dict().items())
    assert result.best_validation < result.curve[0]["loss"] + 0.5
    assert result.best_validation == pytest.approx(2.84, abs=0.3), "that of N(1, I)"


def test_the_first_batch_settles_and_no_other(monkeypatch):
    """Once in a fit: not by validation, which comes in evaluation mode."""
    calls = []
    settle = ICNN.settle

    def counted(self, x, context=None):
        calls.append(len(x))
        settle(self, x, context)

    monkeypatch.setattr(ICNN, "settle", counted)
    running(small, Likelihood, CAREFUL)
    assert calls == [CAREFUL.batch_size]
