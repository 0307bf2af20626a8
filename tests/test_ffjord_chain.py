"""Stacked blocks of FFJORD with moving batch normalisation between, as its code builds them."""

from __future__ import annotations

import copy

import pytest
import torch
from oracles import gap, gradients, standard_normal

from flowzoo.build import build
from flowzoo.flow import Chain
from flowzoo.integrators import RK4
from flowzoo.objective import Batch, Likelihood
from flowzoo.registry import Registry
from flowzoo.traces import Exact
from flowzoo_ffjord.batchnorm import MovingBatchNorm
from flowzoo_ffjord.official import load_official

D = 3
BLOCK = {
    "name": "continuous",
    "velocity": {"name": "odenet", "hidden": [5]},
    "integrator": {"name": "rk4", "steps": 6},
    "trace": "exact",
}
SPEC = {  # a batch normalisation next to the data, and one after each block
    "name": "chain",
    "blocks": [
        "moving-batch-norm",
        {
            "name": "chain",
            "blocks": {
                "repeat": 2,
                "of": {"name": "chain", "blocks": [BLOCK, "moving-batch-norm"]},
            },
        },
    ],
}


@pytest.fixture
def chain(places):
    flow = build("flow", SPEC, Registry.installed(), dim=D).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.2 * torch.randn_like(p))
    for shift in range(5):
        flow.encode(1.5 + 2 * places(40, D, shift))
    return flow


def blocks_of(flow):
    return [b for f in flow.flows() for b in (blocks_of(f) if isinstance(f, Chain) else [f])]


def norms_of(flow):
    return [b for b in blocks_of(flow) if isinstance(b, MovingBatchNorm)]


def written_out(flow, x, training):
    """Return z, ladj and the moving averages after, by FFJORD's order of operations."""
    ladj, after = x.new_zeros(len(x)), []
    for block in blocks_of(flow):
        if not isinstance(block, MovingBatchNorm):
            out = block.encode(x)
            x, ladj = out.z, ladj + out.ladj
            continue
        mean, var = block.running_mean.clone(), block.running_var.clone()
        if training:
            batch = x.detach()
            after += [
                mean - block.decay * (mean - batch.mean(0)),
                var - block.decay * (var - batch.var(0)),
            ]
        x = (x - mean) / (var + block.eps).sqrt() * block.weight.exp() + block.bias
        ladj = ladj + (block.weight - 0.5 * (var + block.eps).log()).sum()
    return x, ladj, after


def test_a_recipe_can_alternate_blocks_with_batch_norms(chain):
    kinds = [type(b).__name__ for b in blocks_of(chain)]
    assert kinds == ["MovingBatchNorm", *["Continuous", "MovingBatchNorm"] * 2]
    assert len({id(p) for p in chain.parameters()}) == sum(1 for _ in chain.parameters())
    assert len({id(b) for b in blocks_of(chain)}) == 5, "no block is shared"
    other = chain.with_numerics(RK4(9), Exact())
    steps = [b.integrator.steps for b in blocks_of(other) if not isinstance(b, MovingBatchNorm)]
    assert steps == [9, 9]


@pytest.mark.parametrize("training", [False, True])
def test_values_gradients_and_averages_are_those_written_out(chain, training, places):
    chain.train(training)
    twin, x = copy.deepcopy(chain), 1 + places(7, D, 9)
    before = [t.clone() for n in norms_of(chain) for t in (n.running_mean, n.running_var)]
    out = chain.encode(x)
    z, ladj, after = written_out(twin, x, training)
    assert gap(out.z, z) < 1e-13
    assert gap(out.ladj, ladj) < 1e-13
    ours = gradients(out.z.square().sum() - out.ladj.sum(), chain.parameters())
    assert gap(ours, gradients(z.square().sum() - ladj.sum(), twin.parameters())) < 1e-12
    found = [t for n in norms_of(chain) for t in (n.running_mean, n.running_var)]
    assert gap(found, after if training else before) < 1e-14
    assert (gap(found, before) > 1e-3) == training


def test_density_samples_and_inverse_agree_in_evaluation(chain, places):
    chain.eval()
    x = 1 + places(6, D, 9)
    out = chain.encode(x)
    assert gap(chain.decode(out.z), x) < 1e-5
    assert gap(chain.log_prob(x), standard_normal(out.z) + out.ladj) < 1e-14
    drawn, log_prob = chain.sample_and_log_prob(5, generator=torch.Generator().manual_seed(1))
    assert gap(log_prob, chain.log_prob(drawn)) < 1e-14
    assert gap(chain.encode(drawn).z, chain.encode(chain.decode(chain.encode(drawn).z)).z) < 1e-4


def test_sampling_moves_no_average(chain, places):
    chain.train()
    kept = copy.deepcopy(chain.state_dict())
    chain.decode(places(6, D))
    assert all(torch.equal(kept[k], v) for k, v in chain.state_dict().items())


def test_a_step_learns_through_the_batch_norms(chain, places):
    chain.train()
    loss = Likelihood().loss(chain, Batch(places(8, D))).total
    for (name, _), g in zip(
        chain.named_parameters(), gradients(loss, chain.parameters()), strict=True
    ):
        assert g.any(), name


def test_official_batch_norms_are_read_behind_a_prefix():
    state = {
        "chain.0.step": torch.tensor([7.0]),
        **{
            f"chain.0.{key}": torch.full((D,), float(i))
            for i, key in enumerate(("weight", "bias", "running_mean", "running_var"))
        },
    }
    norm = MovingBatchNorm(D)
    load_official(norm, state, "chain.0.")
    assert [t[0].item() for t in norm.state_dict().values()] == [0.0, 1.0, 2.0, 3.0]
