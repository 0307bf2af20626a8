"""What the points of a convex potential say of it: gradient and Hessian, differentiable again."""

from __future__ import annotations

import torch
from torch import Tensor

from flowzoo.conformance.check import Skipped, check, off_by, require
from flowzoo.conformance.probes.linear import MANY, compare, derivative
from flowzoo.conformance.probes.slopes import slopes
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import FlowzooError
from flowzoo_cp_flow.conformance.convex_made import ROUNDING, log_det, made, places, slope
from flowzoo_cp_flow.convex import Convex


@check("convex")
def at(specimen: Specimen) -> str:
    """A point's value is that of `forward`, its gradient the derivative of it, recorded or not."""
    potential, said = made(specimen), ""
    x, *context = places(specimen, potential)
    with torch.no_grad():
        value = potential(x, *context)
    at_x = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(potential(at_x, *context).sum(), at_x)
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded):
            point = potential.at(x, *context)
        off_by(point.value, value, ROUNDING, "the point's F")
        said = off_by(point.gradient, expected, ROUNDING, "the gradient")
        require(point.hessian.symmetric, "its Hessian does not say that it is symmetric")
    return said


@check("convex")
def hessian(specimen: Specimen) -> str:
    """The Hessian, its products, its trace and its rows are those of automatic differentiation."""
    said = ""
    for dim in (None, MANY):
        try:
            potential = made(specimen, dim)
        except Skipped:
            continue  # it has one dimension only
        x, *context = places(specimen, potential, 5)
        x[0] = 0
        expected = derivative(lambda y: _gradient(potential, y, *context), x)  # noqa: B023
        index = torch.tensor([3, 0])
        for recorded in (True, False):
            with torch.set_grad_enabled(recorded):
                a = potential.at(x, *context).hessian
                said = compare(a, expected, specimen, "H")
                some = a.rows(index)
                if some is not None:
                    compare(some, expected[index], specimen, "H of some rows")
    return said


@check("convex")
def gradients(specimen: Specimen) -> str:
    """F can be differentiated in points, context and weights, rightly."""
    potential = made(specimen)
    inputs, leaves = _leaves(specimen, potential)
    return slopes(
        lambda: _weighed(potential(*inputs)),
        leaves, specimen.generator(), 1e-7, "the gradient of F",
    )  # fmt: skip


@check("convex")
def second_derivatives(specimen: Specimen) -> str:
    """Gradient and log det of H can be differentiated in points, context and weights, rightly."""
    potential = made(specimen)
    inputs, leaves = _leaves(specimen, potential)
    p = specimen.points(len(inputs[0]), potential.dim, seed=3)

    def value() -> Tensor:
        point = potential.at(*inputs)
        form = (p * point.hessian.vjp(p)).sum(-1)
        return _weighed(point.gradient) + _weighed(log_det(point.hessian) + form)

    return slopes(value, leaves, specimen.generator(), 1e-6, "the gradient of grad F and log det H")


@check("convex")
def third_derivatives(specimen: Specimen) -> str:
    """The slope of log det H can be differentiated again, rightly, where it is not refused."""
    potential = made(specimen)
    inputs, leaves = _leaves(specimen, potential)

    def value() -> Tensor:
        log_dets = log_det(potential.at(*inputs).hessian)
        again = slope(log_dets, inputs[0], create_graph=True)
        return _weighed(again) + inputs[0].sum()  # whose slope is there in any case

    try:
        return slopes(value, leaves, specimen.generator(), 1e-6, "the slope's own")
    except FlowzooError as error:
        raise Skipped(str(error)) from error


def _gradient(potential: Convex, x: Tensor, *context: Tensor) -> Tensor:
    return torch.autograd.grad(potential(x, *context).sum(), x, create_graph=True)[0]


def _leaves(specimen: Specimen, potential: Convex) -> tuple[list[Tensor], list[Tensor]]:
    """Return inputs that require gradients, and them and the weights."""
    inputs = [y.requires_grad_() for y in places(specimen, potential)]
    return inputs, [*inputs, *(w for w in potential.parameters() if w.requires_grad)]


def _weighed(y: Tensor) -> Tensor:
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype, device=y.device)
    return (weights * y.reshape(-1)).sum()
