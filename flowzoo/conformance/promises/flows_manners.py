"""What does not change what a flow computes: its batch, precision, device, modes, and its storage.

On a fixed grid results are off by rounding alone; with its own solver, where that is adaptive, a
point's result depends on the batch by as much as the solver's tolerance, which is reported.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import safetensors.torch as safetensors
import torch
from torch import Tensor

from flowzoo.conformance.check import check, off_by, require
from flowzoo.conformance.probes import invariance
from flowzoo.conformance.probes.flows_made import ROUNDING, gridded, made, numbers, takes_numerics
from flowzoo.conformance.probes.invariance import Function, agree, global_seed
from flowzoo.conformance.specimen import Specimen
from flowzoo.flow import Flow
from flowzoo.integrators import RK4
from flowzoo.traces import Exact

_OWN = 1e-2  # what a flow's own adaptive solver may be off by, when its batch changes
_SINGLE = 1e-3  # what a few steps in float32 may be off by

Invariance = Callable[[Function, Sequence[Tensor], float, Sequence[str]], str]


@check("flow")
def batch_independence(specimen: Specimen) -> str:
    """A point's z, ladj and decoded point do not depend on the batch that it sits in."""
    return _does_not_matter(specimen, invariance.batch_independence)


@check("flow")
def permutation(specimen: Specimen) -> str:
    """Permuting the points permutes the results."""
    return _does_not_matter(specimen, invariance.permutation)


@check("flow")
def precision(specimen: Specimen) -> str:
    """In float32 results are those of the same weights in float64, to single precision."""
    single = made(specimen, dtype=torch.float32)
    double = copy.deepcopy(single).double()
    x = specimen.points(8, single.dim, torch.float32)
    one, names = numbers(gridded(single))
    two, _ = numbers(gridded(double))
    return invariance.precision(one, two, [x], _SINGLE, names)


@check("flow")
def device(specimen: Specimen) -> str:
    """It computes on the device of its weights and input: meta, and CUDA where there is one."""
    flow = made(specimen, dtype=torch.float32)
    x = specimen.points(4, flow.dim, torch.float32)
    fn, names = numbers(_one_step(flow))
    expected, said = fn(x), []
    for where in invariance.devices():
        fn, _ = numbers(_one_step(copy.deepcopy(flow).to(where)))
        said.append(invariance.on_device(fn, [x.to(where)], expected, names))
    return ", ".join(said)


@check("flow")
def default_dtype(specimen: Specimen) -> str:
    """What it computes, and in which precision, does not depend on torch's default dtype."""
    said = []
    for dtype in (torch.float32, torch.float64):
        flow = made(specimen, dtype=dtype)
        x = specimen.points(4, flow.dim, dtype)
        for by in (gridded(flow), flow):
            fn, names = numbers(by)

            def repeated(x: Tensor, fn: Function = fn) -> tuple[Tensor, ...]:
                with global_seed(0):  # of its own noise
                    return fn(x)

            said.append(invariance.ignores_default_dtype(repeated, [x], names))
    return f"{said[0]}, {said[-1]}"


@check("flow")
def save_load(specimen: Specimen) -> str:
    """Its weights, saved and loaded into another instance, make that one the same flow."""
    one, other = made(specimen, seed=0), made(specimen, seed=1)
    weights = {name: value.contiguous() for name, value in one.state_dict().items()}
    other.load_state_dict(safetensors.load(safetensors.save(weights)))
    x = specimen.points(8, one.dim)
    (fn, names), (fn_other, _) = numbers(gridded(one)), numbers(gridded(other))
    agree(fn_other(x), fn(x), 0.0, names, "after loading")
    return f"the same bits, from {len(weights)} tensors"


@check("flow")
def inference_mode(specimen: Specimen) -> str:
    """Under `no_grad` and `inference_mode` it computes what it computes when gradients are kept."""
    flow = gridded(made(specimen))
    x = specimen.points(8, flow.dim)
    expected = _everything(flow, x.requires_grad_())
    names = ("log_prob", "decode")[: len(expected)]
    with torch.no_grad():
        said = agree(_everything(flow, x.detach()), expected, ROUNDING, names, "under no_grad")
    with torch.inference_mode():
        inside = specimen.points(8, flow.dim)
        agree(_everything(flow, inside), expected, ROUNDING, names, "under inference_mode")
    return said


@check("flow")
def train_eval(specimen: Specimen) -> str:
    """In evaluation mode no call changes the flow: its tensors, its mode, or the next result."""
    flow = made(specimen)
    x, shifted = specimen.points(8, flow.dim), 2 * specimen.points(8, flow.dim, seed=1) + 1
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    buffers = {name: value.clone() for name, value in flow.named_buffers()}
    first = flow.log_prob(x, generator=specimen.generator()).detach()
    _everything(flow, shifted)
    again = flow.log_prob(x, generator=specimen.generator()).detach()
    require(not flow.training, "a call puts it into training mode")
    for name, value in {**flow.state_dict(), **dict(flow.named_buffers())}.items():
        kept = before.get(name, buffers.get(name))
        same = kept is not None and torch.equal(kept, value)
        require(same, f"a call in evaluation mode changes {name}")
    off_by(again, first, 0.0, "log_prob of a later call")
    return f"{len({**before, **buffers})} tensors as before"


def _does_not_matter(specimen: Specimen, what: Invariance) -> str:
    flow = made(specimen)
    x = specimen.points(9, flow.dim)
    fn, names = numbers(gridded(flow))
    said = what(fn, [x], ROUNDING, names)
    if not takes_numerics(flow):
        return said
    fn, names = numbers(flow.with_numerics(trace=Exact()))
    return f"{said}; own solver: {what(fn, [x], _OWN, names)}"


def _one_step(flow: Flow) -> Flow:
    return flow.with_numerics(RK4(1), Exact())


def _everything(flow: Flow, x: Tensor) -> tuple[Tensor, ...]:
    """Return log p and, where it has a latent space, decode(x), in the mode that is on."""
    found = (flow.log_prob(x), *([flow.decode(x)] if flow.latent else []))
    return tuple(y.detach() for y in found)
