"""The memory of JKO: that of one block, however many there are."""

from __future__ import annotations

import pytest
import torch
from jko_chains import F64, QUICK, cloud, grown, trained
from oracles import SavedBytes

from flowzoo.objective import Batch, Likelihood
from flowzoo_jko_iflow.joint import FineTuning, joint_loss
from flowzoo_jko_iflow.objective import JKO
from flowzoo_jko_iflow.push import Pushed, push

SIZES = (1, 2, 4, 8)
N = 256


def step_bytes(flow, parameters, loss):
    """Return the most bytes that the graph of a training step keeps at once."""
    wanted = {id(p) for p in parameters}
    for p in flow.parameters():
        p.requires_grad_(id(p) in wanted)
    batch = Batch(torch.randn(N, 2, generator=torch.Generator().manual_seed(0), dtype=F64))
    with SavedBytes() as saved:
        loss(batch).total.backward()
    return saved.peak


def block_step(n):
    flow = grown(n)
    last = flow.held()[-1]
    return step_bytes(flow, last.parameters(), lambda batch: JKO().loss(flow, n - 1, batch))


def likelihood_step(n):
    flow = grown(n)
    return step_bytes(flow, flow.parameters(), lambda batch: Likelihood().loss(flow, batch))


def tuning_step(n):
    flow, costs = grown(n), JKO().costs
    return step_bytes(
        flow, flow.parameters(), lambda batch: joint_loss(flow, FineTuning(), costs, batch)
    )


def test_a_block_is_trained_in_the_same_memory_in_every_chain():
    one, *others = map(block_step, SIZES)
    assert one > 100 * N * 8
    assert others == [one] * 3


def test_every_block_of_a_chain_is():
    flow = grown(4)
    found = {
        step_bytes(flow, block.parameters(), lambda batch, k=k: JKO().loss(flow, k, batch))
        for k, block in enumerate(flow.held())
    }
    assert len(found) == 1


def test_end_to_end_it_grows_with_the_chain():
    one, two, four, eight = map(likelihood_step, SIZES)
    assert two == pytest.approx(2 * one, rel=0.05)
    assert four == pytest.approx(4 * one, rel=0.05)
    assert eight == pytest.approx(8 * one, rel=0.05)
    assert block_step(8) < 1.1 * one


def test_fine_tuning_adds_no_more_than_places_for_every_block():
    one, two, four, eight = map(tuning_step, SIZES)
    kept = 3 * (2 + 1) * N * 8 + 10_000  # x and ladj at each of three steps; the weights
    for few, many, blocks in ((one, two, 1), (two, four, 2), (four, eight, 4)):
        assert 0 < many - few < 1.5 * blocks * kept
    assert eight < 0.2 * likelihood_step(8)


def test_a_real_fit_keeps_to_it(monkeypatch):
    # Every step of a fit, with the gradients that the stages ask for.
    peaks = {}

    class Watched(JKO):
        def loss(self, chain, k, batch, generator=None):
            with SavedBytes() as saved:
                found = super().loss(chain, k, batch, generator)
            peaks[k] = saved.peak
            return found

    trained(grown(4), Watched(), steps=8, training=QUICK)
    assert len(peaks) == 4
    assert len(set(peaks.values())) == 1


# --- the points ----------------------------------------------------------------------------------


def test_points_are_pushed_in_place(places):
    flow, x = grown(3), Batch(places(50)[:, :2].contiguous())
    points = Pushed.of(x)
    first, where = points.x.clone(), (points.x.data_ptr(), points.ladj.data_ptr())
    for k, block in enumerate(flow.flows()):
        push(block, points, 7, seed=k)
        assert (points.x.data_ptr(), points.ladj.data_ptr()) == where
        assert (points.x.shape, points.ladj.shape) == ((50, 2), (50,))
        assert not points.x.requires_grad
    assert not torch.equal(points.x, first)
    assert torch.equal(x.x, first)
    whole = flow.encode(x.x)
    torch.testing.assert_close(points.x, whole.z, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(points.ladj, whole.ladj, rtol=1e-13, atol=1e-13)


def test_a_fit_pushes_one_array_through_all_blocks():
    seen = []

    class Watched(JKO):
        def _end(self, chain, k, one, train, held):
            left = super()._end(chain, k, one, train, held)
            seen.append((train.x.data_ptr(), left.train is train or left.train is None))
            return left

    data = cloud()
    before = data.x.clone()
    trained(grown(4, steps=1), Watched(), steps=4, train=data)
    assert len(seen) == 4
    assert len({where for where, _ in seen}) == 1
    assert all(same for _, same in seen)
    assert torch.equal(data.x, before)


def test_a_push_needs_the_memory_of_a_chunk(places):
    block = grown(1).held()[0]
    sizes = []
    original = block.encode

    def encode(x, *args, **kwargs):
        sizes.append(len(x))
        assert not torch.is_grad_enabled()
        return original(x, *args, **kwargs)

    block.encode = encode
    push(block, Pushed.of(Batch(places(50)[:, :2])), 20, seed=0)
    assert sizes == [20, 20, 10]
