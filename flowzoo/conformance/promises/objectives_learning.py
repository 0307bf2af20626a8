"""The check that an objective teaches a flow something."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowzoo.conformance.check import check, require
from flowzoo.conformance.probes.flows_trained import accepted, staged, total
from flowzoo.conformance.specimen import Specimen
from flowzoo.flow import Flow
from flowzoo.objective import Batch, Objective, Stage

_STEPS = 40  # of the optimizer, for each stage
_RATE = 0.07
_LEARNT = 0.25  # share of what there is to learn that must be learnt in them
_LOWER = 0.05  # or by how much of itself the loss must fall
_SPREAD = (0.5, 0.3)  # of the Gaussian that is to be learnt
_MIDDLE = (1.5, -1.0)


@check("objective")
def learns(specimen: Specimen) -> str:
    """A few dozen steps of Adam clearly lower the NLL of a Gaussian, or else the loss itself.

    The NLL must not rise. The flow is the first small one that the objective accepts.
    """
    objective: Objective = specimen.make()
    what, flow = next(iter(accepted(specimen, objective, start=True).items()))
    x, test = _gaussian(specimen, 0), _gaussian(specimen, 1)
    least = sum(math.log(s) for s in _SPREAD) + 1 + math.log(2 * math.pi)
    start, falls = _nll(flow, test), False
    for stage, points in staged(objective, flow, Batch(x)):
        first = _losses(stage, points)
        _fit(flow, stage, points)
        last = _losses(stage, points)
        fall = float(first.mean() - last.mean())
        falls |= fall > 3 * float(first.std() + last.std()) + _LOWER * float(first.mean().abs())
    end = _nll(flow, test)
    said = f"NLL of {what} from {start:.3g} to {end:.3g} nats, {least:.3g} at best"
    learnt = end < start - _LEARNT * (start - least)
    require(learnt or (falls and end <= start), f"little is learnt in {_STEPS} steps: {said}")
    return said


def _fit(flow: Flow, stage: Stage, batch: Batch) -> None:
    weights = [p for p in stage.parameters if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=_RATE)
    flow.train()
    for step in range(_STEPS):
        optimizer.zero_grad()
        total(stage, batch, step).backward()
        optimizer.step()
    flow.eval()


def _nll(flow: Flow, x: Tensor) -> float:
    with torch.no_grad():
        return float(-flow.log_prob(x, generator=torch.Generator().manual_seed(0)).mean())


def _gaussian(specimen: Specimen, seed: int) -> Tensor:
    scale, shift = (torch.tensor(each, dtype=torch.float64) for each in (_SPREAD, _MIDDLE))
    return specimen.points(256, 2, seed=seed) * scale + shift


def _losses(stage: Stage, batch: Batch) -> Tensor:
    return torch.stack([total(stage, batch, 1000 + k).detach() for k in range(4)])
