"""Decoding by inversion: round trips, derivatives by the implicit function theorem, failures."""

from __future__ import annotations

import pytest
import torch
from cp_flow_oracles import chain, golden
from test_cp_flow_newton import shaken
from torch import nn

from flowzoo.errors import Diverged, Incompatible
from flowzoo.flow import Chain
from flowzoo_cp_flow import implicit
from flowzoo_cp_flow.actnorm import ActNorm
from flowzoo_cp_flow.conformance.inverses import Separable
from flowzoo_cp_flow.convex import Convex
from flowzoo_cp_flow.flow import ConvexFlow
from flowzoo_cp_flow.inversion import Inversion
from flowzoo_cp_flow.lbfgs import LBFGS
from flowzoo_cp_flow.newton import Newton
from flowzoo_cp_flow.picnn import PICNN

F64 = torch.float64


class Quadratic(Convex):
    """G(x) = x^T A x / 2 + b . x with A = L L^T, its derivatives by autograd."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.factor = nn.Parameter(torch.randn(dim, dim, dtype=F64))
        self.b = nn.Parameter(torch.randn(dim, dtype=F64))

    def forward(self, x, context=None):
        return 0.5 * (x @ self.factor).square().sum(-1) + x @ self.b


def stacked(dim=2):
    """Return a chain of two convex flows with normalisations around, set by a first batch."""
    blocks = [ActNorm(dim), shaken(dim), ActNorm(dim), shaken(dim, times=3.0)]
    made = Chain(blocks).to(F64).train()
    made.encode(torch.randn(64, dim, dtype=F64))
    return made.eval()


def gradients(y, leaves, seed):
    found = torch.autograd.grad(y, leaves, seed, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(found, leaves, strict=True)]


@pytest.fixture(params=["factors", "conjugate gradients"])
def either(request, monkeypatch):
    """Let derivatives be solved for in either way."""
    if request.param == "conjugate gradients":
        monkeypatch.setattr(implicit, "DENSE", 0)


@pytest.mark.parametrize("dim", [1, 2, 8])
def test_round_trips(dim):
    made, start = shaken(dim), torch.randn(40, dim, dtype=F64)
    with torch.no_grad():
        assert torch.allclose(made.decode(made.encode(start).z), start, atol=1e-9)
        assert torch.allclose(made.encode(made.decode(start)).z, start, atol=1e-9)


def test_round_trips_of_a_chain():
    made, start = stacked(), torch.randn(40, 2, dtype=F64)
    with torch.no_grad():
        assert torch.allclose(made.decode(made.encode(start).z), start, atol=1e-8)
        assert torch.allclose(made.encode(made.decode(start)).z, start, atol=1e-8)


def test_the_published_stack_is_inverted():
    made, g = chain(), golden("flow_5x3x32_d2")
    with torch.no_grad():
        x = made.decode(g["z"])
    assert torch.allclose(x, g["x"], atol=1e-8)
    assert torch.allclose(x[:4], g["inverse_official_batch"], atol=1e-4)  # five times L-BFGS


def test_the_gradient_is_that_of_a_closed_form(either):
    """x = (w A + c I)^-1 (z - w b) for a quadratic potential."""
    made, z = ConvexFlow(Quadratic(4)).double(), torch.randn(6, 4, dtype=F64, requires_grad=True)
    seed, leaves = torch.randn(6, 4, dtype=F64), [z, *made.parameters()]
    weight, quadratic = made._factors()
    a = weight * made.potential.factor @ made.potential.factor.mT
    a = a + quadratic * torch.eye(4, dtype=F64)
    exactly = torch.linalg.solve(a, (z - weight * made.potential.b).mT).mT
    x = made.decode(z)
    assert torch.allclose(x, exactly, atol=1e-9)
    for found, expected in zip(
        gradients(x, leaves, seed), gradients(exactly, leaves, seed), strict=True
    ):
        assert expected.abs().max() > 0
        assert torch.allclose(found, expected, atol=1e-8)


def test_the_gradient_is_that_of_finite_differences(either):
    made, z = shaken(3, width=8), torch.randn(5, 3, dtype=F64)
    weights = [w for w in made.parameters() if w.requires_grad]
    seed = torch.randn(5, 3, dtype=F64)
    directions = [torch.randn_like(w) for w in (z, *weights)]

    def moved(by):
        with torch.no_grad():
            for w, u in zip(weights, directions[1:], strict=True):
                w.add_(by * u)
        value = (made.decode((z + by * directions[0]).requires_grad_()) * seed).sum()
        with torch.no_grad():
            for w, u in zip(weights, directions[1:], strict=True):
                w.sub_(by * u)
        return value.item()

    leaf = z.clone().requires_grad_()
    found = gradients(made.decode(leaf), [leaf, *weights], seed)
    slope = sum((g * u).sum() for g, u in zip(found, directions, strict=True)).item()
    h = 1e-4
    expected = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    assert slope == pytest.approx(expected, rel=1e-5)


def test_the_gradient_in_the_context(either):
    made = ConvexFlow(PICNN(2, 8, 2, context_dim=3)).double().eval()
    with torch.no_grad():
        for w in made.parameters():
            w.add_(0.2 * torch.randn_like(w))
    z, context = torch.randn(5, 2, dtype=F64), torch.randn(5, 3, dtype=F64)
    assert torch.autograd.gradcheck(lambda c: made.decode(z, c), context.requires_grad_())


def test_encode_after_decode_is_the_identity_to_its_derivative(either):
    made, z = stacked(), torch.randn(4, 2, dtype=F64, requires_grad=True)
    again = made.encode(made.decode(z)).z
    weights = [w for w in made.parameters() if w.requires_grad]
    seed = torch.randn(4, 2, dtype=F64)
    inputs, *others = gradients(again, [z, *weights], seed)
    assert torch.allclose(inputs, seed, atol=1e-8)
    assert all(g.abs().max() < 1e-7 for g in others)
    assert any(g.abs().max() > 1e-3 for g in gradients(made.decode(z), weights, seed))


def test_samples_are_differentiable_in_all_weights_that_matter(seeded):
    made = stacked()
    x = made.sample(32, generator=seeded(1))
    free = [(name, w) for name, w in made.named_parameters() if w.requires_grad]
    names, weights = zip(*free, strict=True)
    found = torch.autograd.grad(x.square().sum(), weights, allow_unused=True)
    still = [n for n, g in zip(names, found, strict=True) if g is None or not g.abs().max() > 0]
    # The last layer's bias shifts the potential, and not its gradient.
    assert all(name.endswith("positive.2.bias") for name in still)


def test_two_decodes_before_a_backward_pass_do_not_disturb_each_other():
    made, z = shaken(2), torch.randn(2, 5, 2, dtype=F64)
    weights = [w for w in made.parameters() if w.requires_grad]
    seed = torch.randn(5, 2, dtype=F64)
    apart = [gradients(made.decode(part), weights, seed) for part in z]
    both = [made.decode(part) for part in z]
    together = gradients(both[0] + both[1], weights, seed)
    for one, other, found in zip(*apart, together, strict=True):
        assert torch.allclose(one + other, found, atol=1e-10)


def test_weights_that_changed_in_between_are_not_taken_for_the_old_ones(either):
    made, z = shaken(2), torch.randn(5, 2, dtype=F64, requires_grad=True)
    x = made.decode(z)
    (expected,) = gradients(made.decode(z), [z], torch.ones_like(x))
    with torch.no_grad():
        made.potential.entry.weight.mul_(2)
    try:
        (found,) = gradients(x, [z], torch.ones_like(x))
    except RuntimeError as error:
        noticed = "modified by an inplace operation" in str(error)
    else:
        noticed = torch.allclose(found, expected)
    assert noticed


def test_second_derivatives_are_refused():
    made, z = shaken(2), torch.randn(3, 2, dtype=F64, requires_grad=True)
    x = made.decode(z)
    with pytest.raises(Incompatible, match="inversion gives first derivatives only"):
        torch.autograd.grad(x.sum(), z, create_graph=True)


def test_no_graph_is_made_without_need(either):
    made, z = shaken(2), torch.randn(3, 2, dtype=F64)
    with torch.no_grad():
        assert not made.decode(z).requires_grad
    made.requires_grad_(False)
    assert not made.decode(z).requires_grad
    assert made.decode(z.requires_grad_()).requires_grad
    assert not made.invert(z).x.requires_grad


def test_inference_mode_decodes_what_needs_gradients_inside():
    made, inversion = Separable(2, "cosh", 2, closed=False), Newton()
    z, context = torch.randn(2, 3, 2, dtype=F64)
    expected = inversion(made.at, z, context).detach()
    with torch.inference_mode():
        given = z.clone(), context.clone()
        assert torch.equal(inversion(made.at, *given), expected)
        assert torch.equal(inversion.solve(made.at, *given).x, expected)


@pytest.mark.parametrize("inversion", [Newton(), LBFGS()])
def test_an_empty_batch_is_inverted(inversion):
    made = Separable(3, "cosh", 2)
    z, context = torch.zeros(0, 3, dtype=F64), torch.zeros(0, 2, dtype=F64)
    assert inversion.solve(made.at, z, context).x.shape == (0, 3)
    assert inversion(made.at, z.requires_grad_(), context).shape == (0, 3)


def test_numbers_that_are_none_are_named():
    made, z = shaken(2), torch.randn(6, 2, dtype=F64)
    z[2, 0], z[4, 1] = torch.nan, -torch.inf
    with pytest.raises(Diverged, match=r"newton: 2 of 6 .*2 of the z hold nan or inf.*number 2;"):
        made.decode(z)
    found = made.invert(z)
    assert found.converged.tolist() == [True, True, False, True, False, True]
    assert found.x[[2, 4]].isnan().all()
    assert found.residual[[2, 4]].isnan().all()
    good = [0, 1, 3, 5]
    with torch.no_grad():
        assert torch.allclose(made.encode(found.x[good]).z, z[good], atol=1e-9)


def test_a_context_that_is_none_is_named_and_spoils_no_other_sample():
    made = Separable(2, "cosh", 2)
    z, context = torch.randn(4, 2, dtype=F64), torch.randn(4, 2, dtype=F64)
    expected = made.inverse(z, context)
    context[1, 0] = torch.nan
    found = Newton().solve(made.at, z, context)
    assert found.converged.tolist() == [True, False, True, True]
    assert torch.allclose(found.x[[0, 2, 3]], expected[[0, 2, 3]], atol=1e-9)
    with pytest.raises(Diverged, match="1 of the contexts hold nan or inf, the first is number 1;"):
        Newton()(made.at, z, context)


def test_contexts_of_another_number_are_refused():
    made = Separable(2, "cosh", 2)
    with pytest.raises(Incompatible, match="a context of its own, got 3 for 4"):
        Newton().solve(made.at, torch.randn(4, 2, dtype=F64), torch.randn(3, 2, dtype=F64))


@pytest.mark.parametrize("failed", ["nan", "keep"])
def test_gradients_of_the_samples_that_did_converge_survive_the_others(failed):
    made, z = Separable(2, "cone"), 0.3 * torch.randn(5, 2, dtype=F64)
    z[3] = 40.0
    inversion = Newton(failed=failed)
    x = inversion(made.at, z.requires_grad_())
    good = [0, 1, 2, 4]
    assert (x[3].isnan().all()) == (failed == "nan")
    assert not inversion.solve(made.at, z).converged[3]
    weights = list(made.parameters())
    found = gradients(x[good].square().sum(), [z, *weights], None)
    expected = gradients(made.inverse(z[good]).square().sum(), [z, *weights], None)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def test_another_inversion_needs_but_a_search():
    class Newtonish(Inversion):
        name = "newtonish"

        def search(self, at, z, context):
            return Newton(iterations=1).search(at, z, context)

    made = ConvexFlow(Quadratic(3), inversion=Newtonish()).double()
    z = torch.randn(4, 3, dtype=F64, requires_grad=True)
    assert torch.allclose(made.encode(made.decode(z)).z, z)
    with pytest.raises(Diverged, match="newtonish: 4 of 4 samples were not inverted"):
        Newtonish()(Separable(3, "cosh").at, 3 * torch.ones(4, 3, dtype=F64))
