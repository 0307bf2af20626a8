"""FFJORD that cannot be solved any more: how it failed, at which step, and the cell's state."""

from __future__ import annotations

import pytest
import torch
from oracles import F64, Explosive
from torch import nn

from flowzoo.bench.cell import state_of
from flowzoo.continuous import Continuous
from flowzoo.errors import Diverged
from flowzoo.field import Velocity
from flowzoo.objective import Batch, Likelihood
from flowzoo.odeint import Adjoint, Dopri5
from flowzoo.settings import Budget, Optimizer, Training
from flowzoo.training import fit
from flowzoo_ffjord.velocity import ODENet

TIGHT = {"rtol": 1e-6, "atol": 1e-6}
SETTINGS = Training(
    batch_size=4, optimizer=Optimizer(lr=1e-3), validate_every=0, precision="float64"
)


class Backwards(Velocity):
    """v = w, whose gradient in w is 1 / (t - 1/2)^2 in the backward solve alone."""

    def __init__(self, dim=1, pole=True):
        super().__init__()
        self.dim, self.pole, self.w = dim, pole, nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, t, x, context=None):
        return _Pole.apply(self.w, t, self.pole).expand_as(x) + 0 * x


class _Pole(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, t, pole):
        ctx.save_for_backward(t)
        ctx.pole = pole
        return w.clone()

    @staticmethod
    def backward(ctx, grad):
        (t,) = ctx.saved_tensors
        return grad * ((t - 0.5) ** -2 if ctx.pole else torch.full_like(t, torch.nan)), None, None


def fitted(velocity, integrator, rows=4):
    """Fit in float64 on data at 1; three steps at most."""
    flow = Continuous(velocity, integrator)
    x = torch.ones(rows, velocity.dim, dtype=F64)
    return fit(flow, Likelihood(), Batch(x), budget=Budget(steps=3), training=SETTINGS)


def stiff():
    net = ODENet(2, (8,)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(40)
    return net


def overflowing():
    """Return a field of finite weights that is infinite at once."""
    net = ODENet(2, (8,), activation="square").double()
    torch.nn.init.constant_(net.layers[0].linear.weight, 1e200)
    return net


FORWARD = {
    "explosion": (lambda: Explosive(1), {}, r"(non-finite values|underflow in dt)"),
    "overflow": (overflowing, {}, "non-finite values of the field"),
    "steps": (stiff, {"max_steps": 4}, r"max_num_steps exceeded"),
}
BACKWARD = {
    "pole": (Backwards, {"max_steps": 200}, r"(underflow in dt|max_num_steps|non-finite)"),
    "nan": (lambda: Backwards(pole=False), {}, r"(underflow in dt|non-finite)"),
    "steps": (
        lambda: ODENet(2, (8,)).double(),
        {"adjoint_rtol": 1e-13, "adjoint_atol": 1e-13, "max_steps": 20},
        "max_num_steps exceeded",
    ),
}


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("kind", [Adjoint, Dopri5])
def test_a_forward_solve_that_gives_up_ends_the_run_as_diverged(name, kind):
    make, options, said = FORWARD[name]
    with pytest.raises(Diverged, match=rf"^at step 1 \(lr 0\.001\): dopri5: {said}") as caught:
        fitted(make(), kind(**TIGHT, **options))
    state, reason, trace = state_of(caught.value)
    assert (state, trace) == ("diverged", "")
    assert reason.startswith("at step 1 ")


@pytest.mark.parametrize("name", BACKWARD)
def test_a_backward_solve_that_gives_up_ends_the_run_as_diverged(name):
    make, options, said = BACKWARD[name]
    velocity = make()
    integrator = Adjoint(**{**TIGHT, "max_steps": 500, **options})
    flow = Continuous(velocity, integrator)
    with torch.no_grad():  # the forward solve is no trouble
        assert flow.encode(torch.ones(4, velocity.dim, dtype=F64)).z.isfinite().all()
    with pytest.raises(Diverged, match=rf"^at step 1 \(lr 0\.001\): .*{said}") as caught:
        fitted(velocity, integrator)
    assert state_of(caught.value)[0] == "diverged"
