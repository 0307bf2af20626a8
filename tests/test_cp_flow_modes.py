"""log_prob of a convex flow is a log-density in every mode of its trace, and so is its gradient."""

from __future__ import annotations

import pytest
import torch
from cp_flow_fits import F64, settled
from oracles import gap, gradients

from flowzoo.errors import Incompatible
from flowzoo.flow import Chain, log_normal
from flowzoo.logdet import CG, SLQ, Surrogate
from flowzoo.traces import Exact, Hutchinson

D = 6
MODES = {
    "slq": SLQ(64, steps=D),
    "slq radau": SLQ(64, steps=D, rule="radau"),
    "slq preconditioned": SLQ(64, steps=D, precondition=3),
    "slq gaussian": SLQ(64, steps=D, noise="gaussian"),
    "cg": CG(64, atol=1e-10),
    "cg preconditioned": CG(64, atol=1e-10, precondition=3),
    "surrogate": Surrogate(),
    "surrogate of slq": Surrogate(SLQ(64, steps=D), CG(1)),
}


def trainable(flow):
    return [w for w in flow.parameters() if w.requires_grad]


@pytest.fixture
def flow():
    return settled(D, quadratic=0.3)


@pytest.mark.parametrize("name", MODES)
def test_the_mean_over_probes_is_the_log_density(flow, places, seeded, name):
    """And not the pseudo-value d of a quadratic form of the Hessian with its own inverse."""
    x = 2 * places(4, D)
    other = flow.with_numerics(trace=MODES[name]).train()
    expected = flow.log_prob(x)
    estimates = torch.stack([other.log_prob(x, generator=seeded(i)).detach() for i in range(25)])
    mean, error = estimates.mean(0), estimates.std(0) / 25**0.5
    assert ((mean - expected).abs() <= 4 * error + 1e-9).all()
    assert (error < 0.2).all()
    pseudo = log_normal(flow.encode(x).z) + D
    assert ((mean - pseudo).abs() > 2).all()


@pytest.mark.parametrize("trace", [SLQ(1, steps=D), CG(1, atol=1e-12)])
def test_with_a_basis_for_probes_gradients_are_those_of_the_exact_mode(places, trace):
    """Of all weights, and of the points, through which an earlier block is reached."""
    x = 2 * places(5, D).requires_grad_()
    basis = D**0.5 * torch.eye(D, dtype=F64)[:, None, :].expand(D, len(x), D)
    trace.probes = lambda x, generator=None: basis
    exact = Chain([settled(D, seed=1), settled(D, seed=2)])
    leaves = [x, *trainable(exact)]
    found, expected = (
        (f.log_prob(x), gradients(f.log_prob(x).mean(), leaves))
        for f in (exact.with_numerics(trace=trace), exact)
    )
    assert gap(found[0], expected[0]) < 1e-10
    for one, other in zip(found[1], expected[1], strict=True):
        assert (one - other).abs().max() < 1e-9 * (1 + other.abs().max())


def test_a_surrogate_has_the_exact_value_and_a_random_gradient(flow, places, seeded):
    x = places(3, D)
    other = flow.with_numerics(trace=Surrogate())
    values = [other.log_prob(x, generator=seeded(i)) for i in (0, 1)]
    slopes = [torch.cat([g.flatten() for g in gradients(v.sum(), trainable(flow))]) for v in values]
    assert gap(values[0], flow.log_prob(x)) < 1e-12
    assert gap(values[0], values[1]) < 1e-12
    assert gap(slopes[0], slopes[1]) > 1e-4


def test_truncation_is_an_error_above_and_with_radau_below(places):
    """With a basis for probes nothing else is wrong."""
    flow, x = settled(D, quadratic=0.02), 2 * places(5, D)
    basis = D**0.5 * torch.eye(D, dtype=F64)[:, None, :].expand(D, len(x), D)
    point = flow.at(x)
    exact = torch.linalg.slogdet(point.hessian.dense())[1]
    above, below = (
        SLQ(1, 2, rule=rule)(point.hessian, basis, torch.log) - exact for rule in ("gauss", "radau")
    )
    assert (above > 1e-5).all()
    assert (below < -1e-5).all()


def test_a_trace_without_a_logarithm_is_refused(flow, places):
    with pytest.raises(Incompatible, match="spectral function"):
        flow.with_numerics(trace=Hutchinson()).log_prob(places(3, D))


def test_the_exact_mode_has_gradients_of_the_autograd_determinant(flow, places):
    x = 2 * places(4, D).requires_grad_()
    encoded = flow.encode(x)
    columns = encoded.z.unbind(-1)
    rows = [torch.autograd.grad(z.sum(), x, create_graph=True)[0] for z in columns]
    volume = torch.linalg.slogdet(torch.stack(rows, 1))[1]
    leaves = [x, *trainable(flow)]
    expected = gradients(volume.sum(), leaves)
    found = gradients(flow.encode(x).ladj.sum(), leaves)
    assert isinstance(flow.trace, Exact)
    assert gap(encoded.ladj, volume) < 1e-12
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < 1e-10 * (1 + other.abs().max())
