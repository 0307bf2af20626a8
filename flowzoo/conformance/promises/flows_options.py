"""What a flow promises of what it may be asked in addition: costs along the way, and a context."""

from __future__ import annotations

import torch
from torch import Tensor

from flowzoo.conformance.check import Failed, Skipped, check, off_by, require
from flowzoo.conformance.probes.flows_made import ROUNDING, gridded, made, numbers, solved
from flowzoo.conformance.probes.invariance import agree, batch_independence
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import Incompatible
from flowzoo.field import Point
from flowzoo.flow import Flow
from flowzoo.regularizers import HJB, JacobianFrobenius, RunningCost, Transport

_WIDTH = 2  # of the context


class Duration(RunningCost):
    """The time that a trajectory takes."""

    def rate(self, at: Point, probes: Tensor | None) -> Tensor:
        """Return 1."""
        return torch.ones_like(at.v[:, 0])


@check("flow")
def running_costs(specimen: Specimen) -> str:
    """It integrates costs on the way, or refuses them alike in `requires` and `encode`.

    No way from x to z in time T costs less than the straight one: the integral of |v|^2 / 2 is at
    least |x - z|^2 / (2 T).
    """
    flow = made(specimen)
    few = gridded(flow)
    x = specimen.points(6, flow.dim)
    accepted = [
        c for c in (Transport(), Duration(), JacobianFrobenius(), HJB()) if _takes(few, c, x)
    ]
    if not any(isinstance(c, Transport) for c in accepted):
        return "refuses costs, alike in requires and encode"
    with torch.no_grad():
        plain, encoded = few.encode(x), few.encode(x, accepted)
        shape = (len(x), len(accepted))
        require(
            encoded.costs.shape == torch.Size(shape),
            f"costs have shape {tuple(encoded.costs.shape)}, expected {shape}",
        )
        agree((encoded.z, encoded.ladj), (plain.z, plain.ladj), ROUNDING,
              ("z", "ladj"), "beside costs")  # fmt: skip
        turned = few.encode(x, accepted[::-1]).costs.flip(1)
        off_by(turned, encoded.costs, ROUNDING, "costs asked for in another order")
        return solved(flow, lambda flow, by: _no_shortcut(flow, by.allowed, x))


@check("flow")
def context(specimen: Specimen) -> str:
    """Built for a context, it depends on it, each point on its own row alone; else it has none."""
    flow = made(specimen, context_dim=_WIDTH)
    if not flow.context_dim:
        raise Skipped("it takes no context")
    require(
        flow.context_dim == _WIDTH,
        f"context_dim is {flow.context_dim} where it was built for a context of width {_WIDTH}",
    )
    without = made(specimen).context_dim
    require(not without, f"context_dim is {without} where it was built without a context")
    fn, names = numbers(gridded(flow))
    x, c = specimen.points(6, flow.dim), specimen.points(6, _WIDTH, seed=1)
    _depends_on_its_own_row(flow, x, c)
    said = batch_independence(fn, [x, c], ROUNDING, names)
    drawn = flow.sample(len(c), c, specimen.generator())
    require(drawn.shape == x.shape, f"sample has shape {tuple(drawn.shape)} for 6 contexts")
    return said


def _takes(flow: Flow, cost: RunningCost, x: Tensor) -> bool:
    """Return whether a flow takes a cost; Failed where `requires` and `encode` disagree."""
    name = type(cost).__name__
    try:
        flow.requires([cost])
        allowed = True
    except Incompatible:
        allowed = False
    try:
        flow.encode(x, [cost])
    except Incompatible as error:
        if allowed:
            raise Failed(f"requires takes {name}, but encode refuses it: {error}") from error
        return False
    require(allowed, f"requires refuses {name}, but encode takes it")
    return True


def _no_shortcut(flow: Flow, allowed: float, x: Tensor) -> str:
    encoded = flow.encode(x, [Transport(), Duration()])
    cost, time = encoded.costs.unbind(-1)  # error control does not look at these: 10 times worse
    straight = 0.5 * (encoded.z - x).square().sum(-1)
    spare = (cost * time - straight) / (1 + straight)
    require(
        bool((spare >= -10 * allowed).all()),
        f"a way costs less than the straight one by {-float(spare.min()):.2g} (relative)",
    )
    return f"ways cost {float((cost * time).sum() / straight.sum()):.4g} of the straight ones"


def _depends_on_its_own_row(flow: Flow, x: Tensor, c: Tensor) -> None:
    fn, names = numbers(gridded(flow))
    other = c.clone()
    other[1] += 1
    before, after = fn(x, c), fn(x, other)
    rest = [i for i in range(len(x)) if i != 1]
    agree(
        tuple(y[rest] for y in after),
        tuple(y[rest] for y in before),
        ROUNDING,
        names,
        "beside another row's context",
    )
    moved = max(float((a[1] - b[1]).abs().max()) for a, b in zip(after, before, strict=True))
    require(moved > ROUNDING, "the context changes nothing")
