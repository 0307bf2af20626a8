"""The triangular flow: any Gaussian, by another map than the optimal one."""

from __future__ import annotations

import pytest
import torch
from oracles import F64, gap, gradients, jacobian

from flowzoo.bench.phases import gaussian_nll
from flowzoo.data.wishart import WishartGaussian
from flowzoo.errors import Incompatible
from flowzoo.judge import evaluate
from flowzoo.judge.displacement import Displacement
from flowzoo.regularizers import Transport
from flowzoo_cp_flow.triangular import Triangular


def drawn(dim):
    """Return a triangular flow away from the identity."""
    flow = Triangular(dim).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape))
    return flow


def fitted(x):
    """Return the triangular flow of maximum likelihood, by L-BFGS on all rows."""
    flow = Triangular(x.shape[1]).double()
    solver = torch.optim.LBFGS(
        flow.parameters(),
        max_iter=500,
        history_size=50,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def loss():
        solver.zero_grad()
        value = -flow.log_prob(x).mean()
        value.backward()
        return value

    solver.step(loss)
    return flow


def test_it_starts_as_the_identity(places):
    x = places(5, 4)
    encoded = Triangular(4).double().encode(x)
    assert torch.equal(encoded.z, x)
    assert torch.equal(encoded.ladj, torch.zeros(5, dtype=F64))


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_it_is_a_triangular_bijection_with_its_log_determinant(dim, places):
    flow, x = drawn(dim), places(6, dim).requires_grad_()
    encoded = flow.encode(x)
    slopes = jacobian(encoded.z, x)
    assert gap(encoded.ladj, torch.linalg.slogdet(slopes)[1]) < 1e-13
    assert gap(slopes, slopes.tril()) == 0
    assert bool((slopes.diagonal(dim1=-2, dim2=-1) > 0).all())
    assert gap(slopes[0], slopes[-1]) == 0  # the same everywhere
    assert gap(flow.decode(encoded.z), x) < 1e-12
    z = places(6, dim, seed=1)
    assert gap(flow.encode(flow.decode(z)).z, z) < 1e-12


def test_its_density_is_the_gaussian_that_it_says(places):
    flow, x = drawn(5), places(20, 5)
    factor = jacobian(flow.encode(y := x.clone().requires_grad_()).z, y)[0]
    covariance = (factor.mT @ factor).inverse()
    mean = -torch.linalg.solve(factor, flow.shift)
    law = torch.distributions.MultivariateNormal(mean, covariance)
    assert gap(flow.log_prob(x), law.log_prob(x)) < 1e-11


def test_every_entry_below_the_diagonal_is_one_parameter(places):
    flow = drawn(5)
    assert sum(p.numel() for p in flow.parameters()) == 15 + 5
    assert flow.state_dict().keys() == {"raw", "shift"}
    found = gradients(flow.log_prob(places(9, 5)).mean(), flow.parameters())
    assert all(bool((g != 0).all()) for g in found)


def test_likelihood_finds_the_gaussian_of_the_rows():
    dataset = WishartGaussian(4, train=500, val=2, test=2000, seed=1)
    data = dataset.load()
    flow = fitted(data.train)
    found = -float(flow.log_prob(data.train).mean().detach())
    assert found == pytest.approx(gaussian_nll(data.train, data.train), abs=1e-7)
    # Its law is right up to the 500 rows, its map is not the optimal one.
    measures = evaluate(flow, data, metrics=[Displacement()])
    ratio = measures["displacement-optimality"]
    assert ratio.value - ratio.error > 1.02


def test_costs_along_a_way_are_refused(places):
    with pytest.raises(Incompatible, match="Triangular has no trajectory"):
        Triangular(2).encode(places(3, 2).float(), [Transport()])
