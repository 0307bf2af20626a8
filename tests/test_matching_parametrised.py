"""Networks of the data, the noise and the score: one velocity, one minimiser, any weight."""

from __future__ import annotations

import math

import pytest
import torch
from matching_oracles import F64, GaussianVelocity, close, gauss_hermite
from torch import nn

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible, UserError
from flowzoo.field import Gradient, Point, Velocity
from flowzoo.integrators import RK4
from flowzoo.maps import LinearMap
from flowzoo.networks import MLP, PotentialMLP
from flowzoo.objective import Batch
from flowzoo.traces import Exact
from flowzoo_matching.objective import Matching
from flowzoo_matching.parametrised import Parametrised
from flowzoo_matching.path import Affine, ProbabilityPath
from flowzoo_matching.schedule import OT, VP, Cosine, LinearVP, Polynomial
from flowzoo_matching.times import Beta

KINDS = ["velocity", "data", "noise", "score"]
WEIGHTS = ["constant", "velocity", "data", "noise", "score", "min-snr"]
SCHEDULES = [OT(), OT(0.1), VP(), Polynomial(2), LinearVP(), Cosine()]
MEAN, STD = torch.tensor([1.5, -0.5], dtype=F64), torch.tensor([0.5, 2.0], dtype=F64)


class Affinely(Velocity):
    """(1 + a) q + b with q the exact mean of a quantity given x_t, for data N(MEAN, STD^2)."""

    dim = 2

    def __init__(self, schedule, kind):
        super().__init__()
        self.schedule, self.kind = schedule, kind
        self.a = nn.Parameter(torch.zeros(2, dtype=F64))
        self.b = nn.Parameter(torch.zeros(2, dtype=F64))

    def forward(self, t, x, context=None):
        at = self.schedule.at(t.reshape(-1, 1))
        variance = (at.alpha * STD).square() + at.sigma.square()
        off = (x - at.alpha * MEAN) / variance
        data, noise = MEAN + at.alpha * STD.square() * off, at.sigma * off
        exact = {"data": data, "noise": noise, "score": -off}
        exact["velocity"] = at.d_alpha * data + at.d_sigma * noise
        return (1 + self.a) * exact[self.kind] + self.b


def gaussian(schedule, kind, **options):
    return Parametrised(Affinely(schedule, kind), schedule, kind, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_velocity_is_the_exact_one(schedule, kind, places):
    t, x = torch.linspace(0.01, 0.99, 7, dtype=F64), places(7, 2)
    velocity, exact = gaussian(schedule, kind), GaussianVelocity(schedule, MEAN, STD)
    with torch.no_grad():
        close(velocity(t, x), exact(t, x), 1e-10, rtol=1e-10)
        close(velocity(t[2], x), exact(t[2], x), 1e-10, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_outside_the_window_it_is_held_and_finite(kind, places):
    x, ends = places(2, 2), torch.tensor([0.0, 1.0], dtype=F64)
    for schedule in SCHEDULES:
        velocity = gaussian(schedule, kind)
        if kind != "velocity":
            low, high = velocity.t_range
            with torch.no_grad():
                close(velocity(ends, x), velocity(torch.tensor([low, high], dtype=F64), x))
            assert velocity(ends, x).isfinite().all()
    assert gaussian(OT(), "data").t_range == (1e-3, 1.0)
    assert gaussian(OT(0.1), "data").t_range == (0.0, 1.0)
    assert gaussian(Cosine(), "noise").t_range == (0.0, 1 - 1e-3)
    assert gaussian(VP(), "noise").t_range == (1e-5, 1.0)  # alpha(1) is not 0
    velocity = gaussian(OT(), "data", t_range=(0.2, 0.7))
    with torch.no_grad():
        close(velocity(ends, x), velocity(torch.tensor([0.2, 0.7], dtype=F64), x))


@pytest.mark.parametrize("kind", KINDS)
def test_the_likelihood_of_the_exact_network(kind):
    """What the held ends cost: of the order of the window's gap, 1e-3."""
    flow = Continuous(gaussian(OT(), kind), RK4(200))
    nodes, weights = gauss_hermite(2)
    true = (-0.5 * nodes.square() - STD.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
    with torch.no_grad():
        excess = (true - flow.log_prob(MEAN + STD * nodes)) @ weights
    assert abs(excess.item()) < (1e-8 if kind == "velocity" else 1e-5)


class Known(LinearMap):
    """A map that has a trace, and nothing else."""

    def __init__(self, trace):
        self._trace = trace

    def trace(self):
        return self._trace

    def refuse(self, *_):
        raise AssertionError("the closed form of the trace is lost")

    vjp = jvp = dense = refuse


class Closed(MLP):
    """Says that its divergence came along."""

    def with_divergence(self, t, x, context=None):
        return Point(t, x, x, Known(2.0 * x.sum(-1)))


def test_the_divergence_of_the_network_is_used(places):
    """On the straight line v = (x - data) / t."""
    velocity, x = Parametrised(Closed(3), predicts="data"), places()
    t = torch.linspace(0.1, 1, 5, dtype=F64)
    found = Exact()(velocity.with_divergence(t, x).jacobian, None)
    close(found, (3 - 2.0 * x.sum(-1)) / t, 1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("potential", [False, True])
@pytest.mark.parametrize("time", [torch.tensor(0.4, dtype=F64), torch.linspace(0, 1, 5).double()])
def test_the_jacobian(time, potential, kind, places):
    net = Gradient(PotentialMLP(3, (8,))) if potential else MLP(3, (8,))
    velocity = Parametrised(net.to(F64), OT(), kind, t_range=(0.05, 0.95))
    assert velocity.provides == ({"symmetric"} if potential else set())
    x = places()
    at = velocity.at(time, x)
    want = torch.func.jacrev(lambda y: velocity(time, y).sum(0))(x).transpose(0, 1)
    assert at.jacobian.symmetric == potential
    close(at.v.detach(), velocity(time, x).detach(), 1e-12)
    close(at.jacobian.dense(), want, 1e-11)
    close(at.jacobian.vjp(x), torch.einsum("nji,nj->ni", want, x), 1e-11)


# --- matching ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "weight", "schedule"),
    [
        ("data", "constant", OT()),
        ("noise", "constant", Cosine()),
        ("score", "constant", VP()),
        ("velocity", "min-snr", OT()),
        ("data", "velocity", Cosine()),
        ("noise", "data", VP()),
    ],
)
def test_the_minimiser_is_the_mean_given_the_place(kind, weight, schedule, seeded):
    """At the exact means the mean gradient vanishes; beside them, it does not."""
    velocity, noise = gaussian(schedule, kind), seeded(7)
    flow = Continuous(velocity)
    path = Affine(schedule, t_range=(0.05, 0.95))
    objective = Matching(path, times=Beta(1.2, 1.5), weight=weight)

    def surprise():
        grads = []
        for _ in range(30):
            x = MEAN + STD * torch.randn(1024, 2, dtype=F64, generator=noise)
            loss = objective.loss(flow, Batch(x), noise).total
            grads.append(torch.cat(torch.autograd.grad(loss, [velocity.net.a, velocity.net.b])))
        grads = torch.stack(grads)
        return (grads.mean(0) / (grads.std(0) / 30**0.5)).abs()

    assert surprise().max() < 4
    with torch.no_grad():
        velocity.net.a += 0.2
        velocity.net.b += 0.2
    assert surprise().min() > 4


class Recorder(Velocity):
    """A network that remembers where it was asked."""

    dim = 2

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.7, dtype=F64))

    def forward(self, t, x, context=None):
        self.t, self.x, self.said = t, x, self.w * (x + 0.3)
        return self.said


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_the_loss_is_the_error_of_the_quantity_that_the_weight_names(kind, weight, places, seeded):
    """By the path's conversions, of what the network said and of the very pair."""
    net, path = Recorder(), Affine(Cosine(), t_range=(0.1, 0.9))
    flow = Continuous(net if kind is None else Parametrised(net, Cosine(), kind))
    kind = kind or "velocity"
    x = places(16, 2)
    loss = Matching(path, weight=weight, clip=2.0).loss(flow, Batch(x), seeded(3))
    z = torch.randn(16, 2, dtype=F64, generator=seeded(3))
    at = path.schedule.at(net.t[:, None])
    velocity = at.d_alpha * x + at.d_sigma * z
    pair = {"velocity": velocity, "data": x, "noise": z, "score": -z / at.sigma}
    counted = {"min-snr": "data", "constant": {"score": "noise"}.get(kind, kind)}.get(
        weight, weight
    )
    said = path.convert(net.t, net.x, net.said, kind, counted)
    error = (said - pair[counted]).square()
    if weight == "min-snr":
        error = error * (at.alpha / at.sigma).square().clamp(max=2.0)
    close(loss.total, error.mean(), rtol=1e-10)
    assert loss.terms == {"matching": loss.total}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_every_loss_is_finite_at_the_ends(weight, kind, places, seeded):
    """A time may be drawn as 0, in float32 now and then."""

    class Ends(Beta):
        def draw(self, x, generator=None):
            drawn = super().draw(x, generator)
            return type(drawn)(drawn.t.round(), drawn.density)

    for schedule in (OT(), Cosine()):
        flow = Continuous(Parametrised(MLP(2, (4,)), schedule, kind))
        objective = Matching(Affine(schedule), times=Ends(), weight=weight)
        total = objective.loss(flow, Batch(places(16, 2).float()), seeded(0)).total
        total.backward()
        assert total.isfinite()
        assert all(p.grad.isfinite().all() for p in flow.parameters())


class Bent(ProbabilityPath):
    """A path of another kind."""

    def sample(self, t, x, z, generator=None):
        raise AssertionError("it is refused before")


def test_what_does_not_fit_is_refused_with_a_sentence():
    flow = Continuous(Parametrised(MLP(2, (4,)), Polynomial(2), "data"))
    Matching(Affine(Polynomial(2.0))).check(flow)
    for path in (None, Affine(Polynomial(3)), Affine(Cosine())):
        with pytest.raises(Incompatible, match=r"parametrised on Polynomial\(power=2\)"):
            Matching(path).check(flow)
    with pytest.raises(Incompatible, match="a Bent path does not say"):
        Matching(Bent()).check(flow)
    with pytest.raises(Incompatible, match="a path of type Bent does not have"):
        Matching(Bent(), weight="data")
    with pytest.raises(UserError, match=r"unknown weight 'dat'; did you mean 'data'"):
        Matching(weight="dat")
    with pytest.raises(Incompatible, match="clip must be positive"):
        Matching(clip=0.0)
    with pytest.raises(UserError, match=r"nothing predicts 'nois'; did you mean 'noise'"):
        Parametrised(MLP(2), predicts="nois")
    with pytest.raises(Incompatible, match="parametrised: t_range must satisfy"):
        Parametrised(MLP(2), t_range=(0.5, 0.5))
