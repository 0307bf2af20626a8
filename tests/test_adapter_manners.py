"""What is adapted: read, asked in its own precision and randomness, refused in a sentence."""

from __future__ import annotations

import copy

import pytest
import torch
from foreign_objects import Learned, Only, Scaled
from judge_subjects import Rows
from oracles import F64
from scipy import stats
from torch import distributions as d
from torch import nn

from flowzoo.adapters import adapt
from flowzoo.errors import Diverged, Incompatible, UserError
from flowzoo.flow import Flow
from flowzoo.judge import evaluate
from flowzoo.judge.likelihood import NLL
from flowzoo.objective import Batch, Likelihood


def test_a_flow_stays_what_it_is():
    flow = adapt(Scaled())
    assert isinstance(flow, Flow)
    assert adapt(flow) is flow


def test_samples_may_come_in_a_tuple_and_say_the_dimension():
    flow = adapt(Only(lambda x: x[:, 0], lambda n: (torch.zeros(n, 3), torch.zeros(n))))
    assert flow.dim == 3
    assert flow.sample(4).shape == (4, 3)


def test_the_dimension_is_read_or_given():
    def unwilling(n):
        raise RuntimeError("no samples")

    assert adapt(Only(lambda x: x[:, 0], unwilling), dim=4).dim == 4
    assert adapt(Only(lambda x: x[:, 0], unwilling, features=5)).dim == 5
    assert adapt(Only(lambda x: x[:, 0], unwilling, event_shape=torch.Size([6]))).dim == 6
    with pytest.raises(UserError, match=r"neither Only nor a sample.*give `dim`"):
        adapt(Only(lambda x: x[:, 0], unwilling))
    with pytest.raises(UserError, match="Scaled is a density in 2 dimensions, not in 3"):
        adapt(Scaled(), dim=3)


REFUSED = {
    "batch": (lambda: d.Normal(torch.zeros(3), 1.0), r"Normal is 3 densities .*Independent"),
    "arrays": (lambda: d.Independent(d.Normal(torch.zeros(3, 2), 1.0), 2), r"arrays of shape"),
    "discrete": (lambda: d.Poisson(torch.tensor(2.0)), "Poisson is discrete"),
    "neither": (lambda: 5, "int has no log_prob and no sample"),
    "no sample": (lambda: nn.Linear(2, 2), "Linear has no log_prob and no sample"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_density_over_vectors_is_refused(case):
    make, sentence = REFUSED[case]
    with pytest.raises(UserError, match=sentence):
        adapt(make())


WRONG = {
    "columns": (lambda x: x, UserError, r"log_prob of Only must give .* \(3,\), got \(3, 2\)"),
    "one column": (lambda x: x[:, :1], UserError, r"got \(3, 1\)"),
    "a number": (lambda x: 1.0, UserError, "got float"),
    "nan": (lambda x: x[:, 0] / 0 * 0, Diverged, "log_prob of Only gives 3 of 3 entries as NaN"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_answer_is_named(case, places):
    log_prob, error, sentence = WRONG[case]
    with pytest.raises(error, match=sentence):
        adapt(Only(log_prob)).log_prob(places(3, 2))


def test_wrong_samples_are_named():
    flow = adapt(Only(lambda x: x[:, 0], lambda n: torch.zeros(n + 1, 2)))
    with pytest.raises(UserError, match=r"sample of Only must give .* \(5, 2\), got \(6, 2\)"):
        flow.sample(5)


def test_points_of_another_width_are_refused(places):
    with pytest.raises(Incompatible, match="Scaled is a density in 2 dimensions"):
        adapt(Scaled()).log_prob(places(3, 4))


@pytest.mark.parametrize("validate", [True, False])
def test_points_without_density_are_counted_or_refused(validate):
    bounds = torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)
    law = d.Independent(d.Uniform(*bounds, validate_args=validate), 1)
    data = Rows(torch.tensor([[0.5, 0.5], [0.5, 1.5]], dtype=F64))
    sentence = "Independent refuses some points" if validate else "1 of 2 test points have no"
    with pytest.raises(Diverged, match=sentence):
        evaluate(adapt(law), data, metrics=[NLL()])


def test_randomness_comes_from_the_generator_and_goes_nowhere(seeded):
    before = torch.get_rng_state()
    flow = adapt(d.Independent(d.Normal(torch.zeros(2), 1.0), 1))
    one, two, other = (flow.sample(6, generator=seeded(k)) for k in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    generator = seeded()
    assert not torch.equal(*(flow.sample(6, generator=generator) for _ in range(2)))
    noisy = adapt(Only(lambda x: x[:, 0] + torch.randn(len(x))))
    x = torch.zeros(4, 2, dtype=F64)
    assert torch.equal(*(noisy.log_prob(x, generator=seeded()) for _ in range(2)))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(flow.sample(6), flow.sample(6))  # without one, from torch's own


def test_a_generator_is_handed_to_what_takes_one(seeded):
    def sample(n, generator):
        return torch.rand(n, 2, generator=generator)

    flow = adapt(Only(lambda x: x[:, 0], sample), dim=2)
    assert torch.equal(flow.sample(3, generator=seeded()), torch.rand(3, 2, generator=seeded()))


def test_an_object_is_asked_in_its_own_precision(places):
    thing = Scaled(dtype=torch.float32)
    seen = []
    thing.log_prob = lambda x: seen.append(x.dtype) or x[:, 0]
    flow = adapt(thing)
    assert flow.log_prob(places(3, 2)).dtype == F64
    double = copy.deepcopy(flow).double()
    assert double.log_prob(places(3, 2)).dtype == F64
    assert seen == [torch.float32, torch.float32]
    assert double.sample(2).dtype == F64  # of the flow, whose precision was changed
    assert double.foreign.thing is thing  # shared: a module alone is copied


def test_the_judge_asks_a_float32_object_in_float32_and_a_double_one_unrounded(places):
    x = places(50, 2).float().double() + 1e-9
    for dtype, off in ((F64, 1e-13), (torch.float32, 1e-6)):
        law = d.Independent(d.Normal(torch.zeros(2, dtype=dtype), 1.0), 1)
        nll = evaluate(adapt(law), Rows(x), metrics=[NLL()])["nll"].value
        exact = -stats.norm.logpdf(x.numpy()).sum(-1).mean()
        assert nll == pytest.approx(exact, rel=off)


def test_the_weights_of_a_module_are_those_of_the_flow(places):
    module = Learned()
    flow = adapt(module)
    assert [*flow.parameters()] == [module.log_s]
    assert flow.double().sample(2).dtype == module.log_s.dtype == F64
    assert copy.deepcopy(flow).foreign.thing is not module
    Likelihood().loss(flow, Batch(places(20, 2))).total.backward()
    assert module.log_s.grad != 0
