"""What training teaches residual flows, and that it is resumed to the last bit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from cp_flow_fits import COVARIANCE, LAW, gaussians, trained
from oracles import F64
from tiny_flows import BUSY, Killed, killed_at, running, same_weights, without_seconds

from flowzoo.data.toys import EightGaussians
from flowzoo.flow import Chain
from flowzoo.objective import Batch, Likelihood
from flowzoo.regularizers import Transport
from flowzoo.settings import Optimizer
from flowzoo.training import fitting
from flowzoo_cp_flow.actnorm import ActNorm
from flowzoo_residual.flow import Residual

RING = EightGaussians()


def chain(count, hidden=(32, 32), normalised=True, dtype=F64, **options):
    """Return a chain of residual blocks, each behind a normalisation."""
    torch.manual_seed(0)
    flows = [Residual(2, hidden, "elu", **options) for _ in range(count)]
    parts = [part for flow in flows for part in ((ActNorm(2), flow) if normalised else (flow,))]
    return Chain(parts).to(dtype)


def nll(flow, x):
    """Return the exact NLL of points, in nats."""
    with torch.no_grad():
        return -flow.eval().log_prob(x).mean().item()


@pytest.mark.parametrize("log_det", ["exact", "series", "neumann"])
def test_a_gaussian_is_learnt(log_det, seeded):
    """To its entropy, by each log-determinant; a biased one comes near it."""
    flow = chain(2, (16,), log_det=log_det, terms=5 if log_det == "series" else 2)
    entropy = math.log(2 * math.pi * math.e) + 0.5 * torch.logdet(COVARIANCE).item()
    (x,) = gaussians(1, 4000)()
    truth = -LAW.log_prob(x).mean().item()
    before = nll(flow, x)
    found = nll(trained(flow, gaussians(), 200, 0.02), x)
    assert truth == pytest.approx(entropy, abs=0.05)
    assert before > truth + 1
    assert truth - 0.01 < found < truth + 0.06


def priced(flow, draw, weight, steps):
    """Return a flow after some steps of IGNN's loss: the likelihood, and a price on |g|^2 / 2."""
    objective = Likelihood(regularizers=[Transport(weight)])
    optimizer = torch.optim.Adam(flow.parameters(), 0.01)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        objective.loss(flow, Batch(*draw())).total.backward()
        optimizer.step()
        rate.step()
    return flow.eval()


@pytest.mark.parametrize("bounded", [True, False])
def test_eight_gaussians_are_learnt(bounded):
    """And inverted. Four contractions stretch little; free blocks are kept small by a price."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda: (RING.sample(128, generator).to(F64) / 2,)  # noqa: E731
    x = RING.sample(2000, torch.Generator().manual_seed(1)).to(F64) / 2
    if bounded:
        flow, below = trained(chain(4), draw, 150, 0.02), 4.15
    else:
        free = chain(4, normalised=False, lipschitz=None, scale=0.9)
        flow, below = priced(free, draw, 1.0, 150), 3.2
    assert RING.entropy < nll(flow, x) + 2 * math.log(2) < below, "a Gaussian has 4.25"
    with torch.no_grad():
        assert torch.allclose(flow.decode(flow.encode(x).z), x, atol=1e-8)


def test_the_transport_cost_keeps_free_blocks_small():
    """The same fit with a price on |g|^2 / 2 moves the points less far."""
    found = []
    for weight in (0.0, 3.0):
        free = chain(2, (16,), normalised=False, lipschitz=None)
        flow = priced(free, gaussians(), weight, 60)
        found.append(flow.encode(*gaussians()(), [Transport()]).costs.mean().item())
    assert found[1] < 0.6 * found[0]


CAREFUL = replace(BUSY, optimizer=Optimizer(lr=0.02), clamp=None)


@pytest.mark.parametrize(("log_det", "first"), [("series", 1), ("neumann", 14)])
def test_a_resumed_fit_ends_with_the_same_bits(tmp_path, monkeypatch, log_det, first):
    """The vectors of the power iterations are part of the state."""
    monkeypatch.setattr(fitting, "ROW_EVERY", 1)

    def make():
        return chain(2, (8,), log_det=log_det, dtype=torch.float32)

    whole = running(make, Likelihood, CAREFUL)
    kept = {"folder": tmp_path, "checkpoint_every": 0.0}
    for step in (first, 24):
        with pytest.raises(Killed):
            running(make, Likelihood, CAREFUL, observe=killed_at(step), **kept)
        torch.rand(7)
    resumed = running(make, Likelihood, CAREFUL, **kept)
    assert same_weights(whole.flow, resumed.flow)
    assert without_seconds(whole.curve) == without_seconds(resumed.curve)


def test_averaged_weights_are_bounded_too():
    """The norms of an average are not the averages of norms."""
    training = replace(CAREFUL, optimizer=Optimizer(lr=0.3), ema=0.9, keep="last")
    flow = running(lambda: chain(2, (8,), dtype=torch.float32), Likelihood, training).flow.eval()
    with torch.no_grad():
        found = [
            torch.linalg.svdvals(w)[0].item()
            for part in flow.blocks
            if isinstance(part, Residual)
            for w in part.network().weights
        ]
    assert 0.89 < max(found) < 0.9 * (1 + 1e-5)
