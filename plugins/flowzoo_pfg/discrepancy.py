"""Discrepancies: how far generated points are from data, differentiable in the points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from flowzoo.errors import BadData, UserError

_FEW = 256  # points whose distances are enough for their median


class Discrepancy(ABC):
    """How far the law of generated points is from that of data, seen through samples of both.

    `unbiased` tells two kinds apart: True for an estimate whose mean is zero for equal laws, so
    that it is sometimes negative; False for a distance of the samples themselves, which is zero for
    a sample and itself, and positive for two samples of one law.
    """

    kind: ClassVar[str] = "discrepancy"
    checks: ClassVar[str] = "flowzoo_pfg.conformance.discrepancy"
    unbiased: bool = False

    @abstractmethod
    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the discrepancy (), differentiable in x.

        Arguments:
            x: Generated points (n, d).
            y: Data (m, d).
            generator: Source of its randomness, where it has some.

        Raises:
            BadData: There are too few points.
        """


class SlicedW2(Discrepancy):
    r"""SW2^2 = E W2^2(<u, x>, <u, y>) over uniformly random unit vectors u.

    Each projection is coupled exactly by sorting, W2^2 = int_0^1 |F^-1(s) - G^-1(s)|^2 ds, also
    where the sizes differ. It is not multiplied by d: a shift by b costs |b|^2 / d. Two samples of
    one law are some distance apart, which falls as they grow: it tells few points from many.

    Arguments:
        projections: Number of unit vectors, drawn anew at each call; in one dimension there is but
            one.

    Raises:
        UserError: There is no projection.

    References:
        Sliced and Radon Wasserstein Barycenters of Measures (Bonneel, Rabin, Peyre & Pfister, JMIV
        2015); for generators: Generative Modeling using the Sliced Wasserstein Distance (Deshpande,
        Zhang & Schwing, CVPR 2018), https://arxiv.org/abs/1803.11188
    """

    def __init__(self, projections: int = 128) -> None:
        if projections < 1:
            raise UserError(f"sliced-w2: projections must be at least 1, got {projections}")
        self.projections = projections

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return SW2^2 (), in squared units, of x (n, d) and y (m, d)."""
        _require("sliced-w2", x, y, 1)
        n, m = len(x), len(y)
        along = self._directions(x, generator)
        xs, ys = ((along @ points.mT).sort().values for points in (x, y))
        if n == m:
            return (xs - ys).square().mean()
        mass, i, j = _levels(n, m, x)
        return ((xs[:, i] - ys[:, j]).square() @ mass).mean()

    def _directions(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        d = x.shape[1]
        if d == 1:
            return x.new_ones(1, 1)
        normal = torch.randn(
            self.projections, d, dtype=x.dtype, device=x.device, generator=generator
        )
        return normalize(normal, dim=1)


class MMD(Discrepancy):
    r"""Squared maximum mean discrepancy, unbiased: E k(x, x') + E k(y, y') - 2 E k(x, y).

    The kernel is the mean of Gaussians exp(-|x - y|^2 / (2 s^2)) of several bandwidths s; means are
    over pairs of different points, so the value may be negative. It lies between -1 and 2, in no
    unit, and its slope vanishes for points much farther from the data than the largest bandwidth.

    Arguments:
        bandwidth: What the factors multiply; when left out, the median distance of (256 of) the
            data points at hand.
        factors: The bandwidths, in units of `bandwidth`.

    Raises:
        UserError: A bandwidth is not positive, or there is none.

    References:
        A Kernel Two-Sample Test (Gretton, Borgwardt, Rasch, Schoelkopf & Smola, JMLR 2012), lemma
        6; for generators: Generative Moment Matching Networks (Li, Swersky & Zemel, ICML 2015),
        https://arxiv.org/abs/1502.02761, with several bandwidths
    """

    unbiased = True
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"bandwidth": 1.0, "factors": [0.5, 2]})

    def __init__(
        self,
        bandwidth: float | None = None,
        factors: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
    ) -> None:
        if bandwidth is not None and not bandwidth > 0:
            raise UserError(f"mmd: bandwidth must be positive, got {bandwidth}")
        if not factors or not min(factors) > 0:
            raise UserError(f"mmd: factors must be positive, and at least one, got {list(factors)}")
        self.bandwidth, self.factors = bandwidth, tuple(factors)

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return MMD^2 () of x (n, d) and y (m, d); nothing is random."""
        _require("mmd", x, y, 2)
        scale = _median(y.detach()) if self.bandwidth is None else self.bandwidth
        xx, xy, yy = (self._kernel(r / scale) for r in _distances(x, y))
        return xx + yy - 2 * xy

    def _kernel(self, r: Tensor) -> Tensor:
        """Return the kernel's mean () over distances r of any shape."""
        squares = r.square()
        means = [(squares * (-0.5 / factor**2)).exp().mean() for factor in self.factors]
        return torch.stack(means).mean()


class Energy(Discrepancy):
    r"""Energy distance, unbiased: 2 E|x - y| - E|x - x'| - E|y - y'|.

    Means are over pairs of different points, so the value may be negative. It has no bandwidth, the
    units of the points, and a slope that does not vanish far from the data.

    References:
        Energy statistics: A class of statistics based on distances (Szekely & Rizzo, Journal of
        Statistical Planning and Inference 2013); as a loss: The Cramer Distance as a Solution to
        Biased Wasserstein Gradients (Bellemare et al., 2017), https://arxiv.org/abs/1705.10743
    """

    unbiased = True

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the energy distance () of x (n, d) and y (m, d); nothing is random."""
        _require("energy", x, y, 2)
        xx, xy, yy = (r.mean() for r in _distances(x, y))
        return 2 * xy - xx - yy


def _distances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return |x - x'| and |y - y'| of all pairs of different points (pairs,), |x - y| between them.

    From differences, and not by a matrix product: that loses half of the digits of short distances.
    """
    between = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.pdist(x), between, torch.pdist(y)


def _median(y: Tensor) -> Tensor:
    """Return the lower median distance () of at most 256 of the points (m, d); never zero.

    Where most points coincide, it is the mean distance. Nothing waits for the device.
    """
    k = min(len(y), _FEW)
    r = torch.pdist(y[torch.arange(k, device=y.device) * len(y) // k])
    median = r.kthvalue((len(r) + 1) // 2).values
    return torch.where(median > 0, median, r.mean()).clamp_min(torch.finfo(y.dtype).eps)


def _levels(n: int, m: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the intervals of [0, 1] on which the quantile functions of n and m points are steps.

    Their lengths (n + m,), some of them zero, and the numbers of the points there, of either side.
    """
    # In whole numbers of 1 / (n m), so that ends that fall together do.
    step = torch.arange(1, max(n, m) + 1, device=like.device)
    ends = torch.cat((step[:n] * m, step[:m] * n)).sort().values
    mass = ends.diff(prepend=ends.new_zeros(1)).to(like.dtype) / (n * m)
    return mass, (ends - 1) // m, (ends - 1) // n


def _require(name: str, x: Tensor, y: Tensor, least: int) -> None:
    if min(len(x), len(y)) < least:
        points = "point" if least == 1 else "points"
        raise BadData(
            f"{name} compares at least {least} {points} of each side, got {len(x)} generated and "
            f"{len(y)} of the data: use larger batches"
        )
