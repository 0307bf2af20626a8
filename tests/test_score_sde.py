"""The probability flow of a diffusion: stored values, closed forms, what is refused."""

from __future__ import annotations

import pytest
import torch
from score_sde_oracles import F64, KINDS, beta, gaussian, golden, mixture, variance

from flowzoo.build import build
from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible, UserError
from flowzoo.field import Gradient, Point
from flowzoo.flow import log_normal
from flowzoo.integrators import RK438
from flowzoo.maps import LinearMap
from flowzoo.networks import MLP, PotentialMLP
from flowzoo.odeint import Dopri5
from flowzoo.registry import Registry
from flowzoo.traces import Exact, Hutchinson
from flowzoo_matching.diffusion import ProbabilityFlow
from flowzoo_matching.schedule import VP


def close(got, want, atol=1e-9):
    torch.testing.assert_close(got, want, atol=atol, rtol=0.0)


@pytest.fixture(scope="module")
def stored():
    return golden()


# --- the schedule --------------------------------------------------------------------------------


def test_stored_coefficients(stored):
    at, (f, g_squared) = VP().at(stored["vp_t"]), VP().rates(stored["vp_t"])
    close(at.alpha, stored["vp_mean_weight"], 1e-14)
    close(at.sigma.square(), stored["vp_var"], 1e-14)
    close(g_squared, stored["vp_beta"], 1e-14)
    close(f, -0.5 * stored["vp_beta"], 1e-14)


@pytest.mark.parametrize("schedule", [VP(), VP(0.3, 5.0), VP(2.0, 2.0)])
def test_rates_and_times_follow_from_the_coefficients(schedule):
    t = torch.tensor([1e-5, 1e-3, 0.1, 0.5, 1.0], dtype=F64)
    at, (f, g_squared) = schedule.at(t), schedule.rates(t)
    close(f, at.d_alpha / at.alpha, 1e-12)
    close(g_squared, 2 * at.sigma * at.d_sigma - 2 * f * at.sigma.square(), 1e-12)
    close(schedule.time_at(2 * (at.sigma / at.alpha).log()), t, 1e-12)
    single = schedule.time_at(2 * (at.sigma / at.alpha).log().float())
    torch.testing.assert_close(single, t.float(), atol=0.0, rtol=1e-5)


# --- the exact score of a mixture ----------------------------------------------------------------


def test_stored_score(stored):
    t = torch.tensor(0.3, dtype=F64)
    with torch.no_grad():
        for kind in KINDS:
            found = mixture(stored, kind, 1e-5).score(t, stored["gm_x"])
            close(found, stored["gm_score_exact_t0.3"], 1e-12)


@pytest.mark.parametrize("start", [1e-5, 1e-3])
@pytest.mark.parametrize("kind", KINDS)
def test_stored_likelihoods(kind, start, stored):
    flow = Continuous(mixture(stored, kind, start), RK438(20))
    fine = flow.with_numerics(Dopri5(1e-10, 1e-10))
    with torch.no_grad():
        encoded, log_prob = fine.encode(stored["gm_x"]), flow.log_prob(stored["gm_x"])
    close(log_prob, stored[f"pf_logp_rk4_20_eps{start:g}"], 1e-12)
    # The stored values are of an adaptive solver at 1e-10, and as far from the limit as ours.
    close(encoded.z, stored[f"pf_z_eps{start:g}"], 5e-9)
    close(log_normal(encoded.z) + encoded.ladj, stored[f"pf_logp_eps{start:g}"], 5e-9)


def test_what_the_end_costs(stored):
    """Even the exact score does not reach N(0, I): alpha(1) = 6.6e-3 of the data is left."""
    flow = Continuous(mixture(stored, "sde", 1e-5), Dopri5(1e-9, 1e-9))
    with torch.no_grad():
        off = flow.log_prob(stored["gm_x"]) - stored["gm_logp_exact"]
    assert off.abs().max().item() == pytest.approx(1.24e-2, abs=5e-5)


# --- the velocity --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time", [torch.tensor(0.4, dtype=F64), torch.linspace(0, 1, 5).double()])
def test_velocity_score_and_noise_in_the_diffusions_time(kind, time, places):
    velocity, x = gaussian(kind, 0.1), places(5, 2)
    t = (0.1 + 0.9 * time).expand(5)[:, None]
    with torch.no_grad():
        exact = velocity.net.exact(t, x)
        close(velocity(time, x), 0.9 * (-0.5 * beta(t) * x - 0.5 * beta(t) * exact), 1e-12)
        diffused = 0.1 + 0.9 * time
        close(velocity.score(diffused, x), exact, 1e-12)
        close(velocity.noise(diffused, x), -variance(t).sqrt() * exact, 1e-12)


def test_the_first_time_is_where_scores_are_learnt(places):
    assert ProbabilityFlow(MLP(2)).start == 1e-5
    x, now = places(4, 2).float(), torch.zeros(())
    for kind in KINDS:
        assert ProbabilityFlow(MLP(2), parametrisation=kind)(now, x).isfinite().all()
    for kind in ("sde", "score"):
        assert ProbabilityFlow(MLP(2), None, kind, start=0.0)(now, x).isfinite().all()


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
    """Says where its divergence was asked for."""

    def at(self, t, x, context=None):
        raise AssertionError("the divergence was to come along")

    def with_divergence(self, t, x, context=None):
        return Point(t, x, x, Known(2.0 * x.sum(-1)))


@pytest.mark.parametrize("time", [torch.tensor(0.4, dtype=F64), torch.linspace(0, 1, 5).double()])
def test_the_divergence_of_the_network_is_used(time, places):
    velocity, x = ProbabilityFlow(Closed(3), parametrisation="score", start=0.0), places()
    found = Exact()(velocity.with_divergence(time, x).jacobian, None)
    close(found, -0.5 * beta(time) * (3 + 2.0 * x.sum(-1)), 1e-12)


@pytest.mark.parametrize("potential", [False, True])
@pytest.mark.parametrize("time", [torch.tensor(0.4, dtype=F64), torch.linspace(0, 1, 5).double()])
def test_the_jacobian(time, potential, places):
    net = Gradient(PotentialMLP(3, (8,))) if potential else MLP(3, (8,))
    velocity = ProbabilityFlow(net.to(F64), start=0.1)
    assert velocity.provides == ({"symmetric"} if potential else set())
    x, probes = places(), torch.stack([places(seed=s) for s in (1, 2)])
    at = velocity.at(time, x)
    assert at.jacobian.symmetric == potential
    want = torch.func.jacrev(lambda y: velocity(time, y).sum(0))(x).transpose(0, 1)
    close(at.jacobian.dense(), want, 1e-12)
    close(Exact()(at.jacobian, None), want.diagonal(dim1=1, dim2=2).sum(-1), 1e-12)
    for p in (probes, probes[0]):
        close(at.jacobian.jvp(p), torch.einsum("nij,...nj->...ni", want, p), 1e-12)
        close(at.jacobian.vjp(p), torch.einsum("nji,...nj->...ni", want, p), 1e-12)


def test_training_by_likelihood_works_too(places, seeded):
    """A flow like any other: every weight has a gradient through a solve."""
    net = MLP(2, (8,), context_dim=2).to(F64)
    flow = Continuous(ProbabilityFlow(net, start=0.01), RK438(4), Hutchinson())
    assert (flow.dim, flow.context_dim) == (2, 2)
    flow.log_prob(places(6, 2), places(6, 2, seed=1), seeded()).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in flow.parameters())


# --- what is refused -----------------------------------------------------------------------------


def test_refused_options():
    with pytest.raises(UserError, match=r"unknown parametrisation 'nois'.*noise"):
        ProbabilityFlow(MLP(2), parametrisation="nois")  # pyright: ignore[reportArgumentType]
    for start in (-0.1, 1.0):
        with pytest.raises(Incompatible, match=r"start must be in \[0, 1\)"):
            ProbabilityFlow(MLP(2), start=start)
    with pytest.raises(Incompatible, match="divides by sigma"):
        ProbabilityFlow(MLP(2), parametrisation="noise", start=0.0)


def test_a_schedule_that_is_no_diffusion_is_refused():
    spec = {"name": "probability-flow", "net": "mlp", "schedule": "vp"}
    assert build("velocity", spec, Registry.installed(), dim=2).schedule.beta_max == 20
    with pytest.raises(UserError, match="'ot' is no Diffusion"):
        build("velocity", {**spec, "schedule": "ot"}, Registry.installed(), dim=2)
