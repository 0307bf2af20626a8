"""The metric `elbo`, where the bound and the likelihood are known in closed form."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from judge_subjects import Rows, Scale
from score_sde_oracles import F64, beta, gaussian

from flowzoo.build import build
from flowzoo.continuous import Continuous
from flowzoo.errors import UserError
from flowzoo.flow import Chain
from flowzoo.integrators import RK4
from flowzoo.judge import Subject, evaluate
from flowzoo.judge.likelihood import NLL
from flowzoo.judge.measure import quantile
from flowzoo.networks import MLP
from flowzoo.registry import Registry
from flowzoo.traces import Hutchinson
from flowzoo_matching.diffusion import ProbabilityFlow
from flowzoo_matching.elbo import ELBO

START = 0.2  # far from 0, so that it matters where the diffusion begins


def subject(a=0.0, n=1000, seed=0, dtype=F64, **options):
    """Return the flow of the scores (1 + a) s* on rows that have its own law at `START`."""
    velocity = gaussian("score", START)
    with torch.no_grad():
        velocity.net.a.fill_(a)
    rows = torch.randn(n, 2, dtype=F64, generator=torch.Generator().manual_seed(seed))
    mean, v = velocity.net.moments(torch.tensor(START, dtype=F64))
    flow = Continuous(velocity, RK4(40)).to(dtype).eval()
    return Subject(flow, Rows(mean + v.sqrt() * rows), **options), velocity


def terms(velocity, a):
    """Return entropy at `START`, KL(p_1 || N(0, I)) and E int g^2 |a s*|^2 / 2 dt."""
    t = torch.linspace(START, 1, 20_001, dtype=F64)
    mean, v = velocity.net.moments(t[:, None])
    entropy = 0.5 * (2 * math.pi * math.e * v[0]).log().sum()
    end = 0.5 * (v[-1] + mean[-1].square() - 1 - v[-1].log()).sum()
    path = torch.trapezoid(0.5 * a**2 * beta(t) * (1 / v).sum(-1), t)
    return entropy.item(), end.item(), path.item()


def reversed_law(velocity, a, steps=1000):
    """Return mean and variance at `START` of the diffusion run backwards from N(0, I)."""
    m, v = torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)
    h = (1 - START) / steps

    def slope(t, m, v):
        b = beta(t)
        mean, spread = velocity.net.moments(t)
        pull = 0.5 * b - b * (1 + a) / spread  # of dx = pull x + ... in reversed time
        return pull * m + b * (1 + a) * mean / spread, 2 * pull * v + b

    for k in range(steps):  # Heun's method
        t = torch.tensor(1 - k * h, dtype=F64)
        one = slope(t, m, v)
        two = slope(t - h, m + h * one[0], v + h * one[1])
        m, v = m + 0.5 * h * (one[0] + two[0]), v + 0.5 * h * (one[1] + two[1])
    return m, v


@pytest.mark.parametrize("trace", [None, Hutchinson()])
@pytest.mark.parametrize("a", [0.0, 0.3])
def test_the_bound_is_what_girsanov_says(a, trace):
    """E elbo = -H - KL(p_1 || N) - E int g^2 |s - s*|^2 / 2 dt."""
    judged, velocity = subject(a, n=4000)
    (found,) = ELBO(trace=trace).measure(judged).values()
    wanted = -sum(terms(velocity, a))
    assert abs(found.value - wanted) < found.error < 0.15
    assert found.error == pytest.approx(quantile(4000) * found.parts["sampling"])
    assert (found.unit, found.better) == ("nats", "higher")
    if a:
        assert terms(velocity, a)[2] > 0.15  # so that a missing term would be seen


@pytest.mark.parametrize("a", [0.0, -0.3])
def test_at_each_point_it_is_a_bound_of_the_diffusions_likelihood(a):
    """It is tight for the exact score; for another one it is below, wherever the point is."""
    judged, velocity = subject(a, n=6)
    mean, v = reversed_law(velocity, a)
    off = (judged.x - mean) / v.sqrt()
    exact = (-0.5 * off.square() - 0.5 * (2 * math.pi * v).log()).sum(-1)
    repeated = Subject(judged.flow, Rows(judged.x.repeat(2000, 1)))
    bounds = ELBO()._bound(repeated, velocity).view(2000, 6)
    error = bounds.std(0) / 2000**0.5
    assert error.max() < 0.02
    if a:
        assert (bounds.mean(0) < exact - 4 * error).all()
    else:
        assert ((bounds.mean(0) - exact).abs() < 4 * error).all()


def test_the_draws_add_little_to_the_noise():
    judged, _ = subject(0.0, n=2000)
    found = ELBO().measure(judged)["elbo"]
    nll = NLL().measure(judged)["nll"]
    assert found.parts["sampling"] < 1.15 * nll.parts["sampling"]


@pytest.mark.parametrize("a", [0.0, 0.3])
def test_the_gap_is_that_of_the_two_likelihoods(a):
    judged, _ = subject(a)
    found, nll = ELBO().measure(judged)["elbo"], NLL().measure(judged)["nll"]
    assert found.parts["gap"] == pytest.approx(-nll.value - found.value, abs=1e-9)
    if not a:  # the same law, but for the end
        assert abs(found.parts["gap"]) < found.parts["gap_error"] < 0.05


def test_it_is_in_the_published_coordinates_and_repeats():
    judged, _ = subject(n=50)
    scaled, _ = subject(n=50, scale=SimpleNamespace(ladj=3.0))
    single, _ = subject(n=50, dtype=torch.float32)
    one, other, rough = (ELBO().measure(s)["elbo"] for s in (judged, scaled, single))
    assert other.value == pytest.approx(one.value + 3, abs=1e-12)
    assert other.parts == pytest.approx(one.parts, abs=1e-9)
    assert rough.value == pytest.approx(one.value, abs=1e-5)
    assert ELBO().measure(subject(n=50)[0])["elbo"] == one


def test_contexts_go_with_their_points(places, seeded):
    net = MLP(2, (8,), context_dim=2).to(F64)
    flow = Continuous(ProbabilityFlow(net), RK4(4))
    x, context = places(30, 2), places(30, 2, seed=1)
    with torch.no_grad():
        found = [
            ELBO(times=400).measure(Subject(flow, Rows(x[rows], context[given])))["elbo"].value
            for rows, given in [(slice(None), slice(None)), (slice(None), [*range(29, -1, -1)])]
        ]
        reverse = Rows(x.flip(0), context.flip(0))
        again = ELBO(times=400).measure(Subject(flow, reverse))["elbo"].value
    assert abs(again - found[0]) < 0.2 * abs(found[1] - found[0])


def test_a_flow_that_is_no_probability_flow_has_none():
    flow = Continuous(ProbabilityFlow(MLP(2)), RK4(2))
    others = [
        Continuous(MLP(2), RK4(2)),
        Chain([flow]),
        Scale(2),
        Continuous(ProbabilityFlow(MLP(2)), RK4(2), end_time=0.5),
    ]
    rows = Rows(torch.zeros(3, 2, dtype=F64))
    assert set(evaluate(flow, rows, metrics=[ELBO()])) == {"elbo"}
    for other in others:
        assert evaluate(other, rows, metrics=[ELBO()]) == {}


def test_a_single_point_has_no_error():
    found = ELBO().measure(subject(n=1)[0])["elbo"]
    assert found.error is None
    assert set(found.parts) == {"gap"}
    with pytest.raises(UserError, match="at least 1 time"):
        ELBO(times=0)


def test_it_is_registered_and_explained():
    metric = build("metric", {"name": "elbo", "trace": "hutchinson"}, Registry.installed())
    assert isinstance(metric.trace, Hutchinson)
    text = (Path(__file__).parents[1] / "docs" / "judging.md").read_text(encoding="utf-8")
    found = ELBO().measure(subject(n=5)[0])["elbo"]
    for word in ("elbo", *found.parts):
        assert f"`{word}`" in text
