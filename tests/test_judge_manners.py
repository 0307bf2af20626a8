"""What the judge refuses, what it leaves alone, and what it costs."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import oracles
import pytest
import torch
from judge_subjects import (
    NotANumber,
    Rows,
    Scale,
    all_metrics,
    gaussian,
    optimal,
    reproducible,
)
from oracles import F64, Explosive, SmallVelocity
from torch import nn

from flowzoo.continuous import Continuous
from flowzoo.errors import Diverged, UserError
from flowzoo.field import Velocity
from flowzoo.flow import Chain, Encoded, Flow
from flowzoo.integrators import RK4
from flowzoo.judge import Measure, Metric, Subject, evaluate
from flowzoo.judge import solves as solves_module
from flowzoo.judge.inverse import InverseError
from flowzoo.judge.likelihood import KL, NLL
from flowzoo.judge.numerics import JudgeTrace
from flowzoo.judge.trajectories import PathEnergy, Straightness, TransportCost
from flowzoo.judge.truth import MapError
from flowzoo.traces import Hutchinson
from flowzoo_ffjord.batchnorm import MovingBatchNorm

# --- what is not a number ------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_density_lost_at_some_points_is_no_result(wrong, places):
    bad = int((places(50)[:, 0] > 0).sum())
    with pytest.raises(Diverged, match=f"^NLL .*: {bad} of 50 test points have no finite log-dens"):
        evaluate(NotANumber(3, wrong), Rows(places(50)), metrics=[NLL(), InverseError()])


def test_a_judge_that_gives_up_says_so(places):
    flow = Continuous(Explosive(2), RK4(2))
    with pytest.raises(Diverged, match=r"^NLL cannot be measured: the judge's solver gave up at"):
        evaluate(flow, Rows(places(20, 2)), metrics=[NLL()])


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        (Measure(math.nan), "the metric odd is nan, which"),
        (Measure(1.0, math.inf), r"the metric odd \(its error\) is inf, which"),
        (Measure(1.0, 0.1, parts={"solver": math.nan}), r"odd \(its part solver\) is nan, which"),
    ],
)
def test_a_number_that_is_none_is_named(measure, said, places):
    class Odd(Metric):
        def measure(self, subject):
            return {"fine": Measure(1.0), "odd": measure}

    with pytest.raises(Diverged, match=said):
        evaluate(Scale(3), Rows(places()), metrics=[Odd()])


def test_wrong_requests_are_met_with_a_sentence(places):
    with pytest.raises(UserError, match="no test points"):
        evaluate(Scale(3), Rows(places(0)), metrics=[NLL()])
    with pytest.raises(UserError, match="two of the metrics measure nll"):
        evaluate(Scale(3), Rows(places()), metrics=[NLL(), NLL(50)])
    for metric in (NLL, KL, TransportCost, PathEnergy, Straightness, InverseError, MapError):
        with pytest.raises(UserError, match="at least 2 points, got 1"):
            metric(subsample=1)


# --- odd subjects --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("dim", [1, 2])
def test_one_point_and_one_dimension(n, dim):
    dataset = gaussian(dim)
    data = dataset.load()
    data = replace(data, test=data.test[:n])
    measures = evaluate(optimal(dataset), data, metrics=all_metrics())
    assert measures["nll"].value == pytest.approx(-data.log_prob(data.test).mean().item(), abs=2e-5)
    counts = ("nfe", "trace-products")  # a count has no error, nor has a single point
    for name, measure in reproducible(measures).items():
        assert (measure.error is None) == (n == 1 or name in counts)
    assert "sampling" not in measures["kl"].parts or n > 1
    assert measures["nll"].parts["solver"] < 1e-4


def test_flows_without_weights_follow_the_data():
    class Halve(Flow):
        dim = 2

        def encode(self, x, running=(), context=None, generator=None):
            ladj = x.new_full((x.shape[0],), -2 * math.log(2))
            return Encoded(x / 2, ladj, x.new_zeros(x.shape[0], 0))

        def decode(self, z, context=None):
            return 2 * z

    data = gaussian(2).load()
    assert Subject(Halve(), data).x.dtype == F64
    assert Subject(Scale(2, dtype=torch.float32), data).x.dtype == torch.float32  # a buffer
    measures = evaluate(Halve(), data, metrics=all_metrics())
    assert measures["nll"] == evaluate(Scale(2), data, metrics=all_metrics())["nll"]
    assert measures["nll"].note.startswith("its own numerics")


def test_conditional_flows_are_judged_with_their_context(places, monkeypatch):
    monkeypatch.setattr(solves_module, "piece", lambda dim: 25)

    class Shifted(Velocity):
        def __init__(self):
            super().__init__()
            self.dim = self.context_dim = 3
            self.b = nn.Parameter(torch.ones((), dtype=F64))

        def forward(self, t, x, context=None):
            return -self.b * context

    x, context = places(60), places(60, seed=1)
    rows = Rows(x, context, log_prob=lambda y, c: oracles.standard_normal(y - c))
    measures = evaluate(Continuous(Shifted()), rows, metrics=all_metrics())
    assert abs(measures["kl"].value) < 1e-6
    assert measures["inverse-error"].value < 1e-12


# --- what the judge leaves alone -----------------------------------------------------------------


def careful():
    """Return a chain in training mode with frozen and live parts, buffers and gradients."""
    block = Continuous(SmallVelocity(3), RK4(3), Hutchinson(), train_end_time=True).to(F64)
    block.note = {"of": [1, 2]}
    norm = MovingBatchNorm(3).to(F64)
    flow = Chain([block, norm, copy.deepcopy(block)]).train()
    flow.flows()[2].eval()
    flow.flows()[0].velocity.requires_grad_(False)
    x = torch.randn(20, 3, dtype=F64)
    flow.log_prob(x).sum().backward()
    return flow


def state(flow):
    return {
        "tensors": {k: v.clone() for k, v in flow.state_dict().items()},
        "grads": {
            k: None if p.grad is None else p.grad.clone() for k, p in flow.named_parameters()
        },
        "requires": {k: p.requires_grad for k, p in flow.named_parameters()},
        "modes": [(type(m).__name__, m.training, id(m)) for m in flow.modules()],
        "parts": [(id(m.integrator), id(m.trace)) for m in flow.modules() if hasattr(m, "trace")],
        "dtypes": [t.dtype for t in flow.state_dict().values()],
        "kept": sorted(k for m in flow.modules() for k in vars(m)),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


def test_the_flow_is_left_as_it_was(places):
    flow = careful()
    before, numbers = state(flow), torch.random.get_rng_state()
    evaluate(flow, Rows(places(30)), metrics=all_metrics())
    assert same(before, state(flow))
    assert torch.equal(numbers, torch.random.get_rng_state())
    with pytest.raises(Diverged):
        evaluate(flow, Rows(places(30) * 1e200), metrics=all_metrics())
    assert same(before, state(flow))


def test_judged_and_refined_flows_share_no_numerics_with_the_original(places):
    flow = Chain([Continuous(SmallVelocity(3), RK4(3), Hutchinson()) for _ in range(2)])
    flow.to(torch.float32)
    subject = Subject(flow, Rows(places(30)))
    own, judged, refined = (f.flows() for f in (subject.flow, subject.judged, subject.refined))
    for a, b, c in zip(own, judged, refined, strict=True):
        assert isinstance(a.integrator, RK4)
        assert isinstance(a.trace, Hutchinson)
        assert all(isinstance(f.trace, JudgeTrace) and f.trace.dense >= 1000 for f in (b, c))
        assert b.velocity is a.velocity  # weights shared with the judged, not with the refined
        assert all(p.dtype == F64 for p in c.parameters())
        assert all(p.dtype == torch.float32 for p in a.parameters())
        assert {p.data_ptr() for p in a.parameters()}.isdisjoint(
            p.data_ptr() for p in c.parameters()
        )
        for p, q in zip(a.parameters(), c.parameters(), strict=True):
            assert torch.equal(p.double(), q)


def test_no_gradients_are_recorded(places):
    flow = Continuous(SmallVelocity(3))
    subject = Subject(flow, Rows(places(10)))
    tensors = [subject.log_prob, *(getattr(subject.encoded, k) for k in ("z", "ladj", "costs"))]
    tensors += [subject.again(5)[1].log_prob, subject.own(5)[1].encoded.z, subject.back(5)[1]]
    tensors += [subject.samples(5)]
    assert not any(t.requires_grad for t in tensors)
    evaluate(flow, Rows(places(10)), metrics=all_metrics())
    assert all(p.grad is None for p in flow.parameters())
    with torch.inference_mode():
        assert evaluate(flow, Rows(places(10)), metrics=[NLL()])["nll"].finite


def test_a_flow_elsewhere_is_copied_not_moved(places):
    flow = Continuous(SmallVelocity(3))
    subject = Subject(flow, Rows(places(4)), device="meta")
    assert subject.flow is not flow
    assert all(p.device.type == "meta" for p in subject.flow.parameters())
    assert all(p.device.type == "cpu" for p in flow.parameters())
    assert Subject(flow, Rows(places(4))).flow is flow
