"""What should not change what a component computes: its batch, order, precision, device, defaults.

Pure functions, for the checks of any kind. A component is seen as a function of tensors, the rows
of which belong together, that returns a tuple of tensors (n, ...); `names` says what those are.
Every function returns what it measured in a clause, or raises `Failed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flowzoo.conformance.check import Failed, Skipped, off_by, require

Outputs: TypeAlias = tuple[Tensor, ...]
Function: TypeAlias = Callable[..., Outputs]

# What PyTorch says where a branch or a number needs a value, and a meta tensor has none.
_NO_VALUE = ("meta tensor", "meta device", "data-independent", "_local_scalar_dense", "Meta")
_ACROSS = ("copy", "index")  # operations that may have tensors on two devices


def agree(
    found: Outputs, expected: Outputs, allowed: float, names: Sequence[str], where: str = ""
) -> str:
    """Return by how much tensors are off, relative to 1 + |expected|, the worst of them.

    Arguments:
        found: What was computed.
        expected: What it should be.
        allowed: The largest deviation that passes.
        names: What they are, one for each.
        where: What follows the names in a sentence, as in `of a row alone`.

    Raises:
        Failed: One is off by more, or has another shape.
    """
    said = [
        off_by(a, b, allowed, f"{name} {where}".strip())
        for a, b, name in zip(found, expected, names, strict=True)
    ]
    if len(said) == 1:
        return said[0]
    whole, right = (
        torch.cat([y.detach().double().flatten() for y in ys]) for ys in (found, expected)
    )
    *first, last = names
    return off_by(whole, right, allowed, f"{', '.join(first)} and {last} {where}".strip())


def batch_independence(
    fn: Function, inputs: Sequence[Tensor], allowed: float, names: Sequence[str]
) -> str:
    """Return by how much three rows computed alone differ from the same rows in a batch.

    Arguments:
        fn: The component, of as many tensors as there are inputs.
        inputs: Tensors (n, ...), n at least 3.
        allowed: The largest deviation that passes: rounding, or the tolerance of a solver.
        names: What the outputs are.

    Raises:
        Failed: Rows depend on their batch by more.
    """
    n = len(inputs[0])
    rows = sorted({0, n // 2, n - 1})
    together = [y[rows] for y in fn(*inputs)]
    alone = [fn(*(x[i : i + 1] for x in inputs)) for i in rows]
    stacked = tuple(torch.cat(y) for y in zip(*alone, strict=True))
    return agree(stacked, tuple(together), allowed, names, "of a row alone")


def permutation(
    fn: Function, inputs: Sequence[Tensor], allowed: float, names: Sequence[str]
) -> str:
    """Return by how much permuted rows differ from the rows of what was not permuted.

    Arguments:
        fn: The component.
        inputs: Tensors (n, ...).
        allowed: The largest deviation that passes.
        names: What the outputs are.

    Raises:
        Failed: The order of the rows matters by more.
    """
    n = len(inputs[0])
    order = torch.arange(n - 1, -1, -1, device=inputs[0].device).roll(n // 3)
    straight = tuple(y[order] for y in fn(*inputs))
    permuted = fn(*(x[order] for x in inputs))
    return agree(permuted, straight, allowed, names, "of permuted rows")


def precision(
    single: Function,
    double: Function,
    inputs: Sequence[Tensor],
    allowed: float,
    names: Sequence[str],
) -> str:
    """Return by how much a component in float32 differs from the same in float64.

    Arguments:
        single: The component with float32 weights.
        double: A copy of it, its weights turned into float64.
        inputs: Tensors in float32.
        allowed: The largest deviation that passes.
        names: What the outputs are.

    Raises:
        Failed: They differ by more, or a dtype does not follow the input.
    """
    found = single(*inputs)
    expected = double(*(x.double() for x in inputs))
    has_dtype(found, torch.float32, names, "with float32 inputs and weights")
    has_dtype(expected, torch.float64, names, "with float64 inputs and weights")
    return agree(found, expected, allowed, names, "in float32")


def has_dtype(found: Outputs, dtype: torch.dtype, names: Sequence[str], where: str) -> None:
    """Raise Failed, saying where, unless all tensors have a dtype."""
    for y, name in zip(found, names, strict=True):
        require(y.dtype == dtype, f"{name} is {y.dtype} {where}, expected {dtype}")


def ignores_default_dtype(fn: Function, inputs: Sequence[Tensor], names: Sequence[str]) -> str:
    """Return that results are the same, bit for bit, whatever `torch.set_default_dtype` says.

    Arguments:
        fn: The component, with weights of the dtype of the inputs.
        inputs: Tensors (n, ...) of one floating-point dtype.
        names: What the outputs are.

    Raises:
        Failed: A dtype follows the default, or a value depends on it.
    """
    dtype = inputs[0].dtype
    other = torch.float64 if dtype == torch.float32 else torch.float32
    with default_dtype(dtype):
        expected = fn(*inputs)
    with default_dtype(other):
        try:
            found = fn(*inputs)
        except RuntimeError as error:
            raise Failed(f"{dtype} inputs fail under the default dtype {other}: {error}") from error
    has_dtype(found, dtype, names, f"under the default dtype {other}")
    agree(found, expected, 0.0, names, f"under the default dtype {other}")
    return f"{dtype} is the same under the default dtype {other}"


def on_device(
    fn: Function, inputs: Sequence[Tensor], expected: Outputs, names: Sequence[str]
) -> str:
    """Return that results are on the device of the inputs; the meta device has shapes alone.

    Arguments:
        fn: The component, on the device of the inputs.
        inputs: Tensors on another device than the CPU.
        expected: What the CPU gave.
        names: What the outputs are.

    Raises:
        Failed: Something stays on the CPU, or shapes or dtypes differ.
        Skipped: On the meta device, a value decides what is computed.
    """
    device = inputs[0].device
    try:
        with _OneDevice():
            found = fn(*inputs)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        if device.type == "meta" and any(text in reason for text in _NO_VALUE):
            said = "values decide what is computed, and the meta device has none"
            raise Skipped(f"{said}: {reason}") from error
        raise Failed(f"it does not run on the device {device}: {reason}") from error
    for y, cpu, name in zip(found, expected, names, strict=True):
        require(y.device.type == device.type, f"{name} is on {y.device}, its inputs on {device}")
        require(y.shape == cpu.shape, f"{name} is {tuple(y.shape)} on {device}, not {cpu.shape}")
        require(y.dtype == cpu.dtype, f"{name} is {y.dtype} on {device}, {cpu.dtype} on the CPU")
    return f"runs on {device.type}"


class _OneDevice(TorchDispatchMode):
    """Fails operations on tensors of two devices; the meta device lets matrix products pass.

    As on an accelerator, numbers () may come from the CPU, and so may indices and what is copied.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if not any(text in name for text in _ACROSS):
            found = {y.device.type for y in _tensors((args, kwargs or {})) if y.dim()}
            where = " and ".join(sorted(found))
            require(len(found) < 2, f"{name} meets tensors on {where}: one was left behind")
        return func(*args, **(kwargs or {}))


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))
    elif isinstance(tree, list | tuple):
        for branch in tree:
            yield from _tensors(branch)


def devices() -> list[torch.device]:
    """Return the devices to try: meta always, and CUDA where there is one."""
    found = [torch.device("meta")]
    return [*found, torch.device("cuda", 0)] if torch.cuda.is_available() else found


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set PyTorch's default dtype inside, and put it back."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed PyTorch's global generator inside, and put it back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def untouched(tensors: Sequence[Tensor], what: str) -> Iterator[None]:
    """Raise Failed where tensors are changed inside."""
    kept = [y.detach().clone() for y in tensors]
    yield
    same = all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(tensors, kept, strict=True)
    )
    require(same, f"{what} is changed in place")
