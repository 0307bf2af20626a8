"""The noise of a trace estimate: measured, covered by the error, and zero where there is none."""

from __future__ import annotations

import math

import pytest
import torch
from judge_subjects import Rows, Scale
from oracles import F64, standard_normal
from torch import nn
from torch.nn.functional import softplus

from flowzoo.flow import Encoded, Flow
from flowzoo.judge import Subject, evaluate
from flowzoo.judge import subject as subject_module
from flowzoo.judge.likelihood import KL, NLL
from flowzoo.judge.measure import quantile
from flowzoo.judge.numerics import JudgeTrace
from flowzoo.judge.subject import AGAIN, REPEATS
from flowzoo.judge.truth import DensityError
from flowzoo.logdet import SLQ
from flowzoo.maps import Jacobian


class Convex(Flow):
    """z = grad F(x), F = |x|^2 / 4 + sum softplus(A x); ladj = log det of its Hessian, by a trace.

    Arguments:
        shared: One set of probes for all points of a batch, instead of some for each.
    """

    def __init__(self, a, trace=None, shared=False):
        super().__init__()
        self.dim, self.a, self.shared = a.shape[1], nn.Parameter(a.clone()), shared
        self.trace = SLQ(2, 32) if trace is None else trace

    def gradient(self, x):
        return 0.5 * x + torch.sigmoid(x @ self.a.mT) @ self.a

    def encode(self, x, running=(), context=None, generator=None):
        probes = self.trace.probes(x, generator)
        if probes is not None and self.shared:
            probes = probes[:, :1].expand_as(probes).contiguous()
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            z = self.gradient(x)
            hessian = Jacobian(z, x, symmetric=True, create_graph=False)
            ladj = self.trace(hessian, probes, torch.log)
        return Encoded(z.detach(), ladj.detach(), x.new_zeros(len(x), 0))

    def decode(self, z, context=None):
        bound = 0.5 * torch.eye(self.dim, dtype=F64) + self.a.mT @ self.a / 4  # of the Hessian
        x = torch.zeros_like(z)
        for _ in range(300):
            x = x - torch.linalg.solve(bound, (self.gradient(x) - z).mT).mT
        return x

    def with_numerics(self, integrator=None, trace=None):
        return Convex(self.a, self.trace if trace is None else trace, self.shared)

    def exact(self, x):
        """Return log p (n,) from the Hessian I / 2 + A' diag(s (1 - s)) A and slogdet."""
        with torch.no_grad():
            s = torch.sigmoid(x @ self.a.mT)
            hessian = 0.5 * torch.eye(self.dim, dtype=F64)
            hessian = hessian + torch.einsum("ki,nk,kj->nij", self.a, s * (1 - s), self.a)
            return standard_normal(self.gradient(x)) + torch.linalg.slogdet(hessian).logabsdet


class Noisy(Scale):
    """z = x / s with a log-density that is off by noise: of each point, or shared by a batch."""

    def __init__(self, dim, noise=0.0, shared=0.0):
        super().__init__(dim)
        self.noise, self.common = noise, shared

    def encode(self, x, running=(), context=None, generator=None):
        encoded = super().encode(x)
        each = self.noise * torch.randn(len(x), generator=generator, dtype=F64)
        ladj = encoded.ladj + each + self.common * torch.randn((), generator=generator, dtype=F64)
        return Encoded(encoded.z, ladj, encoded.costs)

    def exact(self, x):
        return standard_normal(x / self.s) - self.dim * self.s.log()


@pytest.fixture
def convex(seeded):
    def make(dim=6, shared=False, seed=1):
        a = 2 * torch.randn(2 * dim, dim, generator=seeded(seed), dtype=F64) / dim**0.5
        return Convex(a, shared=shared)

    return make


@pytest.fixture
def small(monkeypatch):
    """Take the log-determinant by SLQ from 4 dimensions on, with few probes and steps."""
    monkeypatch.setattr(subject_module, "JudgeTrace", lambda: JudgeTrace(dense=3, samples=2))


def test_the_toy_is_the_gradient_of_its_potential(convex, places):
    flow, x = convex(), places(4, 6).requires_grad_()
    potential = x.square().sum(-1) / 4 + softplus(x @ flow.a.mT).sum(-1)
    (gradient,) = torch.autograd.grad(potential.sum(), x)
    torch.testing.assert_close(flow.gradient(x), gradient)


# --- log-determinants ----------------------------------------------------------------------------


def test_an_exact_log_determinant_has_no_noise(convex, places):
    flow, x = convex(), places(50, 6)
    rows = Rows(x, log_prob=flow.exact)
    measures = evaluate(flow, rows, metrics=[NLL(), KL()])
    assert measures["nll"].parts["trace"] == 0
    assert measures["nll"].note.startswith("exact log-determinant")
    assert abs(measures["kl"].value) < 1e-12
    assert measures["nll"].value == pytest.approx(-flow.exact(x).mean().item(), rel=1e-12)
    assert measures["nll"].parts["inverse"] < 1e-6


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("shared", [False, True])
def test_the_noise_of_lanczos_quadrature_is_measured_and_covered(shared, convex, places):
    """Over independent probes; 32 Lanczos steps in 6 dimensions leave no bias."""
    flow, x = convex(shared=shared), places(300, 6)
    truth, values, errors, covered = flow.exact(x).mean().item(), [], [], 0
    for seed in range(40):
        subject = Subject(flow, Rows(x), seed=seed)
        values.append(subject.log_prob.mean().item())
        errors.append(subject.trace_error)
        covered += abs(values[-1] - truth) < quantile(REPEATS) * errors[-1]
    off = (torch.tensor(values) - truth).square().mean().sqrt().item()
    assert off > 1e-3
    typical = torch.tensor(errors).square().mean().sqrt().item()
    assert 0.75 * off < typical < 1.33 * off
    assert covered >= 39


@pytest.mark.usefixtures("small")
def test_the_error_covers_what_the_probes_do(convex, places):
    """The NLL of a test set is known here exactly, so sampling has no part in the difference."""
    flow, x = convex(), places(300, 6)
    rows, truth = Rows(x, log_prob=flow.exact), -flow.exact(x).mean().item()
    for seed in range(10):
        measures = evaluate(flow, rows, metrics=[NLL(), KL()], seed=seed)
        nll, kl = measures["nll"], measures["kl"]
        assert 0 < nll.parts["trace"] == kl.parts["trace"]
        assert abs(nll.value - truth) < quantile(300) * nll.parts["trace"] + nll.parts["solver"]
        assert abs(kl.value) < kl.error
        random = quantile(300) * math.hypot(nll.parts["sampling"], nll.parts["trace"])
        assert nll.error == pytest.approx(random + nll.parts["solver"], rel=1e-9)
        assert nll.note.startswith("SLQ")


# --- flows that are random by themselves ---------------------------------------------------------


@pytest.mark.parametrize(("noise", "shared"), [(0.5, 0.0), (0.0, 0.3), (0.5, 0.1)])
def test_a_random_flow_that_takes_no_numerics_has_a_trace_error(noise, shared, places):
    """The noise is known: sqrt(noise^2 / n + shared^2), about which the estimates scatter."""
    flow, rows = Noisy(3, noise, shared), Rows(places(AGAIN))
    assert Subject(flow, rows).judged is flow
    errors = [Subject(flow, rows, seed=seed).trace_error for seed in range(40)]
    typical = torch.tensor(errors).square().mean().sqrt().item()
    assert typical == pytest.approx(math.hypot(noise / AGAIN**0.5, shared), rel=0.2)
    assert min(errors) > 0
    assert Subject(Noisy(3), rows).trace_error == 0


def test_noise_averages_out_over_more_points_than_are_solved_again(places):
    """Shared noise is told from that of 200 points only down to what 200 points leave of it."""
    flow, rows = Noisy(3, 0.5), Rows(places(10 * AGAIN))
    errors = [Subject(flow, rows, seed=seed).trace_error for seed in range(20)]
    typical, truth = sum(errors) / 20, 0.5 / (10 * AGAIN) ** 0.5
    assert 0.95 * truth < min(errors)
    assert truth < typical < 2.5 * truth


def test_noise_does_not_pass_for_an_error_of_the_density(places):
    """A mean of absolute values does not average noise out: its error reaches down to the truth."""
    flow = Noisy(3, 0.5)
    rows = Rows(places(1000), log_prob=flow.exact)
    measures = evaluate(flow, rows, metrics=[KL(), DensityError()])
    assert abs(measures["kl"].value) < measures["kl"].error < 0.3
    found = measures["density-error"]
    assert found.value == pytest.approx(0.5 * (2 / math.pi) ** 0.5, rel=0.1)
    assert found.value < found.error
