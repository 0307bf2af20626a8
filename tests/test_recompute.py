"""Recomputation: the same gradients in a tenth of the memory; and second derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from components import fixed_grids, make_integrator
from oracles import F64, SavedBytes, gap, gradients, standard_normal
from variants import VARIANTS, VELOCITIES, costs_of, flow_of, loss_of

from flowzoo.errors import FlowzooError
from flowzoo.integrators import RK4
from flowzoo.traces import Hutchinson

# --- recomputation -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", fixed_grids())
@pytest.mark.parametrize("kind", VELOCITIES)
@pytest.mark.parametrize("redraw", ["solve", "stage"])
def test_recomputation_gives_the_same_gradient(name, kind, redraw, places):
    x, context = places(4, 2), places(4, 2, seed=1)
    found = []
    for recompute in (False, True):
        flow = flow_of(make_integrator(name, 5, recompute=recompute), kind, train_end_time=True)
        flow.trace = Hutchinson(redraw=redraw)
        encoder = torch.nn.Linear(2, 2, dtype=F64)
        with torch.no_grad():
            encoder.weight.copy_(torch.tensor([[0.5, 0.2], [-0.3, 1.0]]))
            encoder.bias.zero_()
        y = x.clone().requires_grad_()
        loss = loss_of(flow, y, encoder(context), costs_of(kind), seed=7)  # a context with a past
        values = [loss.detach()[None]]
        found.append(values + gradients(loss, [y, *encoder.parameters(), *flow.parameters()]))
    for plain, again in zip(*found, strict=True):
        assert gap(again, plain) < 1e-12


def test_recomputation_needs_a_tenth_of_the_memory(places):
    x, peaks = places(64, 2), {}
    for recompute in (False, True):
        flow = flow_of(RK4(32, recompute), context_dim=0)
        with SavedBytes() as saved:
            loss_of(flow, x).backward()
        peaks[recompute] = saved.peak
    assert peaks[True] < 0.1 * peaks[False]


def test_memory_of_recomputation_grows_with_the_state_alone(places):
    x, peaks = places(64, 2), []
    for steps in (8, 16, 32):
        flow = flow_of(RK4(steps, recompute=True), context_dim=0)
        with SavedBytes() as saved:
            loss_of(flow, x).backward()
        peaks.append(saved.peak)
    state = 64 * (2 + 1) * 8  # bytes of x and ladj
    assert peaks[1] - peaks[0] == pytest.approx(8 * state, rel=0.2)
    assert peaks[2] - peaks[1] == pytest.approx(16 * state, rel=0.2)


@pytest.mark.parametrize("recompute", [False, True])
def test_weights_changed_before_the_backward_pass_are_noticed(recompute, places):
    """An optimizer step between forward and backward must not give a wrong gradient."""
    flow = flow_of(RK4(2, recompute), context_dim=0)
    loss = loss_of(flow, places(3, 2))
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- second derivatives --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", VELOCITIES)
def test_first_and_second_derivatives_of_the_density(kind, places):
    flow, x = flow_of(RK4(1), kind, context_dim=0), places(2, 2)
    tensors = {k: p.detach().clone().requires_grad_() for k, p in flow.named_parameters()}

    def density(x, *values):
        named = dict(zip(tensors, values, strict=True))
        return torch.func.functional_call(
            _LogProb(flow), {f"flow.{k}": v for k, v in named.items()}, (x,)
        )

    inputs = (x.requires_grad_(), *tensors.values())
    assert torch.autograd.gradcheck(density, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(density, inputs, fast_mode=True)


class _LogProb(torch.nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return self.flow.log_prob(x)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "recompute" in v or "adjoint" in v])
@pytest.mark.parametrize("by", ["places", "weights", "context"])
@pytest.mark.parametrize("what", ["log_prob", "ladj"])
def test_a_missing_second_derivative_is_an_error(variant, what, by, places):
    """A penalty on a gradient must not vanish silently from a loss that has other terms."""
    flow, x = flow_of(variant, context_dim=2), places(3, 2).requires_grad_()
    context = places(3, 2, seed=1).requires_grad_()
    tensor = {"places": x, "weights": flow.velocity.net[2].weight, "context": context}[by]

    def penalised():
        end = flow.encode(x, context=context)
        value = end.ladj.sum() + (standard_normal(end.z).sum() if what == "log_prob" else 0)
        (gradient,) = torch.autograd.grad(value, tensor, create_graph=True)
        (value + gradient.square().sum()).backward()

    with pytest.raises((RuntimeError, FlowzooError), match=r"twice|differentiat"):
        penalised()


def test_a_penalty_on_the_score_trains_the_weights(places):
    flow, x = flow_of(RK4(3), context_dim=0), places(4, 2).requires_grad_()

    def penalty():
        (score,) = torch.autograd.grad(flow.log_prob(x).sum(), x, create_graph=True)
        return score.square().sum()

    parameter = flow.velocity.net[2].weight
    direction = torch.randn_like(parameter)
    exact = (torch.autograd.grad(penalty(), parameter)[0] * direction).sum().item()
    with torch.no_grad():
        parameter.add_(1e-5 * direction)
    above = penalty().item()
    with torch.no_grad():
        parameter.sub_(2e-5 * direction)
    assert exact == pytest.approx((above - penalty().item()) / 2e-5, rel=1e-6)
    assert math.isfinite(exact)
