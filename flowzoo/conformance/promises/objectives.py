"""Checks of objectives: stages, losses and gradients on small flows, and whether they teach."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from flowzoo.conformance.check import Failed, check, off_by, require
from flowzoo.conformance.probes.flows_trained import (
    accepted,
    conditional,
    everything,
    flows,
    random,
    single,
    staged,
    total,
)
from flowzoo.conformance.probes.invariance import default_dtype
from flowzoo.conformance.probes.slopes import slopes
from flowzoo.conformance.promises.objectives_learning import learns  # noqa: F401 (a check of this kind as well)
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import FlowzooError, Incompatible
from flowzoo.flow import Flow
from flowzoo.integrators import Evaluations
from flowzoo.objective import Batch, Loss, Objective, Stage
from flowzoo.registry.component import reason


@check("objective")
def stages(specimen: Specimen) -> str:
    """Stages are listed lazily and without effects; they have names, shares, weights of the flow.

    A stage's share of the budget is positive, its name its own, and its parameters are the flow's.
    """
    objective: Objective = specimen.make()
    said = []
    for what, flow in accepted(specimen, objective).items():
        before = everything(flow), torch.get_rng_state()
        listed = objective.stages(flow)
        require(
            isinstance(listed, Iterator), f"stages returns a {type(listed).__name__}, no iterator"
        )
        found = list(listed)
        require(bool(found), f"there is no stage for {what}")
        untouched = before[0] == everything(flow)
        require(untouched, f"listing the stages changes {what}")
        require(torch.equal(before[1], torch.get_rng_state()), "listing the stages draws noise")
        names = [stage.name for stage in found]
        require(all(names) and len(set(names)) == len(names), f"the stages are named {names}")
        again = [stage.name for stage in objective.stages(flow)]
        require(names == again, f"the stages are {names} at first and then {again}")
        for stage in found:
            _right_stage(stage, flow, what)
        said.append(f"{len(found)} for {what}")
    return "; ".join(said)


@check("objective")
def loss(specimen: Specimen) -> str:
    """A loss is a finite number with detached terms, and follows from batch and generator alone."""
    drawn = set()
    for what, stage, batch in _cases(specimen):
        found = stage.loss(batch, specimen.generator(1))
        require(isinstance(found, Loss), f"the loss is a {type(found).__name__}, expected a Loss")
        _scalar(found.total, f"the loss of {what}")
        require(found.total.requires_grad, f"the loss of {what} has no gradient")
        for name, term in found.terms.items():
            _scalar(term, f"the term {name} of {what}")
            require(not term.requires_grad, f"the term {name} of {what} is not detached")
        sound = all(isinstance(n, Evaluations) and n.forward >= 0 for n in found.nfe)
        require(sound, f"the evaluations of {what} are {found.nfe}")
        state = torch.get_rng_state()
        torch.rand(1)
        again = total(stage, batch, 1).detach()
        torch.set_rng_state(state)
        off_by(again, found.total.detach(), 1e-12, f"the loss of {what} with an equal generator")
        drawn.add(random(stage, batch))
    return (
        "random" if drawn == {True} else "deterministic" if drawn == {False} else "in part random"
    )


@check("objective")
def gradients(specimen: Specimen) -> str:
    """The gradient in a stage's parameters is that of finite differences with the same noise."""
    said = ""
    for what, stage, batch in _cases(specimen):
        weights = [p for p in stage.parameters if p.requires_grad]
        what = f"the slope of {what}"
        said = slopes(
            lambda s=stage, b=batch: total(s, b, 1), weights, specimen.generator(2), 1e-6, what
        )
    return said


@check("objective")
def every_parameter(specimen: Specimen) -> str:
    """Every parameter of a stage gets a gradient, unless the flow does not depend on it.

    One that does not move the flow, such as the constant of a potential, is only counted.
    """
    idle = 0
    objective: Objective = specimen.make()
    for what, flow in accepted(specimen, objective).items():
        names = {id(p): name for name, p in flow.named_parameters()}
        for stage, batch in staged(objective, flow, _batch(specimen)):
            weights = [p for p in stage.parameters if p.requires_grad]
            found = torch.autograd.grad(total(stage, batch, 1), weights, allow_unused=True)
            for weight, gradient in zip(weights, found, strict=True):
                if gradient is not None and bool(gradient.any()):
                    continue
                moved = _moves(flow, weight, batch)
                require(not moved, f"{names.get(id(weight))} of {what} gets no gradient")
                idle += 1
    return f"{idle} without effect on the flow" if idle else "all get one"


@check("objective")
def refuses(specimen: Specimen) -> str:
    """A flow that it cannot train is refused with a sentence; one that it accepts has a loss."""
    objective: Objective = specimen.make()
    no, yes = 0, 0
    for what, flow in flows(specimen).items():
        try:
            objective.check(flow)
        except Incompatible as error:
            said = str(error)
            require(len(said.split()) >= 5, f"{what} is refused without a reason: '{said}'")
            no += 1
            continue
        except Exception as error:
            raise Failed(
                f"{what} is refused by {reason(error)}, expected a flowzoo.errors.Incompatible"
            ) from error
        for stage, batch in staged(objective, flow, _batch(specimen)):
            _scalar(total(stage, batch), f"the loss of {what}, which is accepted,")
        yes += 1
    return f"{yes} flows trained, {no} refused"


@check("objective")
def batch(specimen: Specimen) -> str:
    """The loss is a mean over the batch; one point has a loss, and no points do no harm.

    A batch in which every point stands four times has the same loss, on average over the noise.
    """
    said = ""
    for what, stage, points in _cases(specimen):
        _scalar(total(stage, Batch(points.x[:1])), f"the loss of one point, for {what},")
        try:
            nothing = total(stage, Batch(points.x[:0]))
            require(nothing.dim() == 0, f"the loss of no points has shape {tuple(nothing.shape)}")
        except FlowzooError as error:
            require(bool(str(error)), "the loss of no points raises an error without a sentence")
        fourfold, draws = Batch(points.x.repeat(4, 1)), 16 if random(stage, points) else 2
        one = torch.stack([total(stage, points, k).detach() for k in range(draws)])
        four = torch.stack([total(stage, fourfold, 100 + k).detach() for k in range(draws)])
        gap, error = float((four - one).mean()), float((four - one).std()) / draws**0.5
        allowed = 5 * error + 1e-9 * float(1 + one.mean().abs())
        said = (
            f"{what}: every point four times changes the loss by {gap:.2g}, allowed {allowed:.2g}"
        )
        require(abs(gap) <= allowed, said)
    return said


@check("objective")
def precision(specimen: Specimen) -> str:
    """In float32 the loss is float32, whatever the default, and without noise that of float64."""
    objective: Objective = specimen.make()
    said = "dtypes follow"
    for what, flow in accepted(specimen, objective).items():
        points = _batch(specimen)
        double = [(random(s, b), total(s, b).detach()) for s, b in staged(objective, flow, points)]
        small = staged(objective, single(flow), Batch(points.x.float()))
        for (stage, rows), (drawn, expected) in zip(small, double, strict=True):
            found = []
            for dtype in (torch.float32, torch.float64):
                with default_dtype(dtype):
                    found.append(total(stage, rows).detach())
                name = f"the loss of {what} under the default {dtype}"
                require(found[-1].dtype == torch.float32, f"{name} is {found[-1].dtype}")
            off_by(found[1], found[0], 1e-6, f"the loss of {what} under the default float64")
            if not drawn:
                said = off_by(found[0].double(), expected, 1e-4, f"the float32 loss of {what}")
    return said


@check("objective")
def context(specimen: Specimen) -> str:
    """A context reaches the flow: other contexts give another loss, and one it was not given for.

    Without noise, rows that are permuted together with their contexts have the same loss.
    """
    objective: Objective = specimen.make()
    flow = conditional(objective)
    points, given = specimen.points(12, 2), specimen.points(12, 2, seed=4)
    order = torch.arange(12).flip(0)
    said = ""
    for stage, rows in staged(objective, flow, Batch(points, given)):
        require(rows.context is not None, f"stage {stage.name} loses the context when it begins")
        first = total(stage, rows).detach()
        _scalar(first, "the loss with a context")
        for seed in (5, 6):
            other = Batch(rows.x, specimen.points(12, 2, seed=seed))
            require(not torch.equal(first, total(stage, other)), "the loss ignores the context")
        said = f"stage {stage.name}: the loss depends on it"
        if rows.context is not None and not random(stage, rows):
            together = Batch(rows.x[order], rows.context[order])
            said = off_by(
                total(stage, together).detach(), first, 1e-10, "the loss of permuted rows"
            )
    return said


def _cases(specimen: Specimen) -> Iterator[tuple[str, Stage, Batch]]:
    """Yield every stage of every small flow that the objective trains, with points."""
    objective: Objective = specimen.make()
    for what, flow in accepted(specimen, objective).items():
        for stage, points in staged(objective, flow, _batch(specimen)):
            yield f"{what}, stage {stage.name}", stage, points


def _batch(specimen: Specimen) -> Batch:
    return Batch(0.5 + specimen.points(8, 2))


def _right_stage(stage: Stage, flow: Flow, what: str) -> None:
    known = {id(p) for p in flow.parameters()}
    require(isinstance(stage, Stage), f"a stage for {what} is a {type(stage).__name__}")
    strange = sum(id(p) not in known for p in stage.parameters)
    require(
        not strange, f"stage {stage.name} trains {strange} parameters that {what} does not have"
    )
    require(
        any(p.requires_grad for p in stage.parameters),
        f"stage {stage.name} of {what} trains nothing",
    )
    require(0 < stage.share < math.inf, f"the share of stage {stage.name} is {stage.share}")


def _scalar(value: Tensor, what: str) -> None:
    require(value.dim() == 0, f"{what} has shape {tuple(value.shape)}, expected ()")
    require(bool(value.isfinite()), f"{what} is {value.item()}")


def _moves(flow: Flow, weight: nn.Parameter, batch: Batch) -> bool:
    """Return whether the flow depends on a parameter: on the way to noise, or back."""

    def ends() -> Tensor:
        encoded = flow.encode(batch.x, generator=torch.Generator().manual_seed(0))
        return torch.cat([encoded.z, encoded.ladj[:, None], flow.decode(batch.x)], 1)

    with torch.no_grad():
        kept, before = weight.clone(), ends()
        weight.add_(0.1 * torch.ones_like(weight).cumsum(-1) if weight.dim() else 0.1)
        after = ends()
        weight.copy_(kept)
    return bool((before - after).abs().max() > 1e-12)
