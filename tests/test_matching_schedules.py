"""Schedules of diffusions, and the time at which a schedule has a given ratio of noise to data."""

from __future__ import annotations

import pytest
import torch
from checking import failed, outcomes
from matching_oracles import F64, MEMBERS, GaussianVelocity, close, golden

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible
from flowzoo.field import Velocity
from flowzoo.integrators import RK4
from flowzoo_matching.conformance.schedule import rates, times
from flowzoo_matching.diffusion import ProbabilityFlow
from flowzoo_matching.diffusions import VE, SubVP
from flowzoo_matching.path import Affine
from flowzoo_matching.schedule import OT, VP, Cosine, Diffusion, Schedule

DIFFUSIONS = {
    "vp": VP(),
    "sub-vp": SubVP(),
    "sub-vp-constant": SubVP(2.0, 2.0),
    "ve": VE(),
    "ve-narrow": VE(0.1, 5.0),
}
SCHEDULES = {**MEMBERS, **DIFFUSIONS, "lipman": OT(0.1)}


def log_ratio(schedule, t):
    at = schedule.at(t)
    return 2 * (at.sigma / at.alpha).log()


class Bisected(Cosine):
    """The trigonometric schedule without its closed form."""

    time_at = Schedule.time_at


# --- sub-VP and VE -------------------------------------------------------------------------------


def test_sub_vp_is_vp_with_another_noise():
    """Against the stored coefficients of VP: the same alpha, sigma = 1 - alpha^2."""
    stored = golden("paths")
    t, alpha = stored["scoresde/t"], stored["scoresde/mean_coef"]
    at, (f, _) = SubVP().at(t), SubVP().rates(t)
    close(at.alpha, alpha)
    close(at.sigma, 1 - alpha.square())
    close(f, -0.5 * stored["scoresde/beta"])


@pytest.mark.parametrize(("low", "high"), [(0.01, 50.0), (0.1, 5.0)])
def test_ve_is_the_published_one_divided_by_its_size(low, high):
    t = torch.linspace(0, 1, 11, dtype=F64)
    size, at = low * (high / low) ** t, VE(low, high).at(t)
    close(at.sigma / at.alpha, size, rtol=1e-12)
    close(at.alpha.square() + at.sigma.square(), torch.ones_like(t))
    # The published drift is 0 and its g^2 is d s^2 / dt; what is divided by c has g^2 / c^2.
    _, g_squared = VE(low, high).rates(t)
    growth = 2 * torch.tensor(high / low, dtype=F64).log() * size.square()
    close(g_squared, growth / (1 + size.square()))


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_coefficients_are_differentiated_rightly(name):
    schedule = DIFFUSIONS[name]
    low, high = schedule.t_range
    t = torch.linspace(low, high, 41, dtype=F64).requires_grad_()
    at = schedule.at(t)
    for value, rate in ((at.alpha, at.d_alpha), (at.sigma, at.d_sigma)):
        (slope,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        close(rate, slope, 1e-12, rtol=1e-10)


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_rates_are_those_of_the_coefficients_and_finite_at_the_ends(name):
    schedule, t = DIFFUSIONS[name], torch.linspace(0.02, 1, 21, dtype=F64)
    at, (f, g_squared) = schedule.at(t), schedule.rates(t)
    close(f, at.d_alpha / at.alpha, 1e-12)
    close(g_squared, 2 * at.sigma * (at.d_sigma - f * at.sigma), 1e-11)
    for values in schedule.rates(torch.tensor([0.0, 1.0], dtype=F64)):
        assert values.isfinite().all()


def test_what_is_said_of_the_ends():
    ends = torch.tensor([0.0, 1.0], dtype=F64)
    at = VE().at(ends)
    assert at.alpha[1].item() == pytest.approx(0.02, rel=1e-3)
    assert at.sigma[0].item() == pytest.approx(0.01, rel=1e-3)
    assert 1 - at.alpha[0].item() == pytest.approx(0.01**2 / 2, rel=1e-3)
    assert SubVP().at(ends).sigma[0] == 0
    assert SubVP().at(torch.tensor(1e-5, dtype=F64)).sigma.item() == pytest.approx(1e-6, rel=1e-2)


@pytest.mark.parametrize("name", ["sub-vp", "ve"])
def test_starting_from_noise_costs_what_is_said(name):
    """For data of unit covariance and mean m: alpha(1)^2 |m|^2 / 2 nats."""
    schedule, m = DIFFUSIONS[name], torch.tensor([3.0, -1.0], dtype=F64)
    flow = Continuous(GaussianVelocity(schedule, m, torch.ones(2, dtype=F64)), RK4(200))
    ends = schedule.at(torch.tensor([0.0, 1.0], dtype=F64))
    with torch.no_grad():
        centre = flow.encode(ends.alpha[0] * m[None]).z[0]
    close(centre, ends.alpha[1] * m, 1e-6)  # the mean of the path's law at the noise
    cost = 0.5 * centre.square().sum().item()
    assert cost == pytest.approx({"sub-vp": 2.2e-5, "ve": 2e-4}[name] * 10, rel=0.05)


class GaussianScore(Velocity):
    """The score of data N(mean, std^2 I) at the diffusion's times."""

    def __init__(self, schedule, mean, std):
        super().__init__()
        self.schedule, self.mean, self.std, self.dim = schedule, mean, std, len(mean)

    def forward(self, t, x, context=None):
        at = self.schedule.at(t.reshape(-1, 1))
        variance = (at.alpha * self.std).square() + at.sigma.square()
        return (at.alpha * self.mean - x) / variance


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_the_probability_flow_is_the_velocity_of_the_path(name, places):
    """Two ways to one velocity: f x - g^2 s / 2, and the mean of d_alpha x + d_sigma z."""
    schedule, m, s = DIFFUSIONS[name], torch.tensor([1.5, -0.5], dtype=F64), torch.tensor([0.5, 2])
    net, t, x = GaussianScore(schedule, m, s.to(F64)), torch.linspace(0, 1, 7, dtype=F64), places(7)
    flow = ProbabilityFlow(net, schedule, "score", start=0.0)
    with torch.no_grad():
        want = GaussianVelocity(schedule, m, s.to(F64))
        close(flow(t[1:], x[1:, :2]), want(t[1:], x[1:, :2]), 1e-10)
        assert flow(t[:1], x[:1, :2]).isfinite().all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SubVP(0.0, 1.0), "sub-vp: beta_min must be positive"),
        (lambda: SubVP(3.0, 1.0), "sub-vp: beta_min .* at most beta_max, got 3.0 and 1.0"),
        (lambda: VP(3.0, 1.0), "^vp: beta_min"),
        (lambda: VE(0.0, 1.0), "ve: sigma_min must be positive"),
        (lambda: VE(2.0, 1.0), "less than sigma_max, got 2.0 and 1.0"),
    ],
)
def test_what_is_no_diffusion_is_refused(make, said):
    with pytest.raises(Incompatible, match=said):
        make()


# --- the time of a ratio -------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_time_of_a_ratio(name):
    schedule, t = SCHEDULES[name], torch.linspace(0.001, 0.999, 41, dtype=F64)
    close(schedule.time_at(log_ratio(schedule, t)), t, 1e-12)
    single = schedule.time_at(log_ratio(schedule, t).float())
    assert single.dtype == torch.float32
    close(single.double(), t, 1e-5)


@pytest.mark.parametrize("key", MEMBERS)
def test_ratios_match_published_values(key):
    """Stored: the time that the published inverse gives for alpha / sigma."""
    stored = golden("paths")
    ratio = stored[f"fbfm/{key}/alpha"] / stored[f"fbfm/{key}/sigma"]
    close(MEMBERS[key].time_at(-2 * ratio.log()), 1 - stored[f"fbfm/{key}/snr_inverse"], 1e-12)


@pytest.mark.parametrize("schedule", [OT(), OT(0.1), Cosine(), MEMBERS["poly3"], MEMBERS["linvp"]])
def test_the_ends_are_the_times_of_no_noise_and_no_data(schedule):
    found = schedule.time_at(log_ratio(schedule, torch.tensor([0.0, 1.0], dtype=F64)))
    close(found, torch.tensor([0.0, 1.0], dtype=F64))


def test_bisection_finds_the_same():
    t = torch.tensor([0.0, 1e-9, 1e-3, 0.3, 0.7, 0.99], dtype=F64)
    for shape in ((6,), (2, 3), (1,), ()):
        some = t[: torch.Size(shape).numel()].reshape(shape)
        found = Bisected().time_at(log_ratio(Cosine(), some))
        assert found.shape == some.shape
        close(found, some, 1e-14)
    close(Bisected().time_at(torch.tensor(torch.inf)), torch.tensor(1.0), 1e-6)
    meta = Bisected().time_at(torch.empty(3, device="meta"))
    assert meta.shape == (3,)


# --- the checks of `flowzoo check` ---------------------------------------------------------------


@pytest.mark.parametrize("cls", [SubVP, VE])
def test_they_pass_their_checks(cls):
    assert not failed(cls)


def test_ve_says_what_it_leaves():
    found = outcomes(VE)["ends"]
    assert found.outcome == "expected"
    assert "alpha(1) is 0.02, expected 0" in found.detail


class Wrong(VP):
    """A diffusion that gives its rates or times wrongly."""

    def __init__(self) -> None:
        super().__init__()


class Halved(Wrong):
    """g instead of g^2."""

    def rates(self, t):
        f, g_squared = super().rates(t)
        return f, g_squared.sqrt()


class Risen(Wrong):
    """f with the other sign."""

    def rates(self, t):
        f, g_squared = super().rates(t)
        return -f, g_squared


class Divided(Wrong):
    """Rates as quotients, which are not finite at the data."""

    def rates(self, t):
        at = self.at(t)
        f = at.d_alpha / at.alpha
        return f, 2 * at.sigma * (at.d_sigma - f * at.sigma)


class Rooted(Wrong):
    """The time of sigma / alpha instead of its square."""

    def time_at(self, log_ratio):
        return super().time_at(0.5 * log_ratio)


@pytest.mark.parametrize(
    ("cls", "check", "said"),
    [
        (Halved, "rates", "g^2 is off"),
        (Risen, "rates", "f is off"),
        (Divided, "rates", "g^2 is not finite on [0, 1]"),
        (Rooted, "times", "time_at is off"),
    ],
)
def test_wrong_ones_are_caught(cls, check, said):
    found = failed(cls)
    assert set(found) == {check}
    assert said in found[check]


def test_the_checks_of_diffusions_are_for_diffusions():
    assert (rates.of, times.of) == (Diffusion, Diffusion)
    assert not {"rates", "times"} & outcomes(OT).keys()


@pytest.mark.parametrize("name", ["sub-vp", "ve"])
def test_conversions_hold_on_them(name, places):
    path, t = Affine(DIFFUSIONS[name]), torch.linspace(0.1, 0.9, 8, dtype=F64)
    x, z = places(8), places(8, seed=1)
    at = path.sample(t, x, z)
    close(path.convert(t, at.x, at.v, "velocity", "data"), x, 1e-8, rtol=1e-8)
    close(path.convert(t, at.x, at.v, "velocity", "noise"), z, 1e-8, rtol=1e-8)
