"""ActNorm and the normalisations within networks: when they are set, and that they stay so."""

from __future__ import annotations

import copy

import pytest
import torch
from oracles import F64, gap, gradients, jacobian

from flowzoo.errors import Incompatible
from flowzoo.flow import Chain
from flowzoo.regularizers import Transport
from flowzoo_cp_flow.actnorm import ActNorm
from flowzoo_cp_flow.flow import ConvexFlow
from flowzoo_cp_flow.icnn import ICNN
from flowzoo_cp_flow.layers import Normalisation


@pytest.fixture
def norm(places):
    norm = ActNorm(3).double()
    norm.encode(2 + 3 * places(50))
    return norm


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(module, before):
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_first_training_batch_is_standardised(places):
    x = 5 + 2 * places(40)
    norm = ActNorm(3).double()
    z = norm.encode(x).z
    assert z.mean(0).abs().max() < 1e-14
    # Scale 1 / (std + 1e-6) + 0.001.
    std = x.std(0, correction=0)
    assert gap(z.std(0, correction=0), std / (std + 1e-6) + 1e-3 * std) < 1e-13


def test_a_bijection_with_its_log_determinant(norm, places):
    x = places(6).requires_grad_()
    out = norm.eval().encode(x)
    assert gap(norm.decode(out.z), x) < 1e-14
    assert gap(out.ladj, torch.linalg.slogdet(jacobian(out.z, x))[1]) < 1e-14
    assert out.costs.shape == (6, 0)


def test_only_the_first_training_batch_sets_it(norm, places):
    before = state(norm)
    norm.encode(7 * places(9))
    norm.eval().encode(7 * places(9))
    norm.decode(places(9))
    assert same(norm, before)


def test_evaluation_and_single_rows_never_set_it(places):
    """Until it is set it is the identity."""
    norm = ActNorm(3).double()
    x, before = 4 + places(5), state(norm)
    for training, batch in ((False, x), (True, x[:1]), (True, x[:0])):
        out = norm.train(training).encode(batch)
        assert torch.allclose(out.z, batch, rtol=1e-7, atol=0)
        assert (out.ladj.abs() < 1e-6).all()
    assert same(norm, before)
    assert norm.norm.waits
    norm.encode(x)
    assert not norm.norm.waits


def test_a_constant_coordinate_gets_a_large_scale(places):
    x = places(20)
    x[:, 1] = 3
    norm = ActNorm(3).double()
    out = norm.encode(x)
    assert out.z.isfinite().all()
    assert norm.norm.scale[1].item() == pytest.approx(1e6, rel=1e-3)


def test_what_was_set_is_trained(norm, places):
    found = gradients(norm.log_prob(places(9)).mean(), norm.parameters())
    assert all(g.abs().min() > 1e-3 for g in found)


def test_being_set_survives_saving_copying_and_other_precisions(norm, places):
    x = 9 * places(8)
    again = ActNorm(3).double()
    again.encode(x)  # set by something else
    again.load_state_dict(norm.state_dict())
    for other in (again, copy.deepcopy(norm), copy.deepcopy(norm).float().double()):
        assert not other.norm.waits
        before = state(other)
        other.train().encode(x)
        assert same(other, before)
    assert gap(again.encode(x).z, norm.encode(x).z) == 0


def test_waiting_survives_saving_and_copying(norm, places):
    """What was set waits again with the state of one that waits."""
    waiting, x = ActNorm(3).double(), 9 * places(8)
    norm.load_state_dict(waiting.state_dict())
    for other in (norm, copy.deepcopy(waiting)):
        assert other.norm.waits
        assert other.train().encode(x).z.mean(0).abs().max() < 1e-14
        assert not other.norm.waits
    assert waiting.norm.waits


def test_a_state_without_the_mark_is_refused():
    """Else the first batch would overwrite what was loaded."""
    kept = {k: v for k, v in ActNorm(3).state_dict().items() if not k.endswith("ready")}
    with pytest.raises(RuntimeError, match=r"norm\.ready"):
        ActNorm(3).load_state_dict(kept)


def test_one_whose_mark_is_set_in_place_is_set(places):
    """As averages of weights are copied."""
    norm = ActNorm(3).double()
    assert norm.norm.waits
    norm.norm.ready.fill_(True)
    before = state(norm)
    norm.encode(places(5))
    assert same(norm, before)


def test_networks_settle_within_a_chain(places):
    x = 3 + 5 * places(300, 2)
    nets = [ConvexFlow(ICNN(2, 6, 2)) for _ in range(2)]
    chain = Chain([ActNorm(2), nets[0], ActNorm(2), nets[1], ActNorm(2)]).double()
    z = chain.encode(x).z
    assert z.mean(0).abs().max() < 1e-12
    assert (z.std(0, correction=0) - 1).abs().max() < 0.05
    norms = [m for m in chain.modules() if isinstance(m, Normalisation)]
    assert len(norms) == 9
    assert not any(m.waits for m in norms)
    before = state(chain)
    chain.encode(2 * x)
    assert same(chain, before)


def test_an_unset_normalisation_is_the_identity():
    norm = Normalisation(4).double()
    assert gap(norm.scale, torch.ones(4, dtype=F64)) < 1e-7, "float32 parameters"
    assert not norm.shift.any()


def test_no_trajectory(norm, places):
    with pytest.raises(Incompatible, match=r"ActNorm has no trajectory.*Transport"):
        norm.encode(places(5), [Transport()])
