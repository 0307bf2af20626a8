"""How many modes of a known mixture a flow covers."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from flowzoo.judge.measure import CONFIDENCE, Measure, Metric
from flowzoo.judge.pairs import SAMPLES, enough
from flowzoo.judge.subject import Subject

INSIDE = 0.997  # of a mode's own points that lie within its radius, as 3 sigma in one dimension
LEAST = 0.1  # of its weight that a covered mode has at least


class Components(Protocol):
    """A mixture of spherical Gaussians, in the flow's coordinates."""

    @property
    def weights(self) -> Tensor:
        """Weights (k,), of sum 1."""
        ...

    @property
    def means(self) -> Tensor:
        """Means (k, d)."""
        ...

    @property
    def scale(self) -> float:
        """Standard deviation of every component, in every direction."""
        ...


class Modes(Metric):
    r"""Number of modes that samples of the flow cover, where the data is a known mixture.

    Every sample belongs to the nearest mean; it is inside where it lies within the radius r that
    holds 99.7 % of a component, r^2 = scale^2 times the quantile of chi-square with d degrees of
    freedom. A mode is covered where the share of samples inside it is at least a tenth of its
    weight. VEEGAN counts a mode from one sample within 3 standard deviations; in d dimensions that
    radius holds less and less, and one sample in thousands is no mode. Higher is better.

    The error is the number of modes that the samples leave undecided: those of which a binomial
    test at 1 %, divided among the modes and both sides, rejects neither that their share is above
    nor that it is below a tenth of their weight.

    The parts: `total`, the number of modes; `high_quality`, the share of samples inside a mode,
    0.997 for the true law of modes far apart; `share_distance`, the total variation 1/2 sum
    |share_k - w_k| between the weights and the shares of samples nearest to each mean, about sum
    sqrt(w_k (1 - w_k) / (2 pi m)) for m samples of the true law.

    Arguments:
        samples: Samples m.

    Raises:
        UserError: There are fewer than 4 samples.

    References:
        VEEGAN: Reducing Mode Collapse in GANs using Implicit Variational Learning (Srivastava et
        al., NeurIPS 2017), section 4.1, arXiv:1705.07761
    """

    def __init__(self, samples: int = SAMPLES) -> None:
        self.samples = enough("modes", samples)

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `modes`, or nothing where the data has no known modes."""
        modes: Components | None = getattr(subject.data.oracle, "modes", None)
        if modes is None:
            return {}
        y = subject.samples(self.samples)
        weights = modes.weights.to(y)
        nearest, inside = count(y, modes.means.to(y), modes.scale)
        least = LEAST * weights
        covered = inside.double() / len(y) >= least
        open_ = undecided(inside, len(y), least)
        # Undecided modes may turn out either way, so the wider side counts.
        error = max(int((open_ & covered).sum()), int((open_ & ~covered).sum()))
        parts = {
            "total": float(len(weights)),
            "high_quality": float(inside.sum()) / len(y),
            "share_distance": 0.5 * float((nearest.double() / len(y) - weights).abs().sum()),
        }
        note = f"of {len(weights)}, by {len(y)} samples"
        measure = Measure(float(covered.sum()), float(error), "modes", "higher", parts, note)
        return {"modes": measure}


def count(y: Tensor, means: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return how many points are nearest to each mean, and how many of those are inside, (k,) each.

    Arguments:
        y: Points (m, d), float64.
        means: Means (k, d), float64.
        scale: Standard deviation of the components.
    """
    from scipy.special import chdtri

    distance, mode = torch.cdist(y, means).min(1)
    radius = scale * float(chdtri(y.shape[1], 1 - INSIDE)) ** 0.5
    return (
        mode.bincount(minlength=len(means)),
        mode[distance <= radius].bincount(minlength=len(means)),
    )


def undecided(counts: Tensor, n: int, share: Tensor) -> Tensor:
    """Return of which counts (k,) among n it is open whether their true share is above `share`.

    Both binomial tails must be likelier than 1 % / (2 k), so that with 99 % confidence all
    decisions hold at once.

    Arguments:
        counts: Counts (k,).
        n: Number of draws.
        share: The shares to decide about (k,).
    """
    from scipy.special import bdtr, bdtrc

    level = (1 - CONFIDENCE) / (2 * len(counts))
    k, p = counts.cpu().double().numpy(), share.cpu().numpy()
    low, high = bdtr(k, n, p), bdtrc(k - 1, n, p)
    return torch.from_numpy((low > level) & (high > level)).to(counts.device)
