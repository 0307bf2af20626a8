"""What a flow promises: that it is a bijection that knows its volume change.

`flows_made` says by what numerics, and how exactly, promises are checked. Densities as such are in
`flows_density`, randomness in `flows_noise`, batches, precision, devices and modes in
`flows_manners`, costs along the way and contexts in `flows_options`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowzoo.conformance.check import Skipped, check, off_by, require
from flowzoo.conformance.probes.flows_made import (
    Accuracy,
    TooRough,
    exact,
    gridded,
    made,
    solved,
    takes_numerics,
    typical,
    volume,
)
from flowzoo.conformance.probes.invariance import untouched
from flowzoo.conformance.probes.slopes import slopes
from flowzoo.conformance.promises.flows_density import mass_1d, mass_2d, samples
from flowzoo.conformance.promises.flows_manners import (
    batch_independence,
    default_dtype,
    device,
    inference_mode,
    permutation,
    precision,
    save_load,
    train_eval,
)
from flowzoo.conformance.promises.flows_noise import own_noise, seeds, two_calls
from flowzoo.conformance.promises.flows_options import context, running_costs
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import FlowzooError, Incompatible
from flowzoo.flow import Flow
from flowzoo.integrators import RK4, Field, Integrator, Solution, State, Time
from flowzoo.traces import Exact

__all__ = [
    "batch_independence",
    "context",
    "default_dtype",
    "device",
    "gradients",
    "inference_mode",
    "ladj",
    "ladj_inverse",
    "mass_1d",
    "mass_2d",
    "numerics",
    "own_noise",
    "permutation",
    "precision",
    "recorded_gradients",
    "round_trip",
    "running_costs",
    "samples",
    "save_load",
    "seeds",
    "shapes",
    "sizes",
    "train_eval",
    "two_calls",
]

_SMOOTH = 1e-5  # what a slope may be off by
_RECORDED = 1e-9  # what recording may change of a gradient: rounding
_VAGUE = 0.1  # beyond this a comparison says nothing of an inverse


@check("flow")
def shapes(specimen: Specimen) -> str:
    """Results have the shapes and the dtype that their inputs imply, and inputs are left alone."""
    for dtype in (torch.float64, torch.float32):
        flow = made(specimen, dtype=dtype)
        x = specimen.points(5, flow.dim, dtype)
        with untouched([x], "its input"), torch.no_grad():
            _of_shapes(specimen, flow, x)
    return "as documented, in float64 and float32"


@check("flow")
def sizes(specimen: Specimen) -> str:
    """An empty batch, a single point, one dimension and several are nothing special."""
    tried = []
    own = made(specimen)
    for n, dim in ((0, own.dim), (1, own.dim), (1, 1), (3, 1), (3, 7)):
        try:
            flow = own if dim == own.dim else gridded(made(specimen, dim))
        except (Skipped, Incompatible):
            continue  # one that has no choice, or needs more dimensions
        with torch.no_grad():
            _of_shapes(specimen, flow, specimen.points(n, dim))
        tried.append(f"({n}, {dim})")
    return f"points of shape {', '.join(tried)}"


@check("flow")
def round_trip(specimen: Specimen) -> str:
    """What is decoded and encoded is what it was, and so is what is then decoded again.

    What a map magnifies of a small error in its input is allowed for.
    """

    def promise(flow: Flow, by: Accuracy) -> str:
        start = specimen.points(16, flow.dim)
        with torch.no_grad():
            x = flow.decode(start)
            z = flow.encode(x).z
            allowed = _magnified(by, lambda y: flow.encode(y).z, x, z)
            there = off_by(z, start, allowed, "encode(decode(z))")
            allowed = _magnified(by, flow.decode, start, x)
            back = off_by(flow.decode(z), x, allowed, "decode(encode(x))")
        return f"{there}; {back}"

    return solved(made(specimen), promise)


@check("flow")
def ladj(specimen: Specimen) -> str:
    """The stated log abs det is that of encode's Jacobian, taken by automatic differentiation."""

    def promise(flow: Flow, by: Accuracy) -> str:
        x, expected = volume(specimen, flow, by, back=False, n=5)
        with torch.no_grad():
            return off_by(flow.encode(x).ladj, expected, by.allowed, "ladj")

    return solved(specimen.make(3), promise)


@check("flow")
def ladj_inverse(specimen: Specimen) -> str:
    """The log abs det of decode's Jacobian and the stated one of encode cancel, at z = 0, too."""

    def promise(flow: Flow, by: Accuracy) -> str:
        x, expected = volume(specimen, flow, by, back=True, n=4)
        with torch.no_grad():
            return off_by(flow.encode(x).ladj, expected, by.allowed, "ladj, against decode's,")

    return solved(specimen.make(3), promise)


@check("flow")
def gradients(specimen: Specimen) -> str:
    """Gradients of the mean log-density in points and weights are those of finite differences."""
    flow = made(specimen)
    said = [_gradients(specimen, gridded(flow), "")]
    if takes_numerics(flow) and _on_a_grid(flow):
        said.append(_gradients(specimen, flow, ", own numerics"))
    return "; ".join(said)


@check("flow")
def recorded_gradients(specimen: Specimen) -> str:
    """Gradients taken to be differentiated again are the same, or refused with a reason."""
    flow = made(specimen)
    x = typical(specimen, flow, 6).requires_grad_()
    leaves = [x, *(w for w in flow.parameters() if w.requires_grad)]

    def gradients(again: bool) -> list[Tensor]:
        value = -flow.log_prob(x, generator=specimen.generator()).mean()
        found = torch.autograd.grad(
            value, leaves, create_graph=again, allow_unused=True, materialize_grads=True
        )
        return [g.detach() for g in found]

    plain = gradients(again=False)
    try:
        recorded = gradients(again=True)
    except FlowzooError as refusal:
        return f"refused, saying: {refusal}"
    found, expected = (torch.cat([g.flatten() for g in each]) for each in (recorded, plain))
    return off_by(found, expected, _RECORDED, "the recorded gradient")


@check("flow")
def numerics(specimen: Specimen) -> str:
    """Other numerics share the weights, leave the flow as it was, and converge."""
    flow = made(specimen)
    if not takes_numerics(flow):
        raise Skipped("it takes no other numerics")
    x = specimen.points(8, flow.dim)

    def density(by: Flow) -> Tensor:
        with torch.no_grad():
            return by.log_prob(x, generator=specimen.generator())

    def promise(flow: Flow, by: Accuracy) -> str:
        best, loose = density(flow), density(exact(flow, 1e-4))
        off_by(density(exact(flow, 1e-5)), best, 1e-2, "log_prob at a tolerance of 1e-5")
        return off_by(loose, best, 2e-2, "log_prob at a tolerance of 1e-4")

    before, watched = density(flow), _Watched(2)
    other = flow.with_numerics(watched, Exact())
    same = [id(w) for w in other.parameters()] == [id(w) for w in flow.parameters()]
    require(same, "with_numerics copies weights: training one would leave the other")
    require(other.training == flow.training, "with_numerics changes the mode of training")
    with torch.no_grad():
        solves = bool(flow.latent and other.encode(x).nfe)
    require(watched.used or not solves, "with_numerics keeps the flow's own solver")
    said = solved(flow, promise)
    off_by(density(flow), before, 0.0, "the flow's own log_prob, after with_numerics,")
    return said


class _Watched(RK4):
    """Knows whether it was used."""

    used = False

    def solve(
        self, field: Field, state: State, t0: Time, t1: Time, params: Sequence[Tensor] = ()
    ) -> Solution:
        """Return the state at t1."""
        self.used = True
        return super().solve(field, state, t0, t1, params)


def _of_shapes(specimen: Specimen, flow: Flow, x: Tensor) -> None:
    """Raise Failed unless all that a flow computes of points has its shape and is finite."""
    (n, d), noise = x.shape, specimen.generator
    x_drawn, log_p_drawn = flow.sample_and_log_prob(n, generator=noise())
    found = {
        "log_prob": (flow.log_prob(x, generator=noise()), (n,)),
        "sample": (flow.sample(n, generator=noise()), (n, d)),
        "sample_and_log_prob's x": (x_drawn, (n, d)),
        "sample_and_log_prob's log p": (log_p_drawn, (n,)),
    }
    if flow.latent:
        encoded = flow.encode(x, generator=noise())
        found["z"], found["ladj"] = (encoded.z, (n, d)), (encoded.ladj, (n,))
        found["costs"], found["decode"] = (encoded.costs, (n, 0)), (flow.decode(x), (n, d))
    for name, (y, shape) in found.items():
        given = f"for points of shape {tuple(x.shape)}"
        require(
            y.shape == torch.Size(shape),
            f"{name} has shape {tuple(y.shape)} {given}, expected {shape}",
        )
        require(y.dtype == x.dtype, f"{name} is {y.dtype} {given} in {x.dtype}")
        require(bool(y.isfinite().all()), f"{name} is not finite {given}")


def _magnified(by: Accuracy, fn: Callable[[Tensor], Tensor], at: Tensor, found: Tensor) -> float:
    """Return what a map makes of an allowed relative error of its input, the error at least."""
    step = 1e-4
    moved = (fn(at + step * (1 + at.abs())) - found) / (1 + found.abs())
    times = max(1.0, float(moved.abs().max()) / step)
    if by.allowed * times > _VAGUE:
        raise TooRough(f"errors of {by.allowed:g} are magnified {times:.1g} times on the way")
    return by.allowed * times


def _gradients(specimen: Specimen, flow: Flow, by: str) -> str:
    x = typical(specimen, flow, 6).requires_grad_()
    weights = [w for w in flow.parameters() if w.requires_grad]

    def value() -> Tensor:
        return -flow.log_prob(x, generator=specimen.generator()).mean()

    at = {"in x": [x], "in the weights": weights}
    return "; ".join(
        slopes(value, leaves, specimen.generator(1), _SMOOTH, f"the slope {where}{by}")
        for where, leaves in at.items()
        if leaves
    )


def _on_a_grid(flow: Flow) -> bool:
    """Return whether all integrators of a flow have a fixed grid, differentiated step by step."""
    used = [
        i for m in flow.modules() if isinstance(i := getattr(m, "integrator", None), Integrator)
    ]
    return bool(used) and all(i.evaluations is not None for i in used)
