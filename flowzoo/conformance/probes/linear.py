"""Compares linear maps seen through products with the derivative that they stand for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowzoo.conformance.check import Skipped, off_by
from flowzoo.conformance.probes.fields_made import ROUNDING, made, map_at, places
from flowzoo.conformance.specimen import Specimen
from flowzoo.maps import LinearMap

MANY = 10  # dimensions of the larger case: other algorithms may be chosen there


def against_autograd(specimen: Specimen, value: Callable[..., Tensor], name: str) -> str:
    """Return by how much a field's linear map differs from the derivative of a value.

    For few and many dimensions, one time and a time each, with and without gradients.

    Arguments:
        specimen: The field.
        value: What is differentiated, of (field, t, x, *context), rows (n, d).
        name: What the map is called.

    Raises:
        Failed: The dense map, a product or the trace is off.
    """
    said = ""
    for dim in (None, MANY):
        try:
            field = made(specimen, dim)
        except Skipped:
            continue  # it has one dimension only
        t, x, *context = places(specimen, field, 5)
        for time in (t, t[3]):
            expected = derivative(lambda y, t=time: value(field, t, y, *context), x)  # noqa: B023
            for recorded in (True, False):
                with torch.set_grad_enabled(recorded):
                    said = compare(map_at(field, time, x, *context), expected, specimen, name)
    return said


def derivative(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return dy_i/dx_j of the rows as (n, d, d), by one backward pass for each i."""
    x = x.clone().requires_grad_()
    y = fn(x)
    if not y.requires_grad:
        return y.new_zeros(*x.shape, x.shape[1])
    rows = [
        torch.autograd.grad(
            y[:, i].sum(), x, retain_graph=True, allow_unused=True, materialize_grads=True
        )[0]
        for i in range(x.shape[1])
    ]
    return torch.stack(rows, 1)


def compare(a: LinearMap, expected: Tensor, specimen: Specimen, name: str) -> str:
    """Return by how much a map, its products and its trace differ from matrices (n, d, d).

    Raises:
        Failed: The dense map, a product or the trace is off.
    """
    n, d = expected.shape[:2]
    said = off_by(a.dense().detach(), expected, ROUNDING, name)
    for k in (0, 1, 3):  # 0 stands for probes without a leading dimension
        p = specimen.points(max(k, 1) * n, d, seed=3).view(max(k, 1), n, d)
        p = p if k else p[0]
        pulled = (p[..., None, :] @ expected)[..., 0, :]
        pushed = (p[..., None, :] @ expected.mT)[..., 0, :]
        off_by(a.vjp(p).detach(), pulled, ROUNDING, f"{name}^T p for p {tuple(p.shape)}")
        off_by(a.jvp(p).detach(), pushed, ROUNDING, f"{name} p for p {tuple(p.shape)}")
        off_by(a.vjp(p).detach(), pulled, ROUNDING, f"{name}^T p, again,")
        off_by(a.vjp(2 * p).detach(), 2 * pulled, ROUNDING, f"{name}^T p of another p")
    trace = a.trace()
    if trace is not None:
        diagonal = expected.diagonal(dim1=-2, dim2=-1).sum(-1)
        off_by(trace.detach(), diagonal, ROUNDING, f"tr {name}")
    return said
