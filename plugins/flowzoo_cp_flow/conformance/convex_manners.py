"""What does not change a convex potential: its batch, precision, device, mode and storage."""

from __future__ import annotations

import copy

import torch

from flowzoo.conformance.check import Skipped, check, require
from flowzoo.conformance.probes import invariance
from flowzoo.conformance.specimen import Specimen
from flowzoo_cp_flow.conformance.convex_made import NAMES, ROUNDING, made, numbers, places

_SINGLE = 1e-4  # what second derivatives in float32 may be off by


@check("convex")
def shapes(specimen: Specimen) -> str:
    """F is (n,), its gradient (n, d) and its Hessian (n, d, d), finite, of the inputs' dtype."""
    for dtype in (torch.float64, torch.float32):
        potential = made(specimen, dtype=dtype)
        inputs, d = places(specimen, potential, 5, dtype), potential.dim
        with invariance.untouched(inputs, "an input"), torch.no_grad():
            point = potential.at(*inputs)
            found = {
                "F": (potential(*inputs), (5,)),
                "at's F": (point.value, (5,)),
                "the gradient": (point.gradient, (5, d)),
                "H": (point.hessian.dense(), (5, d, d)),
            }
        for name, (y, shape) in found.items():
            require(tuple(y.shape) == shape, f"{name} has shape {tuple(y.shape)}, expected {shape}")
            require(y.dtype == dtype, f"{name} is {y.dtype} for {dtype} inputs")
            require(bool(y.isfinite().all()), f"{name} is not finite")
    return "as documented, in float64 and float32"


@check("convex")
def sizes(specimen: Specimen) -> str:
    """No point, one point, and R^1 are computed."""
    for dim in (None, 1):
        try:
            potential = made(specimen, dim)
        except Skipped:
            continue  # its dimension is fixed, and not 1
        fn = numbers(potential)
        three = fn(*places(specimen, potential, 3))
        for n in (0, 1):
            found = fn(*places(specimen, potential, n))
            for y, like, name in zip(found, three, NAMES, strict=True):
                expected = (n, *like.shape[1:])
                require(y.shape == expected, f"{name} is {tuple(y.shape)}, expected {expected}")
    return "shapes are kept"


@check("convex")
def repeatable(specimen: Specimen) -> str:
    """Two calls agree bit for bit and leave the state alone, also in training mode."""
    potential = made(specimen).train()
    fn, inputs = numbers(potential), places(specimen, potential)
    with invariance.untouched(list(potential.state_dict().values()), "a weight"):
        with invariance.global_seed(1):
            first = fn(*inputs)
        with invariance.global_seed(2):
            second = fn(*inputs)
    return invariance.agree(second, first, 0.0, NAMES, "again")


@check("convex")
def modes(specimen: Specimen) -> str:
    """Without gradients it computes what it computes with them, and records nothing."""
    potential = made(specimen)
    fn, inputs = numbers(potential), places(specimen, potential)
    expected = fn(*inputs)
    with torch.no_grad():
        found = fn(*inputs)
    recording = [name for y, name in zip(found, NAMES, strict=True) if y.requires_grad]
    require(not recording, f"{' and '.join(recording)} record a graph under no_grad")
    said = invariance.agree(found, expected, ROUNDING, NAMES, "under no_grad")
    found = numbers(potential.train())(*inputs)
    invariance.agree(found, expected, 0.0, NAMES, "in training mode")
    return said


@check("convex")
def batch_independence(specimen: Specimen) -> str:
    """What is computed at a point does not depend on the other points."""
    potential = made(specimen)
    inputs = places(specimen, potential)
    return invariance.batch_independence(numbers(potential), inputs, ROUNDING, NAMES)


@check("convex")
def permutation(specimen: Specimen) -> str:
    """Permuted points have permuted values."""
    potential = made(specimen)
    inputs = places(specimen, potential)
    return invariance.permutation(numbers(potential), inputs, ROUNDING, NAMES)


@check("convex")
def precision(specimen: Specimen) -> str:
    """In float32 it gives float32, and what the same weights give in float64."""
    single = made(specimen, dtype=torch.float32)
    double = copy.deepcopy(single).double()
    inputs = places(specimen, single, dtype=torch.float32)
    return invariance.precision(numbers(single), numbers(double), inputs, _SINGLE, NAMES)


@check("convex")
def default_dtype(specimen: Specimen) -> str:
    """What it computes does not depend on the default dtype."""
    said = []
    for dtype in (torch.float64, torch.float32):
        potential = made(specimen, dtype=dtype)
        inputs = places(specimen, potential, dtype=dtype)
        said.append(invariance.ignores_default_dtype(numbers(potential), inputs, NAMES))
    return "; ".join(said)


@check("convex")
def device(specimen: Specimen) -> str:
    """It computes on the device of its weights and inputs."""
    potential, said = made(specimen), []
    inputs = places(specimen, potential)
    expected = numbers(potential)(*inputs)
    for where in invariance.devices():
        fn = numbers(copy.deepcopy(potential).to(where))
        said.append(invariance.on_device(fn, [y.to(where) for y in inputs], expected, NAMES))
    return ", ".join(said)


@check("convex")
def save_load(specimen: Specimen) -> str:
    """Its weights, loaded into an instance of another seed, make that one compute the same."""
    one, other = made(specimen, seed=0), made(specimen, seed=1)
    other.load_state_dict(one.state_dict())
    inputs = places(specimen, one)
    found = numbers(other)(*inputs)
    return invariance.agree(found, numbers(one)(*inputs), 0.0, NAMES, "after loading")
