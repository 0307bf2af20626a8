"""Paths with a noise of their own against published values, and what their laws are.

The golden files run from source (t = 0) to data (t = 1); ours is 1 - t with velocities turned.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from matching_oracles import F64, GaussianVelocity, close, golden

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible, UserError
from flowzoo.objective import Batch
from flowzoo_matching.interpolant import Interpolant
from flowzoo_matching.noisy import Bridge, Noisy
from flowzoo_matching.objective import Matching
from flowzoo_matching.path import Affine
from flowzoo_matching.schedule import Cosine, Schedule

MEANS = ["linear", "cosine", "trigonometric", "encoding-decoding"]
GAMMAS = ["brownian", "wide-brownian", "quadratic", "sine-squared", "zero"]
REFUSED = {("trigonometric", "sine-squared"), ("encoding-decoding", "zero")}
PATHS = {
    "noisy": Noisy(0.3),
    "noisy-cosine": Noisy(0.1, Cosine()),
    "bridge": Bridge(0.7),
    "linear": Interpolant(),
    "cosine": Interpolant("cosine"),
    "trigonometric": Interpolant("trigonometric", "wide-brownian"),
    "quadratic": Interpolant("trigonometric", "quadratic"),
    "sine-squared": Interpolant("linear", "sine-squared"),
}
BRIDGES = {"sb_s05": 0.5, "sb_s1": 1.0}


@pytest.fixture(scope="module")
def paths():
    return golden("paths")


def of(paths, key):
    return {k.rpartition("/")[2]: v for k, v in paths.items() if k.startswith(f"{key}/")}


@pytest.mark.parametrize(
    ("key", "path"),
    [("icfm_s01", Noisy(0.1)), ("vptrig_s01", Noisy(0.1, Cosine()))],
)
def test_constant_noise_matches_torchcfm(key, path, paths):
    want = of(paths, f"cfm/{key}")
    at = path.with_noise(1 - want["t"], paths["x1"], paths["x0"], paths["eps"])
    close(at.x, want["xt"])
    close(at.v, -want["ut"])
    close(at.noise_scale, want["sigma_t"].expand(8))


@pytest.mark.parametrize("key", BRIDGES)
def test_the_bridge_matches_torchcfm(key, paths):
    want, sigma = of(paths, f"cfm/{key}"), BRIDGES[key]
    t = 1 - want["t"]
    at = Bridge(sigma).with_noise(t, paths["x1"], paths["x0"], paths["eps"])
    close(at.x, want["xt"])
    close(at.noise_scale, want["sigma_t"].flatten())
    close(at.score, want["score"], rtol=1e-12)
    # Published with 1e-8 added to two denominators.
    line, twice = paths["x0"] - paths["x1"], (2 * t * (1 - t))[:, None]
    close(line + (at.v - line) * twice / (twice + 1e-8), -want["ut"], 1e-12, rtol=1e-12)
    close(2 * at.noise_scale / (sigma**2 + 1e-8), want["lambda"].flatten())


def test_the_bridge_is_not_clamped_at_its_ends(paths):
    """Published, the slope is 0 there, by the 1e-8 in its denominator; it is infinite."""
    want = of(paths, "cfm/sb_s1_endpoints")
    path, t = Bridge(1.0), 1 - want["t"]
    at = path.with_noise(t, paths["x1"], paths["x0"], paths["eps"])
    close(at.x, want["xt"])
    ends = (t == 0) | (t == 1)
    assert ends.any()
    assert at.v[ends].isinf().all()
    assert at.score[ends].isinf().all()
    assert at.v[~ends].isfinite().all()
    low, high = path.t_range
    edges = torch.tensor([low, high], dtype=F64)
    close(path.at(edges)[1].d_gamma.abs(), torch.full((2,), 50.0, dtype=F64), 0.02)


@pytest.mark.parametrize(("mean", "key"), [("linear", "linear"), ("cosine", "trig")])
def test_interpolants_match_published_values(mean, key, paths):
    want = of(paths, f"si/{key}_sqrt2")
    path, t = Interpolant(mean, "wide-brownian"), 1 - paths["t_interior"]
    at, own = path.at(t)
    close(at.alpha, want["b"].flatten())
    close(at.sigma, want["a"].flatten())
    close(own.gamma, want["gamma"].flatten())
    close(own.d_gamma, -want["gamma_dot"].flatten())
    sample = path.with_noise(t, paths["x1"], paths["x0"], paths["eps"])
    close(sample.x, want["xt"])
    close(sample.v, -want["b_target"])
    close(sample.v - own.d_gamma[:, None] * paths["eps"], -want["v_target"])
    close(sample.score, want["score_target"], rtol=1e-12)


@pytest.mark.parametrize(
    ("mean", "gamma"), [p for p in itertools.product(MEANS, GAMMAS) if p not in REFUSED]
)
def test_every_interpolant_goes_from_data_to_noise(mean, gamma, places):
    path, (x, z, e) = Interpolant(mean, gamma), (places(9, seed=s) for s in range(3))
    close(path.with_noise(torch.zeros(9, dtype=F64), x, z, e).x, x)
    close(path.with_noise(torch.ones(9, dtype=F64), x, z, e).x, z)
    t = torch.linspace(0.05, 0.95, 9, dtype=F64) + 1e-3
    h = 1e-6
    ahead, behind = (path.with_noise(t + s, x, z, e) for s in (h, -h))
    close(path.with_noise(t, x, z, e).v, (ahead.x - behind.x) / (2 * h), 1e-8)
    for values in path.at(t):
        assert all(value.isfinite().all() for value in vars(values).values())
    own = path.at(t)[1]
    close(own.growth, own.gamma * own.d_gamma)
    assert (own.gamma > 0).all() == (gamma != "zero")


def test_without_noise_a_linear_interpolant_is_the_straight_line(places):
    t, x, z = torch.linspace(0, 1, 5, dtype=F64), places(5), places(5, seed=1)
    at, line = Interpolant(gamma="zero").sample(t, x, z), Affine().sample(t, x, z)
    close(at.x, line.x)
    close(at.v, line.v)


@pytest.mark.parametrize("gamma", sorted({*GAMMAS} - {"sine-squared"}))
def test_the_trigonometric_mean_leaves_room_for_the_noise(gamma):
    t = torch.linspace(0, 1, 11, dtype=F64)
    (at, own), plain = Interpolant("trigonometric", gamma).at(t), Cosine().at(t)
    close(at.alpha.square() + at.sigma.square() + own.gamma.square(), torch.ones_like(t))
    close(at.sigma * plain.alpha, at.alpha * plain.sigma)


def test_halves_of_encoding_and_decoding(places):
    """Nothing of the noise before t = 1/2, nothing of the data after it."""
    path, x, z, e = Interpolant("encoding-decoding", "sine-squared"), *map(places, (4, 4, 4))
    for t, kept in ((0.3, x), (0.7, z)):
        t = torch.full((4,), t, dtype=F64)
        mean = (torch.pi * t[:, None]).cos().square() * kept
        noise = (torch.pi * t[:, None]).sin().square() * e
        close(path.with_noise(t, x, z, e).x, mean + noise)


@pytest.mark.parametrize("when", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("name", PATHS)
def test_velocity_and_score_average_to_those_of_the_marginal(name, when):
    """For data N(m, s^2) all is Gaussian, so the means given x_t are regression lines."""
    path, m, s = PATHS[name], 1.5, 0.5
    alone = torch.eye(3, dtype=F64)[..., None]  # the data, the noise, the path's own noise
    t, variances = torch.tensor(when, dtype=F64), torch.tensor([s**2, 1.0, 1.0], dtype=F64)
    at = path.with_noise(t.expand(3), *alone)
    parts, mean = at.x[:, 0], torch.tensor([m, 0.0, 0.0], dtype=F64)
    centre, variance = mean @ parts, variances @ parts.square()
    grid = centre + torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    data = m + variances[0] * parts[0] / variance * (grid - centre)
    for value, wanted in ((at.v, "velocity"), (at.score, "score")):
        slope = (variances * parts) @ value[:, 0] / variance
        line = mean @ value[:, 0] + slope * (grid - centre)
        close(path.convert(t, grid, data, "data", wanted), line)
    close(slope, -1 / variance)  # of the score, which is that of N(centre, variance)


@pytest.mark.parametrize("given", ["velocity", "data", "noise", "score"])
@pytest.mark.parametrize("name", PATHS)
def test_conversions_are_those_of_the_marginal_path(name, given, places):
    path, t = PATHS[name], torch.linspace(0.1, 0.9, 8, dtype=F64)
    law, x, z = path.marginal(t[:, None]), places(8), places(8, seed=1)
    place = law.alpha * x + law.sigma * z
    truth = {
        "velocity": law.d_alpha * x + law.d_sigma * z,
        "data": x,
        "noise": z,
        "score": -z / law.sigma,
    }
    for wanted, value in truth.items():
        close(path.convert(t, place, truth[given], given, wanted), value, 1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", PATHS)
def test_the_marginal_is_differentiated_rightly(name):
    low, high = PATHS[name].t_range
    t = torch.linspace(max(low, 0.01), min(high, 0.99), 21, dtype=F64).requires_grad_()
    law = PATHS[name].marginal(t)
    for value, rate in ((law.alpha, law.d_alpha), (law.sigma, law.d_sigma)):
        (slope,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        close(rate, slope, 1e-12, rtol=1e-10)


def test_the_marginal_of_a_bridge_is_finite_at_the_noise():
    """Though the slope of its own noise is not: sigma d_sigma + gamma d_gamma = 1 - s^2 / 2."""
    law = Bridge(0.6).marginal(torch.ones((), dtype=F64))
    close(torch.stack([law.sigma, law.d_sigma]), torch.tensor([1.0, 1 - 0.18], dtype=F64))


class Marginal(Schedule):
    """The law of x_t on a path, as a schedule."""

    def __init__(self, path):
        self.path, self.t_range = path, path.t_range

    def at(self, t):
        return self.path.marginal(t)


@pytest.mark.parametrize("name", ["noisy", "bridge", "trigonometric"])
def test_matching_on_them_finds_the_velocity_of_the_marginal(name, seeded):
    """At the velocity of the marginal the mean gradient vanishes; beside it, it does not."""
    path, noise = PATHS[name], seeded(7)
    m, s = torch.tensor([1.5, -0.5], dtype=F64), torch.tensor([0.5, 2.0], dtype=F64)
    velocity = GaussianVelocity(Marginal(path), m, s)
    flow, objective = Continuous(velocity), Matching(path)

    def surprise():
        grads = []
        for _ in range(40):
            x = m + s * torch.randn(2048, 2, dtype=F64, generator=noise)
            loss = objective.loss(flow, Batch(x), noise).total
            grads.append(torch.cat(torch.autograd.grad(loss, [velocity.a, velocity.b])))
        grads = torch.stack(grads)
        return (grads.mean(0) / (grads.std(0) / 40**0.5)).abs()

    assert surprise().max() < 4
    with torch.no_grad():
        velocity.a += 0.3
        velocity.b += 0.3
    assert surprise().min() > 4


def test_equal_generators_give_equal_noise(places, seeded):
    path, (t, x, z) = Bridge(), (torch.full((5,), 0.5, dtype=F64), places(), places(seed=1))
    one, other = path.sample(t, x, z, seeded(1)), path.sample(t, x, z, generator=seeded(1))
    assert torch.equal(one.x, other.x)
    assert not torch.equal(one.x, path.sample(t, x, z, seeded(2)).x)
    assert path.sample(t, x, z).noise is not None


def test_an_affine_path_has_no_noise_of_its_own(places, seeded):
    t, x, z = torch.full((5,), 0.5, dtype=F64), places(), places(seed=1)
    at, drawn = Affine().sample(t, x, z), seeded(1)
    assert (at.noise, at.noise_scale, at.score) == (None, None, None)
    assert torch.equal(Affine().sample(t, x, z, drawn).x, at.x)
    assert torch.equal(drawn.get_state(), seeded(1).get_state())


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: Noisy(0.0), Incompatible, "noisy: sigma must be positive, got 0.0"),
        (lambda: Bridge(-1.0), Incompatible, "bridge: sigma must be positive"),
        (lambda: Bridge(t_range=(0.5, 0.5)), Incompatible, "bridge: t_range"),
        (lambda: Interpolant(t_range=(0.0, 2.0)), Incompatible, "interpolant: t_range"),
        (lambda: Interpolant("linaer"), UserError, "unknown mean 'linaer'.*linear"),
        (lambda: Interpolant(gamma="brown"), UserError, "unknown gamma 'brown'.*brownian"),
        (lambda: Interpolant("trigonometric", "sine-squared"), Incompatible, "corner"),
        (lambda: Interpolant("encoding-decoding", "zero"), Incompatible, "at 0 at t = 1/2"),
    ],
)
def test_what_is_no_path_is_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()


def test_what_is_not_determined_is_not_converted(places):
    path, t = Interpolant("encoding-decoding"), torch.full((5,), 0.7, dtype=F64)
    with pytest.raises(Incompatible, match="holds nothing of the data after t = 1/2"):
        path.convert(t, places(), places(), "velocity", "data")
