"""Laws of time: stored values, distributions, densities, and what `matching` makes of them."""

from __future__ import annotations

import math

import pytest
import torch
from checking import failed, outcomes
from matching_oracles import F64, close, golden
from scipy import stats
from torch import nn

from flowzoo.build import build
from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible, UserError
from flowzoo.field import Velocity
from flowzoo.objective import Batch
from flowzoo.registry import Registry
from flowzoo_matching.objective import Matching
from flowzoo_matching.path import Affine
from flowzoo_matching.schedule import OT
from flowzoo_matching.times import (
    Beta,
    Drawn,
    LogitNormal,
    Mode,
    Stratified,
    TimeLaw,
    Uniform,
    UShaped,
)


class Cosh(stats.rv_continuous):
    """cosh(a (t - 1/2)) by integration of its density, for a = 4."""

    def _pdf(self, x):
        import numpy as np

        return 2 * np.cosh(4 * (x - 0.5)) / math.sinh(2)


def standard_logit(mean, std):
    """Return the law of sigmoid(N(mean, std^2)), as scipy's Johnson S_B law has it."""
    return stats.johnsonsb(-mean / std, 1 / std)


LAWS = {
    "uniform": (Uniform(), stats.uniform()),
    "stratified": (Stratified(), stats.uniform()),
    "logit-normal": (LogitNormal(), standard_logit(0, 1)),
    "logit-normal to the data": (LogitNormal(-0.5, 0.6), standard_logit(-0.5, 0.6)),
    "beta": (Beta(), stats.beta(1.5, 1.0)),
    "beta at the ends": (Beta(0.4, 0.7), stats.beta(0.4, 0.7)),
    "u-shaped": (UShaped(), Cosh(a=0, b=1)()),
}


@pytest.fixture(scope="module")
def stored():
    return golden("paths")


def test_stored_logit_normal_times(stored):
    """Stored times run from noise to data; the logit turns its sign with them."""
    normals = stored["time/normals"]
    close(LogitNormal().at(normals).t, stored["time/logitnormal_0_1"])
    close(LogitNormal(0.5, 0.6).at(normals).t, stored["time/logitnormal_m05_s06"])
    close(1 - LogitNormal(-1.2, 1.2).at(normals).t, stored["time/fb_skewed"])


def test_stored_mode_times(stored):
    close(Mode().at(stored["time/u"]).t, stored["time/mode_1.29"])


@pytest.mark.parametrize("key", LAWS)
def test_the_law_and_its_density_are_the_independent_ones(key, seeded):
    law, want = LAWS[key]
    drawn = law.draw(torch.zeros(4000, 1, dtype=F64), seeded(1))
    assert stats.kstest(drawn.t.numpy(), want.cdf).pvalue > 1e-3
    density = torch.from_numpy(want.pdf(drawn.t.numpy()))
    close(drawn.density, density, rtol=1e-9)


@pytest.mark.parametrize("scale", [-0.7, 0.0, 1.29])
def test_the_mode_law_goes_over_all_times_with_the_density_of_its_slope(scale):
    u = torch.linspace(0, 1, 101, dtype=F64).requires_grad_()
    drawn = Mode(scale).at(u)
    (slope,) = torch.autograd.grad(drawn.t.sum(), u)
    inside = slice(1, -1)  # at the ends a clamp may take the slope
    close(drawn.density[inside], (-1 / slope)[inside], rtol=1e-12)
    assert (slope[inside] < 0).all()
    close(drawn.t[[0, 50, 100]].detach(), torch.tensor([1.0, 0.5, 0.0], dtype=F64))


def test_the_logit_normal_density_stays_finite_at_the_ends():
    drawn = LogitNormal(0.0, 4.0).at(torch.tensor([-6.0, 6.0]))
    assert drawn.t[1] == 1  # in float32
    assert drawn.density.isfinite().all()


class Slope(Velocity):
    """v = w x, the same at all times."""

    dim = 2

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, t, x, context=None):
        return self.w * x


@pytest.mark.parametrize("times", [Beta(0.7, 1.3), UShaped(), Mode()])
def test_unbiased_is_the_mean_over_uniform_times(times, seeded):
    """The gradient of w at 0 is -2 E x_t . v_t / d, a number that depends on the law of times."""
    flow, noise = Continuous(Slope()), seeded(5)
    schedule = Affine(OT(), t_range=(0.2, 1.0))

    def mean(**options):
        objective, found = Matching(schedule, **options), []
        for _ in range(20):
            x = 1 + 0.5 * torch.randn(4096, 2, dtype=F64, generator=noise)
            total = objective.loss(flow, Batch(x), noise).total
            found.append(torch.autograd.grad(total, flow.velocity.w)[0])
        found = torch.stack(found)
        return found.mean(), found.std() / 20**0.5

    # E x_t . v_t per dimension, by hand: t - (1 - t) E x^2, over t in [0.2, 1].
    want = torch.tensor(-2 * (0.6 - 0.4 * 1.25), dtype=F64)
    got, error = mean(times=times, unbiased=True)
    assert (got - want).abs() < 4 * error
    got, error = mean(times=times)
    if isinstance(times, Beta):  # the others are symmetric, and this is a linear function of t
        assert (got - want).abs() > 4 * error


def test_symmetric_laws_are_corrected_too(seeded):
    """E (t - 1/2)^2 under the corrected law is that of uniform times, 1 / 12."""
    rows = torch.zeros(50_000, 1, dtype=F64)
    for law in (UShaped(), Mode()):
        drawn = law.draw(rows, seeded(2))
        square = (drawn.t - 0.5).square()
        corrected = square / drawn.density
        assert abs(corrected.mean() - 1 / 12) < 4 * corrected.std() / 50_000**0.5
        assert abs(square.mean() - 1 / 12) > 4 * square.std() / 50_000**0.5


def test_laws_by_name_by_spec_and_of_ones_own(tmp_path, seeded):
    assert isinstance(Matching().times, Uniform)
    assert isinstance(Matching(times="stratified").times, Stratified)
    registry = Registry.installed()
    spec = {"name": "matching", "times": "logit-normal"}
    assert isinstance(build("objective", spec, registry).times, LogitNormal)
    (tmp_path / "late.py").write_text(OWN)
    registry = registry.with_files([tmp_path / "late.py"])
    spec = {"name": "matching", "times": {"name": "late", "power": 0.25}}
    objective = build("objective", spec, registry)
    t = objective.draw_times(torch.zeros(2000, 1, dtype=F64), seeded(0))
    assert t.mean().item() == pytest.approx(0.8, abs=0.02)
    for odd in ("unifrm", 3):
        with pytest.raises(UserError, match="times"):
            build("objective", {"name": "matching", "times": odd}, registry)


OWN = '''
import torch
from flowzoo_matching.times import Drawn, TimeLaw

class Late(TimeLaw):
    """t = u^power.

    Arguments:
        power: The power.
    """

    def __init__(self, power: float = 0.5) -> None:
        self.power = power

    def draw(self, x, generator=None):
        u = torch.rand(x.shape[0], dtype=x.dtype, device=x.device, generator=generator)
        t = u**self.power
        return Drawn(t, u ** (1 - self.power) / self.power)

def flowzoo_components():
    return {"late": Late}
'''


def test_options_that_make_no_sense_are_refused():
    for law, options, said in [
        (LogitNormal, {"std": 0.0}, "std must be positive"),
        (Beta, {"a": 0.0}, "a and b must be positive"),
        (Beta, {"b": -1.0}, "a and b must be positive"),
        (UShaped, {"steepness": 0.0}, "steepness must be positive"),
        (Mode, {"scale": -1.0}, "scale must be above -1"),
        (Mode, {"scale": 1.76}, "below 2 /"),
    ]:
        with pytest.raises(Incompatible, match=said):
            law(**options)


# --- the checks of laws --------------------------------------------------------------------------


class Changed(Uniform):
    """Uniform, with a change."""

    def draw(self, x, generator=None):
        return self.change(super().draw(x, generator))

    def change(self, drawn):
        return drawn


class Outside(Changed):
    def change(self, drawn):
        return Drawn(2 * drawn.t, drawn.density / 2)


class Column(Changed):
    def change(self, drawn):
        return Drawn(drawn.t[:, None], drawn.density)


class Unlikely(Changed):
    """Says that it is uniform, and is not."""

    def change(self, drawn):
        return Drawn(drawn.t**1.1, drawn.density)


class Careless(TimeLaw):
    def draw(self, x, generator=None):
        t = torch.rand(x.shape[0], dtype=x.dtype)
        return Drawn(t, torch.ones_like(t))


class Stuck(Changed):
    def change(self, drawn):
        n = len(drawn.t)
        return Drawn((torch.arange(n, dtype=drawn.t.dtype) + 0.5) / max(n, 1), drawn.density)


CAUGHT = {
    Outside: ("draws", "times are outside"),
    Column: ("draws", "expected (4096,)"),
    Unlikely: ("density", "counts"),
    Careless: ("repeatable", "differ between two equal generators"),
    Stuck: ("repeatable", "the same in every draw"),
}


@pytest.mark.parametrize("law", CAUGHT)
def test_a_wrong_law_is_caught_by_its_check(law):
    check, said = CAUGHT[law]
    assert said in failed(law)[check]


@pytest.mark.parametrize("law", [Uniform, Stratified, LogitNormal, Beta, UShaped, Mode])
def test_the_laws_pass(law):
    assert {name for name, result in outcomes(law).items() if result.outcome != "pass"} == set()
