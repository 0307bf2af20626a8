"""The growing chain: what is in use, what is saved, and how it is split."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from jko_chains import F64, TIGHT, grown, same_weights, shifts, velocity
from oracles import SmallVelocity, gap, gradients
from safetensors.torch import load_model, save_model

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible
from flowzoo.flow import Chain
from flowzoo.integrators import RK438
from flowzoo.networks import MLP
from flowzoo.regularizers import Transport
from flowzoo.traces import Hutchinson
from flowzoo_jko_iflow.growing import Growing
from flowzoo_jko_iflow.window import Window


def parts(chain):
    return [(block.velocity.part, block.velocity.parts) for block in chain.held()]


def split_chain(held=6, planned=3, factor=2):
    """Return a chain of which so many blocks were in use before they were split."""
    chain = grown(held)
    chain.begin([0.5 * (k + 1) for k in range(planned)])
    chain.movements[:planned] = torch.arange(1.0, planned + 1, dtype=F64)
    chain.use(planned)
    before = copy.deepcopy(chain)
    chain.split(factor)
    return before, chain


# --- what is in use ------------------------------------------------------------------------------


def test_a_new_chain_uses_all_it_holds(places):
    chain, x = grown(3), places()[:, :2]
    plain = Chain(chain.held())
    assert (chain.depth, chain.planned, chain.passes) == (3, 3, 0)
    assert torch.equal(chain.encode(x).z, plain.encode(x).z)
    assert len(list(chain.in_use())) == len(list(chain.parameters()))


def test_blocks_beyond_the_depth_are_not_used(places):
    chain, x = grown(3), places()[:, :2]
    plain = Chain(chain.held()[:2])
    chain.use(2)
    found, expected = chain.encode(x, [Transport()]), plain.encode(x, [Transport()])
    assert torch.equal(found.z, expected.z)
    assert torch.equal(found.ladj, expected.ladj)
    assert torch.equal(found.costs, expected.costs)
    assert torch.equal(chain.decode(x), plain.decode(x))
    ways = (flow.generate(x, [Transport()]).costs for flow in (chain, plain))
    assert torch.equal(*ways)
    assert torch.equal(chain.score(x), plain.score(x))
    assert torch.equal(
        chain.with_numerics(TIGHT).encode(x).z, plain.with_numerics(TIGHT).encode(x).z
    )
    used = {id(p) for p in chain.in_use()}
    assert used == {id(p) for block in chain.held()[:2] for p in block.parameters()}
    assert len(chain.held()) == 3


def test_the_round_trip_of_a_chain_in_part_in_use(places):
    chain, x = grown(3, steps=20), places()[:, :2]
    chain.use(2)
    back = chain.decode(chain.encode(x).z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-6)


def test_it_begins_with_the_first_block_whole():
    _, chain = split_chain()
    chain.begin([0.25, math.inf])
    assert (chain.depth, chain.planned, chain.passes) == (1, 2, 0)
    assert chain.step_sizes[:2].tolist() == [0.25, math.inf]
    assert set(parts(chain)) == {(0, 1)}


def test_what_is_not_said_stays():
    chain = grown(3)
    chain.use(2, planned=3, passes=4)
    chain.use(1)
    assert (chain.depth, chain.planned, chain.passes) == (1, 3, 4)
    assert chain.counts.tolist() == [1, 3, 4]


# --- what is saved -------------------------------------------------------------------------------


def through_state(chain):
    other = grown(6)
    other.load_state_dict(chain.state_dict())
    return other


def through_safetensors(chain, folder):
    other, path = grown(6), str(folder / "flow.safetensors")
    save_model(chain, path)
    load_model(other, path)
    return other


def through_torch(chain):
    buffer, other = io.BytesIO(), grown(6)
    torch.save(chain.state_dict(), buffer)
    other.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    return other


@pytest.mark.parametrize("way", ["state", "safetensors", "torch", "deepcopy", "pickle"])
def test_all_it_learned_is_saved_with_its_weights(places, tmp_path, way):
    _, chain = split_chain(6, 2)
    chain.use(3, passes=2)
    chain.step_sizes[3] = math.inf
    other = {
        "state": through_state,
        "safetensors": lambda chain: through_safetensors(chain, tmp_path),
        "torch": through_torch,
        "deepcopy": copy.deepcopy,
        "pickle": lambda chain: pickle.loads(pickle.dumps(chain)),
    }[way](chain)
    assert same_weights(other, chain)
    assert (other.depth, other.planned, other.passes) == (3, 4, 2)
    assert parts(other) == [(0, 2), (1, 2), (0, 2), (1, 2), (0, 1), (0, 1)]
    assert other.step_sizes.tolist() == [0.25, 0.25, 0.5, math.inf, 1, 1]
    x = places()[:, :2]
    assert torch.equal(other.encode(x).z, chain.encode(x).z)
    other.use(1)  # a copy of its own
    other.held()[0].velocity.show(0, 1)
    assert chain.depth == 3
    assert parts(chain)[1] == (1, 2)


def test_lower_precision_keeps_counts_and_windows(places):
    _, chain = split_chain(6, 2)
    chain.use(3)
    low = copy.deepcopy(chain).half().double()
    assert low.counts.tolist() == [3, 4, 0]
    assert parts(through_state(low)) == parts(chain)
    x = places()[:, :2]
    torch.testing.assert_close(low.encode(x).z, chain.encode(x).z, rtol=0, atol=1e-2)


# --- splitting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "held"), [(2, 4), (3, 6)])
def test_a_split_leaves_the_map_as_on_a_finer_grid(places, factor, held):
    before, chain = split_chain(held, 2, factor)
    x = places()[:, :2]
    finer = before.with_numerics(RK438(3 * factor)).encode(x)
    found = chain.encode(x)
    assert gap((found.z, found.ladj), (finer.z, finer.ladj)) < 1e-13
    assert (
        gap(chain.decode(found.z), before.with_numerics(RK438(3 * factor)).decode(finer.z)) < 1e-13
    )


def test_a_split_in_two_turns_is_one_into_four(places):
    before, chain = split_chain(8, 2)
    chain.split(2)
    assert parts(chain) == [(j, 4) for j in range(4)] * 2
    x = places()[:, :2]
    found, finer = chain.encode(x), before.with_numerics(RK438(12)).encode(x)
    assert gap((found.z, found.ladj), (finer.z, finer.ladj)) < 1e-13
    assert chain.step_sizes.tolist() == [0.125] * 4 + [0.25] * 4


def test_a_split_divides_step_sizes_and_movements():
    _, chain = split_chain(9, 3, 3)
    assert (chain.depth, chain.planned) == (9, 9)
    assert chain.counts.tolist() == [9, 9, 0]
    expected = torch.tensor([0.5, 1.0, 1.5], dtype=F64).repeat_interleave(3) / 3
    assert torch.equal(chain.step_sizes, expected)
    moved = torch.tensor([1.0, 2.0, 3.0], dtype=F64).repeat_interleave(3) / 3
    assert torch.equal(chain.movements, moved)


def test_only_planned_blocks_are_split(places):
    before, chain = split_chain(6, 2)
    assert (chain.depth, chain.planned) == (4, 4)
    unused = [same_weights(a, b) for a, b in zip(before.held()[4:], chain.held()[4:], strict=True)]
    assert unused == [True, True]
    x = places()[:, :2]
    assert gap(chain.encode(x).z, before.with_numerics(RK438(6)).encode(x).z) < 1e-13


def test_the_parts_have_weights_of_their_own():
    _, chain = split_chain(4, 2)
    with torch.no_grad():
        next(chain.held()[1].parameters()).add_(1.0)
    first, second = (next(chain.held()[k].parameters()) for k in (0, 1))
    assert torch.equal(second, first + 1)


def test_blocks_without_time_are_not_split():
    with pytest.raises(Incompatible, match="block 1 is a Shift"):
        shifts(4).require_splittable(2, 2)


@pytest.mark.parametrize("more", [{"end_time": 2.0}, {"train_end_time": True}])
def test_blocks_over_another_time_are_not_split(more):
    chain = Growing([Continuous(velocity()), Continuous(velocity(), **more)])
    with pytest.raises(Incompatible, match=r"over \[0, 1\]; block 2 has another end_time"):
        chain.split(2)


def test_too_few_blocks_are_not_split():
    chain = grown(5)
    chain.use(3, 3)
    with pytest.raises(Incompatible, match=r"of 3 blocks by 2 needs 6 blocks.*holds 5"):
        chain.split(2)
    assert set(parts(chain)) == {(0, 1)}
    assert chain.planned == 3


@pytest.mark.parametrize(
    "others", [(SmallVelocity(2), SmallVelocity(2, 1)), (MLP(2), MLP(2, activation="tanh"))]
)
def test_blocks_that_are_built_differently_do_not_copy(others):
    chain = Growing([Continuous(other) for other in others])
    with pytest.raises(Incompatible, match=r"warm start copies.*block 2 is built differently"):
        chain.require_equal_blocks("warm start")


def test_equal_blocks_copy():
    grown(3).require_equal_blocks("warm start")


# --- recomputing ---------------------------------------------------------------------------------


def measured(flow, x, seed=3):
    encoded = flow.encode(x, [Transport()], generator=torch.Generator().manual_seed(seed))
    loss = encoded.z.square().sum() - encoded.ladj.sum() + encoded.costs.sum()
    return encoded, loss


@pytest.mark.parametrize("redraw", ["solve", "stage"])
def test_recomputing_gives_the_same_values_and_gradients(places, redraw):
    chain, x = grown(3, trace=Hutchinson(redraw=redraw)), places()[:, :2].requires_grad_()
    chain.use(2)
    again = chain.recomputing()
    (a, loss), (b, other) = measured(chain, x), measured(again, x)
    assert gap((b.z, b.ladj, b.costs), (a.z, a.ladj, a.costs)) < 1e-14
    wanted = [x, *chain.in_use()]
    assert gap(gradients(other, wanted), gradients(loss, wanted)) < 1e-12
    assert not any(block.integrator.recompute for block in chain.held())
    assert all(block.integrator.recompute for block in again.held())
    assert [id(p) for p in again.parameters()] == [id(p) for p in chain.parameters()]


def test_recomputing_leaves_other_blocks_and_solvers_alone():
    chain = Growing([Continuous(velocity(), TIGHT)])
    assert chain.recomputing().held() == chain.held()
    affine = shifts(2)
    assert affine.recomputing().held() == affine.held()


def test_a_velocity_that_is_a_window_already_is_taken_as_it_is():
    window = Window(velocity())
    assert Growing([Continuous(window)]).held()[0].velocity is window
