"""Linear maps to check trace estimators with, and how many at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowzoo.conformance.probes.known import Known
from flowzoo.conformance.specimen import Specimen
from flowzoo.traces import TraceEstimator

AT_ONCE = 4096  # estimates that one draw of a sequential test averages


def matrices(specimen: Specimen, n: int, d: int, symmetric: bool) -> Tensor:
    """Return matrices (n, d, d) of Frobenius norm 1, every second near a multiple of I."""
    a = specimen.points(n, d * d).view(n, d, d).clone()
    a[1::2] = torch.eye(d, dtype=a.dtype) + 0.3 * a[1::2]
    a = 0.5 * (a + a.mT) if symmetric else a
    return a / torch.linalg.matrix_norm(a, keepdim=True)


def positive(specimen: Specimen, n: int, d: int) -> Tensor:
    """Return positive definite matrices (n, d, d) with eigenvalues from 1/e to e^2."""
    _, q = torch.linalg.eigh(matrices(specimen, n, d, True))
    a = (q * torch.linspace(-1, 2, d, dtype=q.dtype).exp()) @ q.mT
    return 0.5 * (a + a.mT)


def random_dimension(specimen: Specimen, least: int = 4) -> int:
    """Return a dimension larger than the number of probes, so that none form a whole basis."""
    probes = specimen.make().probes(specimen.points(1, 64), specimen.generator())
    if probes is None:
        return least
    # One that draws more when there are more dimensions says how many by its `samples`.
    return max(least, len(probes) + 1, getattr(specimen.make(), "samples", 0) + 1)


def definite(a: Tensor) -> Known:
    """Return maps that know a lower bound of their eigenvalues, those of `positive`."""
    return Known(a, True, floor=0.9 / math.e)


def rows_at_once(estimator: TraceEstimator, like: Tensor) -> int:
    """Return how many places one draw of a sequential test has: fewer for many probes each."""
    p = estimator.probes(like.new_zeros(1, like.shape[-1]), torch.Generator())
    return AT_ONCE if p is None else max(1, AT_ONCE // len(p))
