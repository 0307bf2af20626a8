"""Stiff maps, probes and draws for tests of log-determinants."""

from __future__ import annotations

import math

import torch
from oracles import F64, Matrix, with_spectrum

STIFF = torch.logspace(-0.5, 2, 8, dtype=F64)


class Stiff(Matrix):
    """Matrices that know their floor, and those of some samples."""

    floor = 0.3

    def rows(self, index):
        return Stiff(self.a[index], True)


def matrices(n=6, spectrum=STIFF):
    """Return matrices with a common part that makes them stiff alike."""
    common, own = with_spectrum(spectrum), with_spectrum(torch.linspace(0.1, 2, 8), n=n, seed=1)
    return common + own


def basis(a):
    """Return the probes sqrt(d) e_i: their mean of p p' is I."""
    n, d = a.shape[:2]
    return (math.sqrt(d) * torch.eye(d, dtype=a.dtype))[:, None].expand(d, n, d)


def draws(trace, a, rows=4000, seed=0):
    """Return one independent estimate of log det of each of a few matrices per row."""
    again = a.repeat_interleave(rows // len(a), 0)
    probes = trace.probes(again[..., 0], torch.Generator().manual_seed(seed))
    return trace(Stiff(again, True), probes, torch.log).view(len(a), -1)
