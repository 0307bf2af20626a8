"""Each wrong path with a noise of its own is caught by the check that is meant for it."""

from __future__ import annotations

import pytest
import torch
from checking import failed, outcomes

from flowzoo_matching.conformance.path import own_noise
from flowzoo_matching.interpolant import Interpolant
from flowzoo_matching.noisy import Bridge, Noised, Noisy
from flowzoo_matching.path import Affine, PathSample


@pytest.mark.parametrize("cls", [Noisy, Bridge, Interpolant])
def test_they_pass_their_checks(cls):
    assert not failed(cls)
    skipped = {k for k, r in outcomes(cls).items() if r.outcome == "skip"}
    assert skipped == ({"conversions#5"} if cls is Interpolant else set())


class Wrong(Bridge):
    """A bridge whose noise is told or drawn wrongly."""

    def __init__(self) -> None:
        super().__init__()


class Stale(Wrong):
    """Takes its noise from the global generator."""

    def sample(self, t, x, z, generator=None):
        return super().sample(t, x, z)


class Fixed(Wrong):
    """Draws the same noise every time."""

    def sample(self, t, x, z, generator=None):
        return super().sample(t, x, z, torch.Generator().manual_seed(0))


class Loud(Wrong):
    """Its noise is twice as large as it should be."""

    def sample(self, t, x, z, generator=None):
        noise = 2 * torch.randn(x.shape, dtype=x.dtype, generator=generator)
        return self.with_noise(t, x, z, noise)


class Misstated(Wrong):
    """Tells a size of the noise that it does not have."""

    def with_noise(self, t, x, z, noise):
        at = super().with_noise(t, x, z, noise)
        return PathSample(at.t, at.x, at.v, at.noise, at.noise_scale.square())


class Unread(Wrong):
    """Converts as if it had no noise of its own."""

    def marginal(self, t):
        return self.at(t)[0]


@pytest.mark.parametrize(
    ("cls", "check", "said"),
    [
        (Stale, "own-noise", "global generator"),
        (Fixed, "own-noise", "different generators"),
        (Loud, "own-noise", "covariance"),
        (Misstated, "own-noise", "noise_scale"),
        (Unread, "conversions", "data from velocity is off"),
    ],
)
def test_wrong_ones_are_caught(cls, check, said):
    found = failed(cls)
    assert check in found
    assert said in found[check]


def test_the_check_of_own_noise_is_for_paths_that_have_it():
    assert own_noise.of is Noised
    assert "own-noise" not in outcomes(Affine)
