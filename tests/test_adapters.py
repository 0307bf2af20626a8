"""What flowzoo did not make is judged as its closed form says, or refused in a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_objects import Scaled
from judge_subjects import Rows
from oracles import F64
from scipy import stats
from scipy.integrate import quad
from torch import distributions as d

from flowzoo.adapters import adapt
from flowzoo.errors import Incompatible, UserError
from flowzoo.flow import Encoded
from flowzoo.integrators import Evaluations
from flowzoo.judge import evaluate
from flowzoo.judge.inverse import InverseError
from flowzoo.judge.likelihood import KL, NLL

DOC = Path(__file__).parents[1] / "docs" / "adapters.md"
MEANS = torch.tensor([[-2.0, 0.0], [1.0, 1.0], [0.0, 3.0]], dtype=F64)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=F64)


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def normal(mean=(0.5, -1.0), cov=((2.0, 0.6), (0.6, 0.5))):
    return d.MultivariateNormal(tensor(*mean), tensor(*cov))


def student(df=5.0, dim=2):
    return d.Independent(d.StudentT(df * torch.ones(dim, dtype=F64)), 1)


def mixture():
    parts = d.Independent(d.Normal(MEANS, 0.7 * torch.ones_like(MEANS)), 1)
    return d.MixtureSameFamily(d.Categorical(WEIGHTS), parts)


def of_mixture(x):
    parts = [stats.multivariate_normal(m, 0.49).logpdf(x) for m in MEANS.numpy()]
    return np.logaddexp.reduce(np.stack(parts) + np.log(WEIGHTS.numpy())[:, None], 0)


LAWS = {
    "normal": (normal, stats.multivariate_normal([0.5, -1.0], [[2.0, 0.6], [0.6, 0.5]]).logpdf),
    "student": (student, lambda x: stats.t(5).logpdf(x).sum(-1)),
    "mixture": (mixture, of_mixture),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_distribution_is_judged_by_its_closed_form(name, seeded):
    make, log_pdf = LAWS[name]
    x = 1.5 * torch.randn(300, 2, generator=seeded(), dtype=F64)
    found = evaluate(adapt(make()), Rows(x), metrics=[NLL(), InverseError()])
    expected = -torch.from_numpy(log_pdf(x.numpy()))
    assert found["nll"].value == pytest.approx(expected.mean().item(), rel=1e-12)
    assert found["nll"].parts["sampling"] == pytest.approx(
        expected.std().item() / 300**0.5, rel=1e-9
    )
    assert found["nll"].parts["solver"] == 0
    assert "inverse-error" not in found  # it has no latent space


def test_the_kl_between_two_distributions_is_found():
    truth = normal()
    torch.manual_seed(3)
    data = Rows(truth.sample((4000,)), log_prob=truth.log_prob)
    other = normal((0.0, -0.7), ((1.5, 0.0), (0.0, 0.7)))
    gaussian = d.kl_divergence(truth, other).item()
    one = d.Normal(tensor(0.0), tensor(1.0))

    def gap(x):
        return stats.norm.pdf(x) * (stats.norm.logpdf(x) - stats.t(5).logpdf(x))

    standard = Rows(one.sample((4000, 2))[..., 0], log_prob=lambda x: one.log_prob(x).sum(-1))
    for law, points, exact in (
        (other, data, gaussian),
        (student(), standard, 2 * quad(gap, -12, 12)[0]),
        (truth, data, 0.0),
    ):
        kl = evaluate(adapt(law), points, metrics=[KL()])["kl"]
        assert abs(kl.value - exact) <= kl.error < 0.05


def test_numbers_are_vectors_of_one_entry(places, seeded):
    flow = adapt(d.Laplace(tensor(0.3)[0], tensor(2.0)[0]))
    x = places(7, 1)
    assert flow.dim == 1
    expected = stats.laplace(0.3, 2.0).logpdf(x.numpy()[:, 0])
    assert flow.log_prob(x).numpy() == pytest.approx(expected)
    assert flow.sample(5, generator=seeded()).shape == (5, 1)


def test_a_latent_space_is_used(places):
    flow, x = adapt(Scaled()).eval(), places(9, 2)
    assert flow.latent
    encoded = flow.encode(x)
    assert torch.equal(encoded.z, x / 2)
    assert torch.allclose(encoded.ladj, -2 * torch.log(tensor(2.0)).expand(9))
    assert torch.equal(flow.decode(encoded.z), x)
    found = evaluate(flow, Rows(x), metrics=[NLL(), InverseError()])
    assert found["inverse-error"].value == 0
    with pytest.raises(Incompatible, match="no trajectory"):
        flow.encode(x, (object(),))  # pyright: ignore[reportArgumentType]


def test_an_encoded_is_taken_with_its_count(places):
    thing = Scaled()
    plain = thing.encode
    thing.encode = lambda x: Encoded(*plain(x), x.new_zeros(len(x), 0), (Evaluations(3),))
    assert adapt(thing).encode(places(4, 2)).nfe == (Evaluations(3),)
    thing.encode = lambda x: x
    with pytest.raises(UserError, match=r"encode of Scaled must return \(z, ladj\), got Tensor"):
        adapt(thing).encode(places(4, 2))


@pytest.mark.parametrize("wrong", [0.1, 4 * 0.6931471805599453])  # the second: the other sign
def test_an_encode_of_another_density_is_refused(wrong, places):
    data = Rows(places(20, 2))
    with pytest.raises(UserError, match=rf"log_prob and encode of Scaled differ by {wrong:.3g}"):
        evaluate(adapt(Scaled(wrong=wrong)), data, metrics=[NLL()])


def test_without_a_latent_space_nothing_is_encoded(places):
    flow = adapt(normal())
    assert not flow.latent
    for call in (flow.encode, flow.decode):
        with pytest.raises(Incompatible, match="MultivariateNormal has no encode and decode"):
            call(places(3, 2))


class Conditional:
    """N(context, 1)."""

    dim, context_dim = 1, 1

    def log_prob(self, x, context):
        return d.Normal(context[:, 0], 1.0).log_prob(x[:, 0])

    def sample(self, n, context):
        return context + torch.randn(n, 1, dtype=context.dtype)


def test_a_conditional_object_gets_its_context(places):
    x, context = places(40, 1), 3 + places(40, 1, 1)
    found = evaluate(adapt(Conditional()), Rows(x, context), metrics=[NLL()])
    expected = -stats.norm.logpdf((x - context).numpy()).mean()
    assert found["nll"].value == pytest.approx(expected)
    with pytest.raises(Incompatible, match="Conditional expects a context of width 1, got"):
        adapt(Conditional()).log_prob(x)
    with pytest.raises(Incompatible, match=r"Scaled expects no context.*`context_dim`"):
        adapt(Scaled()).log_prob(places(40, 2), context)


EXAMPLES = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(4))
def test_the_examples_run(number, capsys):
    if "zuko" in EXAMPLES[number]:
        pytest.importorskip("zuko")
    exec(EXAMPLES[number], {})
    assert "±" in (said := capsys.readouterr().out) or "Measure(" in said
    assert len(EXAMPLES) == 4
