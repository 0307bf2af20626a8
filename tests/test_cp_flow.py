"""The convex flow: closed forms, volume, convexity, mass, modes of training, what it refuses."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from components import make, names
from cp_flow_fits import COVARIANCE, F64, LAW, MEAN, convex, gaussians, settled, trained
from oracles import gap, jacobian
from torch.distributions import MultivariateNormal
from torch.nn.functional import softplus

from flowzoo.errors import Diverged, Incompatible
from flowzoo.flow import Chain
from flowzoo.logdet import SLQ
from flowzoo.regularizers import Transport
from flowzoo.traces import Exact
from flowzoo_cp_flow.actnorm import ActNorm
from flowzoo_cp_flow.convex import Convex
from flowzoo_cp_flow.flow import ConvexFlow
from flowzoo_cp_flow.icnn import ICNN


class Quadratic(Convex):
    """G = x' A x / 2 + b' x, its derivatives by automatic differentiation."""

    def __init__(self, a, b):
        super().__init__()
        self.dim = len(b)
        self.a, self.b = torch.nn.Parameter(a), torch.nn.Parameter(b)

    def forward(self, x, context=None):
        return 0.5 * (x @ self.a * x).sum(-1) + x @ self.b


@pytest.fixture
def quadratic(places):
    root, b = places(4, 4, seed=1), places(1, 4, seed=2)[0]
    flow = ConvexFlow(Quadratic(root @ root.T, b), quadratic=0.7, weight=0.4, least=0.2).to(F64)
    return flow, 0.4 * root @ root.T + 0.9 * torch.eye(4, dtype=F64), 0.4 * b


# --- closed forms ------------------------------------------------------------------------------


def test_a_quadratic_potential_is_a_gaussian(quadratic, places):
    """z = M x + b: x ~ N(-M^-1 b, M^-2)."""
    flow, m, b = quadratic
    x, inverse = 3 * places(50, 4), torch.linalg.inv(m)
    law = MultivariateNormal(-inverse @ b, inverse @ inverse)
    assert gap(flow.log_prob(x), law.log_prob(x)) < 1e-6  # w0 and w1 were float32 at first
    assert gap(flow.encode(x).z, x @ m + b) < 1e-6
    assert gap(flow.decode(x), (x - b) @ inverse) < 1e-6


def test_its_point_is_that_of_the_whole_potential(quadratic, places):
    flow, m, b = quadratic
    x = places(5, 4)
    point = flow.at(x)
    assert gap(point.value, 0.5 * (x @ m * x).sum(-1) + x @ b) < 1e-6
    assert gap(point.hessian.dense(), m.expand(5, -1, -1)) < 1e-6
    assert point.hessian.floor.item() == pytest.approx(0.9)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_ladj_is_that_of_the_jacobian_of_encode(d, places):
    flow, x = settled(d), 2 * places(7, d).requires_grad_()
    out = flow.encode(x)
    a = jacobian(out.z, x)
    assert gap(out.ladj, torch.linalg.slogdet(a)[1]) < 1e-12
    assert gap(a, a.mT) < 1e-14, "the Jacobian of a gradient is symmetric"
    assert a.det().log().std() > 0.01, "not a linear map"


def test_a_chain_with_actnorms_settles_block_after_block(places):
    torch.manual_seed(0)
    blocks = [ActNorm(2), ConvexFlow(ICNN(2, 8)), ActNorm(2), ConvexFlow(ICNN(2, 8))]
    flow = Chain(blocks).to(F64)
    data = 5 + 3 * places(200, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.4]], dtype=F64)
    x = data[:9].clone().requires_grad_()
    before = flow.eval().encode(x).z
    flow.train().encode(data)
    out = flow.eval().encode(x)
    assert gap(out.z, before) > 0.1
    assert gap(out.ladj, torch.linalg.slogdet(jacobian(out.z, x))[1]) < 1e-12
    assert gap(flow.decode(out.z), x) < 1e-8
    first, second, third, _ = flow.flows()
    mid = first.encode(data).z
    for y in (mid, third.encode(second.encode(mid).z).z):
        assert (y.mean(0).abs() < 1e-10).all()
        assert gap(y.std(0, correction=0), torch.ones(2, dtype=F64)) < 1e-2


def test_training_on_a_gaussian_finds_the_optimal_map():
    """z = C^-1/2 (x - m) is the gradient of a convex function; the Cholesky factor's map is not."""
    flow = trained(convex(), gaussians(), steps=120)
    (x,) = gaussians(seed=1, n=2000)()
    values, vectors = torch.linalg.eigh(COVARIANCE)
    with torch.no_grad():
        error = flow.encode(x).z - (x - MEAN) @ (vectors / values.sqrt()) @ vectors.T
        missing = -flow.log_prob(x).mean() + LAW.log_prob(x).mean()
    assert error.square().sum(-1).mean().sqrt() < 0.1
    assert missing < 0.02


# --- convexity ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("convex"))
def test_hessians_are_positive_definite_at_a_hundred_thousand_points(name):
    """Of random weights and of trained ones, near the data and far out, for any context."""
    torch.manual_seed(0)
    flow = ConvexFlow(make("convex", name, dim=2, width=16, context_dim=1)).to(F64)
    generator, draw = torch.Generator().manual_seed(1), gaussians()

    def contexts(n):
        wide = 3 * torch.randn(n, 1, generator=generator, dtype=F64)
        return wide if flow.context_dim else None

    for fit in (False, True):
        if fit:
            trained(flow, lambda: (*draw(), contexts(128)), steps=40)
        floor = softplus(flow.raw_quadratic).item()
        for far in (1.0, 10.0, 1e3):
            x = far * torch.randn(17_000, 2, generator=generator, dtype=F64)
            with torch.no_grad():
                h = flow.at(x, contexts(len(x))).hessian.dense()
            assert torch.linalg.eigvalsh(h).amin() >= floor * (1 - 1e-12)


def test_least_bounds_the_eigenvalues_and_keeps_points_apart(places):
    flow = convex(3, 16, shake=0.3, quadratic=1e-4, weight=1e-3, least=0.3)
    x, y = 100 * places(50, 3), 100 * places(50, 3, seed=1)
    with torch.no_grad():
        eigenvalues = torch.linalg.eigvalsh(flow.at(x).hessian.dense())
        apart = (flow.encode(x).z - flow.encode(y).z).norm(dim=-1)
    assert eigenvalues.amin() >= 0.3
    assert eigenvalues.amin() < 0.31, "the bound is what holds them up"
    assert (apart >= 0.3 * (x - y).norm(dim=-1)).all()


@pytest.mark.parametrize(
    "wrong", [{"quadratic": 0.0}, {"weight": -1.0}, {"least": -0.1}, {"quadratic": math.nan}]
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(Incompatible, match="must be positive and least not negative"):
        convex(**wrong)


# --- mass --------------------------------------------------------------------------------------


def test_the_mass_of_a_trained_density_is_one():
    """On a grid of two bent arms, in coordinates of the data."""
    generator = torch.Generator().manual_seed(0)

    def arms():
        u = torch.rand(256, 1, generator=generator, dtype=F64) * math.pi
        side = torch.randint(2, (256, 1), generator=generator).to(F64) * 2 - 1
        x = torch.cat([side * (u.cos() - 0.5), side * (u.sin() - 0.25)], -1)
        return (x + 0.15 * torch.randn(256, 2, generator=generator, dtype=F64),)

    flow = trained(convex(width=16), arms, steps=60)
    axis = torch.linspace(-6, 6, 241, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        p = torch.cat([flow.log_prob(part) for part in grid.split(20_000)]).exp()
    assert abs(p.sum() * (axis[1] - axis[0]) ** 2 - 1) < 1e-4
    assert p.max() > 0.1


# --- what training and evaluation do -----------------------------------------------------------


def test_only_a_training_batch_of_several_points_settles(places):
    flow, x = convex(), 2 + places(20, 2)
    flow.eval().encode(x)
    flow.train().encode(x[:1])
    flow.encode(x[:0])
    assert flow.potential.waits
    flow.encode(x)
    assert not flow.potential.waits
    first = copy.deepcopy(flow.state_dict())
    flow.encode(5 * x)
    assert all(torch.equal(first[k], v) for k, v in flow.state_dict().items())


def test_a_settled_training_step_never_waits_for_the_device(places):
    """On the meta device, which has no values to look at."""
    flow = settled(3).train().to("meta")
    flow.log_prob(places(8, 3).to("meta")).mean().backward()
    assert flow.raw_weight.grad is not None


def test_other_numerics_share_the_weights(places):
    flow, x = settled(3), places(6, 3)
    other = flow.with_numerics(trace=SLQ(4, steps=2))
    assert [id(w) for w in other.parameters()] == [id(w) for w in flow.parameters()]
    assert isinstance(flow.trace, Exact)
    assert not other.training
    assert gap(other.encode(x).z, flow.encode(x).z) == 0
    assert gap(other.encode(x).ladj, flow.encode(x).ladj) > 1e-6
    assert gap(other.with_numerics(trace=Exact()).encode(x).ladj, flow.encode(x).ladj) == 0
    chain = Chain([ActNorm(3).to(F64), flow]).with_numerics(trace=SLQ())
    assert isinstance(chain.flows()[1].trace, SLQ)


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3), (2,), (2, 2, 2)])
def test_points_of_another_shape_are_refused(shape):
    flow = convex()
    for call in (flow.encode, flow.decode, flow.log_prob):
        with pytest.raises(Incompatible, match=r"points must have shape \(n, 2\), got \("):
            call(torch.zeros(shape, dtype=F64))


def test_a_cost_along_the_way_is_refused(places):
    with pytest.raises(Incompatible, match="no trajectory along which to integrate Transport"):
        convex().encode(places(4, 2), [Transport()])


def test_a_needless_context_is_refused(places):
    with pytest.raises(Incompatible, match="context"):
        convex().log_prob(places(4, 2), places(4, 2))


def test_nan_does_not_settle_and_stays_in_its_row(places):
    x = places(6, 2)
    x[2, 1] = math.nan
    flow = convex().train()
    with pytest.raises(Diverged, match="the first training batch"):
        flow.encode(x)
    assert flow.potential.waits
    log_p = flow.eval().log_prob(x)
    assert log_p.isnan().tolist() == [False, False, True, False, False, False]
    with pytest.raises((Diverged, Incompatible), match=r"nan|inf"):
        flow.decode(x)
