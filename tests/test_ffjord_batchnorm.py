"""FFJORD's moving batch normalisation, alone and between blocks."""

from __future__ import annotations

import copy

import pytest
import torch
from oracles import gap, gradients, jacobian

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible, UserError
from flowzoo.flow import Chain
from flowzoo.integrators import RK4
from flowzoo.regularizers import Transport
from flowzoo_ffjord.batchnorm import MovingBatchNorm
from flowzoo_ffjord.velocity import ODENet


@pytest.fixture
def norm(places):
    norm = MovingBatchNorm(3).double()
    with torch.no_grad():
        for tensor in norm.parameters():
            tensor.copy_(torch.randn(3))
    norm.encode(2 + 3 * places(50, 3))
    return norm


def test_batch_norm_is_a_bijection_with_its_log_determinant(norm, places):
    x = places(6, 3).requires_grad_()
    out = norm.eval().encode(x)
    assert gap(norm.decode(out.z), x) < 1e-14
    assert gap(out.ladj, torch.linalg.slogdet(jacobian(out.z, x))[1]) < 1e-13
    assert out.costs.shape == (6, 0)


def test_batch_norm_follows_the_batches_but_normalises_with_the_averages(norm, places):
    x = 5 + 2 * places(400, 3)
    before = norm.encode(x).z
    assert gap(before[:10], norm.eval().encode(x[:10]).z) > 1e-3, "moved after the encoding"
    norm.train()
    for _ in range(300):
        norm.encode(x)
    assert gap(norm.running_mean, x.mean(0)) < 1e-10
    assert gap(norm.running_var, x.var(0)) < 1e-10
    alone, among = norm.encode(x[:1]), norm.encode(x)
    assert gap(alone.z, among.z[:1]) < 1e-10, "a row does not depend on its batch"
    assert norm.running_var.isfinite().all(), "one row has no variance"


def test_batch_norm_in_training_allows_two_forwards_before_one_backward(norm, places):
    x = places(20, 3)
    twin = copy.deepcopy(norm)
    alone = gradients(twin.log_prob(x).mean(), twin.parameters())
    first = norm.log_prob(x).mean()
    norm.log_prob(3 + x)
    assert gap(gradients(first, norm.parameters()), alone) < 1e-14


def test_batch_norm_has_no_trajectory(norm, places):
    with pytest.raises(Incompatible, match=r"MovingBatchNorm has no trajectory.*Transport"):
        norm.encode(places(5, 3), [Transport()])


@pytest.mark.parametrize("options", [{"decay": 1.5}, {"eps": 0.0}])
def test_batch_norm_refuses(options):
    with pytest.raises(UserError, match=next(iter(options))):
        MovingBatchNorm(3, **options)


def test_blocks_with_batch_norm_between_them(norm, places):
    blocks = [Continuous(ODENet(3, (5,)).double(), RK4(32)) for _ in range(2)]
    chain = Chain([blocks[0], norm, blocks[1]]).eval()
    x = places(4, 3).requires_grad_()
    out = chain.encode(x)
    assert gap(out.ladj, torch.linalg.slogdet(jacobian(out.z, x))[1]) < 1e-5
    assert gap(chain.decode(out.z), x) < 1e-5
    with pytest.raises(Incompatible, match="MovingBatchNorm has no trajectory"):
        chain.requires([Transport()])
