"""FFJORD's published solves, evaluation by evaluation: torchdiffeq as its code calls it."""

from __future__ import annotations

import pytest
import torch
from ffjord_golden import like_ours, network, off, read
from oracles import gap, gradients
from torchdiffeq import odeint_adjoint

from flowzoo.continuous import Augmented
from flowzoo.flow import log_normal
from flowzoo.odeint import Adjoint
from flowzoo.traces import Exact

KEYS = {
    "1e-10": ("", "nfe_forward_1e10", "nfe_backward_1e10"),
    **{
        tol: (f"dopri5_{tol}::", f"dopri5_{tol}::nfe_forward", f"dopri5_{tol}::nfe_backward")
        for tol in ("0.001", "1e-05", "1e-07")
    },
}


class Published:
    """Our right-hand side with a count, and with times that carry no gradient, as in the code."""

    def __init__(self, net):
        self.field, self.calls = Augmented(net, Exact(), [None], (), None), 0

    def __call__(self, t, state):
        self.calls += 1
        return self.field(t.detach(), state)


@pytest.mark.parametrize("tol", KEYS)
def test_the_published_call_has_the_published_values_and_counts(tol):
    """Ours differ from it in one thing: the last step lands on the end."""
    golden, (key, forward, backward) = read("cnf_2d_tanh"), KEYS[tol]
    net, x = network(golden, 2, "tanh"), golden["x"]
    field = Published(net)
    z, ladj = odeint_adjoint(
        field,
        (x, x.new_zeros(len(x))),
        torch.tensor([0.0, golden["T"].item()], dtype=torch.float64),
        rtol=float(tol),
        atol=float(tol),
        method="dopri5",
        adjoint_params=tuple(net.parameters()),
    )
    assert off(z[1], golden[f"{key}z"]) < 1e-12
    assert off(-ladj[1][:, None], golden[f"{key}delta_logp"]) < 1e-12
    assert field.calls == golden[forward]
    loss = -(log_normal(z[1]) + ladj[1]).mean()
    assert loss.item() == pytest.approx(golden[f"{key}loss"].item(), rel=1e-12)
    found = gradients(loss, net.parameters())
    assert field.calls == golden[forward] + golden[backward]
    if not key:
        assert gap(found, like_ours(net, golden, "grad_adjoint::")) < 1e-12


@pytest.mark.parametrize("tol", KEYS)
def test_the_adjoint_takes_no_more_evaluations_than_published(tol):
    """Up to the one step that landing on an end may take."""
    golden, (_, forward, backward) = read("cnf_2d_tanh"), KEYS[tol]
    net, x = network(golden, 2, "tanh"), golden["x"]
    solution = Adjoint(rtol=float(tol), atol=float(tol)).solve(
        Augmented(net, Exact(), [None], (), None),
        (x, x.new_zeros(len(x))),
        0.0,
        golden["T"].item(),
        tuple(net.parameters()),
    )
    z, ladj = solution.state
    gradients(-(log_normal(z) + ladj).mean(), net.parameters())
    assert solution.nfe.forward <= golden[forward] + 6
    assert solution.nfe.backward <= golden[backward] + 6
