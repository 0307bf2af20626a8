"""Small flows that objectives are tried on, and the way through an objective's stages."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from flowzoo.build import build
from flowzoo.conformance.check import Failed, Skipped
from flowzoo.conformance.probes.portrait import portrait
from flowzoo.conformance.specimen import Specimen
from flowzoo.continuous import Continuous
from flowzoo.errors import FlowzooError, Incompatible
from flowzoo.field import Gradient
from flowzoo.flow import Chain, Encoded, Flow
from flowzoo.integrators import RK4
from flowzoo.networks import MLP, PotentialMLP
from flowzoo.objective import Batch, Objective, Stage
from flowzoo.recipes import load_recipes
from flowzoo.registry.component import reason
from flowzoo.regularizers import RunningCost

F = TypeVar("F", bound=Flow)

_WIDTH = (8,)
_STEPS = 2
_COLUMNS = 2  # of context


class Scaling(Flow):
    """z = (x - shift) exp(-scale): a flow without a trajectory, solver or trace.

    Arguments:
        dim: Dimension d.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.shift, self.scale = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    def encode(
        self,
        x: Tensor,
        running: Sequence[RunningCost] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """Send data to noise."""
        self.requires(running)
        z = (x - self.shift) * (-self.scale).exp()
        return Encoded(z, -self.scale.sum().expand(x.shape[0]), x.new_zeros(x.shape[0], 0))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Send noise to data."""
        return z * self.scale.exp() + self.shift


def _velocity(dim: int, width: int = 0) -> Continuous:
    return Continuous(MLP(dim, _WIDTH, "tanh", context_dim=width), RK4(_STEPS))


def _potential(dim: int) -> Continuous:
    return Continuous(Gradient(PotentialMLP(dim, _WIDTH, "tanh")), RK4(_STEPS))


FLOWS: Mapping[str, Callable[[int], Flow]] = {  # the fastest first
    "a flow without trajectory": Scaling,
    "a continuous flow": _velocity,
    "a potential flow": _potential,
    "a chain": lambda dim: Chain([_velocity(dim), _velocity(dim)]),
}


def flows(specimen: Specimen, dim: int = 2, start: bool = False) -> dict[str, Flow]:
    """Return small flows by what they are: ours, and registered ones that need no options.

    Arguments:
        specimen: The objective, whose registry is looked through.
        dim: Dimension d.
        start: Whether weights are those of the start, and not shaken.
    """
    made: dict[str, Callable[[], Flow]]
    made = {name: functools.partial(make, dim) for name, make in FLOWS.items()}
    for name in specimen.registry.names("flow"):
        make = functools.partial(build, "flow", name, specimen.registry, dim=dim)
        made[f"the flow {name}"] = make
    found = {}
    for name, make in made.items():
        try:
            found[name] = _settled(make, start)
        except FlowzooError:
            continue  # it needs options, or is broken: no matter of the objective
    return found


def accepted(
    specimen: Specimen, objective: Objective, dim: int = 2, start: bool = False
) -> dict[str, Flow]:
    """Return the small flows that an objective can train.

    Where there is none it is the first example of a registered flow that fits, else the flow of one
    of the objective's recipes.

    Raises:
        Skipped: There is none, with the objective's own sentence.
    """
    fits, why = {}, ""
    for name, flow in flows(specimen, dim, start).items():
        try:
            objective.check(flow)
            fits[name] = flow
        except Incompatible as error:
            why = str(error)
        except Exception as error:  # the check `refuses` fails for it
            why = reason(error)
    if fits:
        return fits
    for name in specimen.registry.names("flow"):
        for example in _examples(specimen, name):
            make = functools.partial(build, "flow", example, specimen.registry, dim=dim)
            try:
                flow = _settled(make, start)
                objective.check(flow)
            except FlowzooError:
                continue
            return {f"the example of the flow {name}": flow}
    for name, recipe in load_recipes().items():
        used = recipe.objective if isinstance(recipe.objective, str) else recipe.objective["name"]
        if used == specimen.spec["name"]:
            make = functools.partial(build, "flow", recipe.flow, specimen.registry, dim=dim)
            return {f"the flow of the recipe {name}": _settled(make, start)}
    raise Skipped(f"none of the flows at hand fits: {why}")


def _examples(specimen: Specimen, name: str) -> list[dict[str, Any]]:
    try:
        examples = getattr(specimen.registry.load("flow", name), "examples", ())
    except FlowzooError:
        return []
    return [{"name": name, **example} for example in examples]


def conditional(objective: Objective) -> Continuous:
    """Return a flow with a context.

    Raises:
        Skipped: The objective cannot train it.
    """
    flow = _settled(functools.partial(_velocity, 2, _COLUMNS), start=False)
    try:
        objective.check(flow)
    except Incompatible as error:
        raise Skipped(f"it does not train a flow with a context: {error}") from error
    return flow


def staged(objective: Objective, flow: Flow, batch: Batch) -> Iterator[tuple[Stage, Batch]]:
    """Yield every stage with its points, as a fit would have them."""
    for stage in list(objective.stages(flow)):
        if not stage.needed():
            continue
        with torch.no_grad():
            points = stage.points(batch)
            stage.begin(points)
        yield stage, points


def total(stage: Stage, batch: Batch, seed: int = 0) -> Tensor:
    """Return the loss of a batch with noise of a seed, as it is minimised.

    Raises:
        Failed: The loss cannot be computed.
    """
    try:
        return stage.loss(batch, torch.Generator().manual_seed(seed)).total
    except FlowzooError:
        raise
    except Exception as error:
        raise Failed(f"the loss of {len(batch.x)} points raises {reason(error)}") from error


def random(stage: Stage, batch: Batch) -> bool:
    """Return whether the loss depends on the generator."""
    return not torch.equal(total(stage, batch, 1), total(stage, batch, 2))


def everything(flow: Flow) -> object:
    """Return a flow's weights, buffers, modes and parts as a value."""
    modes = [module.training for module in flow.modules()]
    return portrait(flow), modes, [(p.requires_grad, p.grad is None) for p in flow.parameters()]


def single(flow: Flow) -> Flow:
    """Return a copy in float32."""
    return copy.deepcopy(flow).float()


def _settled(make: Callable[[], F], start: bool) -> F:
    """Return a flow in float64 and evaluation mode, always the same, its weights shaken or not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = make().double().eval()
        with torch.no_grad():
            for weight in () if start else flow.parameters():
                weight.add_(0.3 * torch.randn_like(weight))
    return flow
