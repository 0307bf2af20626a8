"""The flow `growing`: a chain with as many blocks in use as have been trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible
from flowzoo.flow import Chain, Flow
from flowzoo.integrators import FixedGrid
from flowzoo_jko_iflow.window import Window


class Growing(Chain):
    """A chain of which the first `depth` blocks are in use, from data to noise.

    All are in use until `jko` trains it, which begins with one and adds the others. What it learned
    beside the weights is saved with them: `depth`; `planned`, how many blocks the chain is to have
    (fewer than it holds, once training stopped early); `passes`, how often training went over
    them; the step size h of each block, and how far it moves the data, (E|T(x) - x|^2)^(1/2).

    Arguments:
        blocks: The flows, first the one next to the data. Of a continuous block a `Window` of the
            velocity is taken, so that the block can be split.

    References:
        Normalizing flow neural networks by JKO scheme (Xu, Cheng & Xie, NeurIPS 2023),
        https://arxiv.org/abs/2212.14424
    """

    counts: Tensor
    step_sizes: Tensor
    movements: Tensor
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {
            "blocks": {
                "repeat": 2,
                "of": {"name": "continuous", "velocity": {"name": "mlp", "hidden": [8]}},
            }
        },
    )

    def __init__(self, blocks: Sequence[Flow]) -> None:
        super().__init__(blocks)
        for block in self.held():
            if isinstance(block, Continuous) and not isinstance(block.velocity, Window):
                block.velocity = Window(block.velocity)  # of which `split` shows a part
        n = len(blocks)
        self.depth, self.planned, self.passes = n, n, 0
        self.register_buffer("counts", torch.tensor([n, n, 0]))
        self.register_buffer("step_sizes", torch.ones(n))
        self.register_buffer("movements", torch.zeros(n))
        self.register_load_state_dict_post_hook(_read)

    def flows(self) -> list[Flow]:
        """Return the blocks in use."""
        return self.held()[: self.depth]

    def held(self) -> list[Flow]:
        """Return all blocks, in use or not."""
        return list(self.blocks)  # pyright: ignore[reportReturnType]

    def in_use(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the blocks in use."""
        for block in self.flows():
            yield from block.parameters()

    def use(self, depth: int, planned: int | None = None, passes: int | None = None) -> None:
        """Take the first `depth` blocks into use; what is not said of the others stays."""
        self.depth = depth
        self.planned = self.planned if planned is None else planned
        self.passes = self.passes if passes is None else passes
        self.counts.copy_(torch.tensor([self.depth, self.planned, self.passes]))

    def recomputing(self) -> Growing:
        """Return this chain, weights shared, whose fixed grids keep no more than their steps.

        The memory of a gradient is then that of the places between the steps, and of one step.
        """
        other = copy.copy(self)
        blocks = nn.ModuleList(map(_recomputing, self.held()))
        other._modules = {**self._modules, "blocks": blocks}
        return other

    def require_equal_blocks(self, why: str) -> None:
        """Raise Incompatible where one block cannot take over the weights of another."""
        first, *others = map(_built, self.held())
        for k, found in enumerate(others, 2):
            if found != first:
                raise Incompatible(
                    f"{why} copies the weights of one block to another, but block {k} is built "
                    "differently from block 1: use blocks: {repeat: N, of: ...}"
                )

    def copy_block(self, source: int, target: int) -> None:
        """Give one block the weights of another, counted from 0."""
        self.blocks[target].load_state_dict(self.blocks[source].state_dict())

    def begin(self, step_sizes: Sequence[float]) -> None:
        """Take the first block into use, whole, of as many as there are step sizes."""
        for block in self.held():
            if isinstance(block, Continuous) and isinstance(block.velocity, Window):
                block.velocity.show(0, 1)
        self.step_sizes[: len(step_sizes)] = self.step_sizes.new_tensor(step_sizes)
        self.use(1, len(step_sizes), 0)

    def split(self, factor: int) -> None:
        """Split every block that is planned into `factor`, without changing the map.

        Block j becomes the blocks j c ... j c + c - 1, each a part of its way, with h / c and 1 / c
        of the movement.

        Raises:
            Incompatible: A block is no continuous flow, or the chain holds too few blocks.
        """
        old = self.planned
        self.require_splittable(old, factor)
        steps, moved = self.step_sizes[:old].clone(), self.movements[:old].clone()
        for j in reversed(range(old)):  # a block is overwritten after it was copied
            shown = self._window(j)
            part, parts = shown.part, shown.parts
            for i in reversed(range(factor)):
                target = j * factor + i
                if target != j:
                    self.copy_block(j, target)
                self._window(target).show(part * factor + i, parts * factor)
        self.step_sizes[: old * factor] = steps.repeat_interleave(factor) / factor
        self.movements[: old * factor] = moved.repeat_interleave(factor) / factor
        self.use(old * factor, old * factor)

    def require_splittable(self, blocks: int, factor: int) -> None:
        """Raise Incompatible where `blocks` blocks cannot be split into `factor` each."""
        for k, block in enumerate(self.held(), 1):
            if not isinstance(block, Continuous):
                raise Incompatible(
                    f"refinement splits the time of continuous blocks, and block {k} is a "
                    f"{type(block).__name__}"
                )
            if block.end_time != 1 or block.raw_end_time is not None:
                raise Incompatible(
                    f"refinement splits blocks over [0, 1]; block {k} has another end_time"
                )
        if blocks * factor > len(self.blocks):
            raise Incompatible(
                f"refinement of {blocks} blocks by {factor} needs {blocks * factor} blocks, and "
                f"the chain holds {len(self.blocks)}"
            )

    def _window(self, k: int) -> Window:
        return self.blocks[k].velocity  # pyright: ignore[reportReturnType]


def _read(flow: Growing, _: object) -> None:
    flow.depth, flow.planned, flow.passes = flow.counts.tolist()


def _built(block: nn.Module) -> tuple[list[tuple[str, type]], dict[str, torch.Size]]:
    """Return what a block is built of: the kinds of its parts, and the shapes of its weights."""
    kinds = [(name, type(part)) for name, part in block.named_modules()]
    return kinds, {name: value.shape for name, value in block.state_dict().items()}


def _recomputing(block: nn.Module) -> nn.Module:
    integrator = getattr(block, "integrator", None)
    if not isinstance(block, Continuous) or not isinstance(integrator, FixedGrid):
        return block
    other = copy.copy(block)
    other.integrator = copy.copy(integrator)
    other.integrator.recompute = True
    return other
