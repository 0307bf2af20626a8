"""Likelihoods with a certificate: NLL, bits per dimension, and the KL where the truth is known."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from flowzoo.errors import Diverged
from flowzoo.judge.measure import Measure, Metric, at_least_two, bias_bound, mean, standard_error
from flowzoo.judge.subject import AGAIN, OWN, Subject


class NLL(Metric):
    """Mean negative log-likelihood of the test points, in nats per point, with a certificate.

    The trace is exact and the solver adaptive at a tolerance of 1e-5. The parts of the error:
    `sampling`, the standard error of the mean over test points; `solver`, a bound on what the mean
    is off by, from a subsample solved again in float64 at a tolerance a hundred times tighter;
    `trace`, the standard error from the noise of a trace estimate, zero for an exact trace. Where a
    log-determinant is estimated there is `truncation`, by how much the NLL may be too small as its
    quadratures end early: the estimate is by Gauss's rule, which over-estimates log p. Beside them
    stands `inverse`, the mean of |decode(encode(x)) - x| over the subsample, in units.

    `nll-own` is what the flow's own numerics would have reported, on the same test points.

    Arguments:
        subsample: Points that are solved again.

    Raises:
        UserError: The subsample is smaller than 2.
    """

    def __init__(self, subsample: int = AGAIN) -> None:
        self.subsample = at_least_two("nll", subsample)

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `nll` and `nll-own`."""
        change, parts = -density_change(subject, self.subsample), {}
        if subject.flow.latent:
            rows, back = subject.back(self.subsample)
            distance = (back - subject.x[rows]).double().norm(dim=-1)
            parts = {"inverse": float(distance.mean())}
        judge = mean(
            -subject.log_prob,
            change,
            finer=subject.finer,
            trace=subject.trace_error,
            unit="nats",
            better="lower",
            parts=parts,
            note=subject.numerics,
        )
        judge = truncated(judge, subject.truncation)
        own = _own(subject, judge)
        return {"nll": judge} | ({} if own is None else {"nll-own": own})


class BitsPerDim(Metric):
    """Mean NLL of images in bits per dimension of their grey values, with the NLL's certificate.

    Arguments:
        subsample: Points that are solved again.

    Raises:
        UserError: The subsample is smaller than 2.

    References:
        Masked Autoregressive Flow for Density Estimation (Papamakarios, Pavlakou & Murray,
        NeurIPS 2017), appendix E.2, https://arxiv.org/abs/1705.07057
    """

    def __init__(self, subsample: int = AGAIN) -> None:
        self.subsample = at_least_two("bits-per-dim", subsample)

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `bits-per-dim`, or nothing for data that are no images."""
        bits = subject.data.bits_per_dim
        if bits is None:
            return {}
        x = subject.data.test.double()
        values = bits(-subject.log_prob.to(x.device), x)
        per_nat = 1 / (x.shape[1] * math.log(2))
        change = -density_change(subject, self.subsample) * per_nat
        measured = mean(
            values,
            change,
            finer=subject.finer * per_nat,
            trace=subject.trace_error * per_nat,
            unit="bits",
            better="lower",
            note=subject.numerics,
        )
        off = subject.truncation
        return {"bits-per-dim": truncated(measured, None if off is None else off * per_nat)}


class KL(Metric):
    """KL(data || flow) in nats, where the data's density is known: the gap to the best NLL.

    The mean over test points of log p_data(x) - log p_flow(x). Paired at each point, its error
    vanishes with the gap; that of the NLL stays. An estimate may be negative, the KL is not.

    Arguments:
        subsample: Points that are solved again, for the solver's part of the error.

    Raises:
        UserError: The subsample is smaller than 2.
    """

    def __init__(self, subsample: int = AGAIN) -> None:
        self.subsample = at_least_two("kl", subsample)

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `kl`, or nothing where the density is not known."""
        gap = density_gap(subject)
        if gap is None:
            return {}
        measured = mean(
            gap,
            -density_change(subject, self.subsample),
            finer=subject.finer,
            trace=subject.trace_error,
            unit="nats",
            better="lower",
            note="paired with the true density",
        )
        return {"kl": truncated(measured, subject.truncation)}


def truncated(measured: Measure, most: float | None) -> Measure:
    """Return a number with the part `truncation`, by how much it may be too small, in its error.

    Arguments:
        measured: A mean of negative log-densities.
        most: How far the mean log-density may be too large; None where that has no bound.
    """
    if most is None:
        return replace(measured, note=f"{measured.note}, whose truncation has no known bound")
    if not most:
        return measured
    error = None if measured.error is None else measured.error + most
    return replace(measured, error=error, parts={**measured.parts, "truncation": most})


def density_gap(subject: Subject) -> Tensor | None:
    """Return log p_data - log p_flow (n,) at the test points; None where p_data is not known."""
    density, context = subject.data.log_prob, subject.data.test_context
    if density is None:
        return None
    given = () if context is None else (context.double(),)
    # Both densities in the flow's coordinates, in which the data states its own.
    true = density(subject.data.test.double(), *given).to(subject.x.device)
    return true - (subject.log_prob - subject.volume)


def density_change(subject: Subject, n: int) -> Tensor:
    """Return the judge's log-density less that of the finer solve, on n points."""
    return subject.beside(n)[1] - subject.again(n)[1].log_prob


def _own(subject: Subject, judge: Measure) -> Measure | None:
    """Return the NLL by the flow's own numerics; None where they give no finite number.

    It is the judge's NLL plus the mean difference on at most OWN points: paired, the difference is
    known far better than either. The difference is the solver's error of that number.
    """
    if subject.judged is subject.flow:
        return replace(judge, better=None)
    try:
        rows, own = subject.own(OWN)
    except Diverged:
        return None
    gap = subject.log_prob[rows] - own.log_prob
    if not bool(torch.isfinite(gap).all()):
        return None
    sampling, noise = judge.parts.get("sampling"), standard_error(gap)
    parts = {"solver": bias_bound(gap, len(subject.x)) + judge.parts["solver"]}
    error = None
    if sampling is not None and noise is not None and judge.error is not None:
        parts = {"sampling": sampling, **parts}
        error = judge.error - judge.parts["solver"] + parts["solver"]
    parts["own_minus_judge"] = float(gap.mean())
    if noise is not None:
        parts["own_minus_judge_error"] = noise
    value = judge.value + parts["own_minus_judge"]
    return Measure(value, error, "nats", None, parts, "the flow's own solver and trace")
