"""The closed forms of the OT-Flow potential against autograd, and the factor for d > m."""

from __future__ import annotations

import pytest
import torch
from oracles import SavedBytes, gap, gradients
from ot_flow_oracles import SHAPES, Derived, Trace, normal, potential, times
from torch.nn.functional import linear

from flowzoo_ot_flow.hessian import triangular


@pytest.mark.parametrize(("dim", "width", "layers"), SHAPES)
@pytest.mark.parametrize("per_sample", [False, True], ids=["t", "t per sample"])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_closed_forms_agree_with_autograd(dim, width, layers, per_sample, context_dim, places):
    phi = potential(dim, width, layers, context_dim=context_dim)
    # Enough samples for the factor to pay where d > m.
    x, context = places(40, dim), places(40, 2, seed=1) if context_dim else None
    t = times(40) if per_sample else times(1)[0]
    ours, slow = phi.at(t, x, context), Derived(phi).at(t, x, context)
    dense = slow.hessian.dense()
    p = normal(3, 40, dim)
    assert gap(ours.gradient, slow.gradient) < 1e-12
    assert gap(phi.gradient(t, x, context), slow.gradient) < 1e-12
    assert gap(ours.phi_t, slow.phi_t) < 1e-12
    assert gap(ours.hessian.dense(), dense) < 1e-12
    assert gap(ours.hessian.trace(), dense.diagonal(dim1=1, dim2=2).sum(-1)) < 1e-12
    products = torch.einsum("nij,knj->kni", dense, p)
    for product in (ours.hessian.vjp, ours.hessian.jvp):
        assert gap(product(p), products) < 1e-12
        assert gap(product(p[1]), products[1]) < 1e-12


@pytest.mark.parametrize(("dim", "width", "layers"), SHAPES)
def test_parameter_gradients_agree_with_autograd(dim, width, layers, places):
    phi, x, t, p = potential(dim, width, layers), places(40, dim), times(40), normal(1, 40, dim)
    weights = places(40, 4, seed=2)

    def value(of):
        at = of.at(t, x)
        trace = at.hessian.trace()
        if trace is None:
            trace = at.hessian.dense().diagonal(dim1=1, dim2=2).sum(-1)
        parts = (
            trace,
            at.phi_t,
            at.gradient.square().sum(-1),
            (at.hessian.vjp(p) ** 2).sum((0, 2)),
        )
        return (weights * torch.stack(parts, 1)).sum()

    ours, slow = (
        gradients(value(phi), phi.parameters()),
        gradients(value(Derived(phi)), phi.parameters()),
    )
    assert all(g.abs().max() > 0 for g in ours)
    for a, b in zip(ours, slow, strict=True):
        assert gap(a, b) < 1e-11


@pytest.mark.parametrize(("dim", "width", "layers"), [(2, 3, 2), (2, 3, 3), (7, 3, 2), (7, 3, 3)])
def test_gradcheck_of_the_trace_in_the_weights(dim, width, layers, places):
    phi, t = potential(dim, width, layers), times(1)[0]
    names = [name for name, _ in phi.named_parameters()]
    x = places(25, dim)

    def trace(*values):
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(
            Trace(phi), {f"phi.{k}": v for k, v in state.items()}, (t, x)
        )

    values = tuple(p.detach().clone().requires_grad_() for p in phi.parameters())
    assert torch.autograd.gradcheck(trace, values)


def test_the_trace_is_differentiated_in_x_and_then_in_the_weights(places):
    """The score of a flow, trained: the factor for d > m must not stand in its way."""
    for dim, width in ((3, 5), (9, 4)):
        phi = potential(dim, width, 2)
        x, t = places(40, dim).requires_grad_(), times(1)[0]
        found = []
        for trace in (
            phi.at(t, x).hessian.trace(),
            phi.at(t, x).hessian.dense().diagonal(dim1=1, dim2=2).sum(-1),
        ):
            (in_x,) = torch.autograd.grad(trace.sum(), x, create_graph=True)
            found.append([in_x, *gradients(in_x.square().sum(), phi.parameters())])
        assert gap(*found) < 1e-11


# --- the factor for d > m ------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [4, 2], ids=["full rank", "rank deficient"])
def test_lengths_survive_the_factor_and_so_does_their_gradient(rank):
    columns = (normal(9, rank, seed=1) @ normal(rank, 4, seed=2)).requires_grad_()
    k, weights = normal(6, 4), normal(6)

    def value(frame):
        return weights @ linear(frame, k).square().sum(0)

    factor = triangular(columns)
    assert factor.shape == (4, 4)
    assert gap(value(factor), value(columns)) < 1e-13
    assert gap(gradients(value(factor), [columns]), gradients(value(columns), [columns])) < 1e-13


def test_second_derivatives_through_the_factor():
    columns, k = normal(9, 4, seed=1), normal(6, 4)

    def value(frame):
        return linear(frame, k).square().sum(0).log().sum()

    columns.requires_grad_()
    second = [torch.func.hessian(value)(columns.detach())]
    (first,) = torch.autograd.grad(value(triangular(columns)), columns, create_graph=True)
    rows = [torch.autograd.grad(g, columns, retain_graph=True)[0] for g in first.flatten()]
    second.append(torch.stack(rows).view(9, 4, 9, 4))
    assert gap(second[1], second[0]) < 1e-12


def test_the_trace_keeps_no_more_than_m_columns(places):
    """Where d > m, what a graph keeps of the trace is (n, m, m), not (n, m, d)."""
    n, width, kept = 50, 4, []
    for dim in (4, 64):
        hessian = potential(dim, width, 2).at(times(1)[0], places(n, dim)).hessian
        saved = SavedBytes()
        with saved:
            hessian.trace()
        kept.append(saved.peak)
    assert kept[1] - kept[0] < 0.1 * (8 * n * width * 64)
