"""The objective `jko`: a chain trained block by block, each a proximal step towards the noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowzoo.errors import Incompatible, UserError
from flowzoo.flow import Flow
from flowzoo.objective import Batch, Costs, Left, Loss, Objective, Stage
from flowzoo.regularizers import Regularizer
from flowzoo_jko_iflow.growing import Growing
from flowzoo_jko_iflow.joint import FineTuning, joint_stage
from flowzoo_jko_iflow.push import Pushed, facts, push
from flowzoo_jko_iflow.steps import Refinement, Reparametrisation, Steps, reparametrised
from flowzoo_jko_iflow.stopping import Stopping


@dataclass(frozen=True)
class _Pass:
    """One pass over the blocks: `number` 0 trains them first, the others train them again."""

    number: int
    name: str
    splits: bool = False


class JKO(Objective):
    r"""Block k minimises E[|T(x)|^2 / 2 - log|det dT/dx| + |x - T(x)|^2 / (2 h_k)] over p_{k-1}.

    That is KL(T_# p_{k-1} || N(0, I)) + W2^2(p_{k-1}, T_# p_{k-1}) / (2 h_k), up to a constant. The
    blocks before block k are never called in its training: its points were pushed through them
    once. Every block is integrated over [0, 1]; h_k is a weight of the training and nothing else.
    The terms of the loss are `potential`, `divergence` and `movement`, unweighted but for 1 / 2 and
    1 / (2 h_k).

    A block is validated by its own loss, whatever the criterion: the likelihood would choose
    weights that are no JKO step. All blocks get equal parts of the budget. Each leaves, in the
    record of its stage: `block`, `h`, `nll` after it, `kl_decrease`, `movement`, `ratio`,
    `round_trip`, `push_nfe` and `push_seconds`, measured on held-out points where there are some,
    by the flow's own solver and trace (`movement` on training points).

    Arguments:
        steps: The step sizes h.
        regularizers: Further costs of each block, each with its own weight.
        warm_start: True starts each block from the weights of the one before.
        diffusion: The points of the first block are noised by the variance-preserving diffusion
            (beta from 0.1 to 20) for this time, each time anew; the published code takes 0.001,
            which is noise of deviation 0.01.
        stop: When no more blocks are added; None uses them all.
        reparametrise: Rounds of training with step sizes that even out the movements.
        refine: Rounds of splitting every block, and training the parts.
        fine_tune: A last stage that trains all blocks together.
        chunk: How many points are pushed at once.

    Raises:
        UserError: A number is out of its range.
        Incompatible: A regularizer asks more than a block, or a free block is to be split.

    References:
        Normalizing flow neural networks by JKO scheme (Xu, Cheng & Xie, NeurIPS 2023),
        https://arxiv.org/abs/2212.14424, equation (8) and algorithm 1
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"stop": {"ratio": 0.01}, "fine_tune": {"share": 0.5}},
        {"refine": {"factor": 2}, "regularizers": ["transport"]},
        {"reparametrise": {"rounds": 1}, "steps": {"free_last": True}, "diffusion": 0.001},
    )

    def __init__(
        self,
        steps: Steps | None = None,
        regularizers: Sequence[Regularizer] = (),
        warm_start: bool = True,
        diffusion: float = 0.0,
        stop: Stopping | None = None,
        reparametrise: Reparametrisation | None = None,
        refine: Refinement | None = None,
        fine_tune: FineTuning | None = None,
        chunk: int = 8192,
    ) -> None:
        if not 0 <= diffusion < 1:
            raise UserError(f"jko: diffusion must lie in [0, 1), got {diffusion}")
        if chunk < 1:
            raise UserError(f"jko: chunk must be at least 1, got {chunk}")
        self.steps = Steps() if steps is None else steps
        self.costs = Costs("jko", regularizers)
        if self.costs.asking:
            raise Incompatible(
                f"{type(self.costs.asking[0]).__name__} asks a whole flow, one that ends in noise, "
                "which no block is: give it to the objective likelihood"
            )
        if refine and self.steps.free_last:
            raise Incompatible(
                "refine splits every block, and the first part of a free one would go all the way: "
                "leave out steps.free_last, or refine"
            )
        self.warm_start, self.diffusion, self.chunk = warm_start, diffusion, chunk
        self.stop, self.reparametrise = stop, reparametrise
        self.refine, self.fine_tune = refine, fine_tune

    def stages(self, flow: Flow) -> Iterator[Stage]:
        """Yield one stage per block and pass, then that of fine-tuning.

        Raises:
            Incompatible: The flow is no growing chain, or its blocks cannot be warm-started or
                split as asked.
        """
        chain = self._growing(flow)
        blocks = len(chain.held()) // (self.refine.blocks if self.refine else 1)
        stages = 0
        for one in self._passes():
            blocks *= self.refine.factor if one.splits and self.refine else 1
            for k in range(blocks):
                yield self._stage(chain, k, one)
            stages += blocks
        if self.fine_tune:
            yield joint_stage(chain, self.fine_tune, self.costs, self.chunk, stages)

    def _growing(self, flow: Flow) -> Growing:
        if not isinstance(flow, Growing):
            raise Incompatible(
                f"jko trains a chain that grows block by block, and {type(flow).__name__} does "
                "not: use flow: {name: growing, blocks: {repeat: N, of: ...}}"
            )
        self.costs.requires(flow)
        held = len(flow.held())
        if self.refine:
            if held % self.refine.blocks:
                raise Incompatible(
                    f"refine makes {self.refine.blocks} blocks of one, and the chain's {held} are "
                    f"no multiple of that: use, say, repeat: {2 * self.refine.blocks}"
                )
            flow.require_splittable(held // self.refine.factor, self.refine.factor)
        if held > 1 and (self.warm_start or self.refine):
            flow.require_equal_blocks("refine" if self.refine else "warm_start: true")
        return flow

    def _passes(self) -> Iterator[_Pass]:
        yield _Pass(0, "")
        rounds = self.reparametrise.rounds if self.reparametrise else 0
        for r in range(1, rounds + 1):
            yield _Pass(r, f", reparametrised {r}")
        for r in range(1, self.refine.rounds + 1 if self.refine else 1):
            yield _Pass(rounds + r, f", refined {r}", splits=True)

    def _stage(self, chain: Growing, k: int, one: _Pass) -> Stage:
        return Stage(
            f"block {k + 1}{one.name}",
            list(chain.held()[k].parameters()),
            lambda batch, noise: self.loss(chain, k, batch, noise),
            points=partial(self._pushed, chain, k),
            begin=lambda _: self._begin(chain, k, one),
            end=lambda train, held: self._end(chain, k, one, train, held),
            needed=lambda: self._needed(chain, k, one),
            criterion="loss",
        )

    # --- the loss --------------------------------------------------------------------------------

    def loss(
        self, chain: Growing, k: int, batch: Batch, generator: torch.Generator | None = None
    ) -> Loss:
        """Return the loss of block k, counted from 0, on points that the blocks before it moved."""
        block, x = chain.held()[k], batch.x
        context = batch.context if block.context_dim else None
        if self.diffusion and not k:
            x = diffused(x, self.diffusion, generator)
        encoded = self.costs.encode(block, x, context, generator)
        potential = 0.5 * encoded.z.square().sum(-1).mean()
        divergence = -encoded.ladj.mean()
        movement = (encoded.z - x).square().sum(-1).mean() / (2 * chain.step_sizes[k])
        terms = {
            "potential": potential.detach(),
            "divergence": divergence.detach(),
            "movement": movement.detach(),
        }
        total = self.costs.added(
            potential + divergence + movement, terms, encoded.costs, x, encoded.z
        )
        return Loss(total, terms, encoded.nfe)

    # --- what happens around it ------------------------------------------------------------------

    def _needed(self, chain: Growing, k: int, one: _Pass) -> bool:
        if k:  # with the first block, a pass is left out altogether
            return k < chain.planned and chain.passes == one.number + 1
        if one.number == 0 or one.splits:
            return True
        assert self.reparametrise is not None
        return not self.reparametrise.is_even(*self._kept(chain))

    def _begin(self, chain: Growing, k: int, one: _Pass) -> None:
        """Take the block into use, with its step size and its first weights."""
        if k and one.number == 0:
            if self.warm_start:
                chain.copy_block(k - 1, k)
            chain.use(k + 1)
        elif k == 0:
            if one.number == 0:
                whole = self.refine.blocks if self.refine else 1
                chain.begin(self.steps.sizes(len(chain.held()) // whole))
            elif one.splits and self.refine:
                chain.split(self.refine.factor)
            else:
                self._reparametrise(chain)
            chain.use(chain.depth, passes=one.number + 1)

    def _reparametrise(self, chain: Growing) -> None:
        assert self.reparametrise is not None
        steps, moved = self._kept(chain)
        chain.use(len(steps), len(steps))
        new = reparametrised(steps, moved, self.reparametrise.eta, self.reparametrise.largest)
        chain.step_sizes[: len(new)] = chain.step_sizes.new_tensor(new)

    def _kept(self, chain: Growing) -> tuple[list[float], list[float]]:
        """Return step sizes and movements of the blocks that a round of reparametrisation keeps."""
        assert self.reparametrise is not None
        moved = chain.movements[: chain.planned].tolist()
        kept = self.reparametrise.kept(moved)
        return chain.step_sizes[:kept].tolist(), moved[:kept]

    def _pushed(self, chain: Growing, k: int, data: Batch) -> Pushed:
        """Return the points as the blocks before block k leave them."""
        points = Pushed.of(data)
        for j, block in enumerate(chain.held()[:k]):
            push(block, points, self.chunk, seed=j)
        return points

    def _end(self, chain: Growing, k: int, one: _Pass, train: Batch, held: Batch | None) -> Left:
        """Push the points through the block, measure it, and decide whether it is the last."""
        assert isinstance(train, Pushed)
        block = chain.held()[k]
        on_train = push(block, train, self.chunk, seed=k)
        on_held = push(block, held, self.chunk, seed=k) if isinstance(held, Pushed) else None
        chain.movements[k] = on_train.movement
        h = float(chain.step_sizes[k])
        found = {"block": k + 1, "h": h if math.isfinite(h) else None, **facts(on_train, on_held)}
        if one.number == 0 and self.stop:
            decrease = (on_held or on_train).kl_decrease
            if why := self.stop.reason(found["ratio"], decrease):
                chain.use(k + 1, k + 1)
                found["enough_blocks"] = why
        if k + 1 >= chain.planned:  # the next stage, if there is one, begins with the data again
            return Left(facts=found)
        return Left(train, held, found)


def diffused(x: Tensor, time: float, generator: torch.Generator | None) -> Tensor:
    """Return points after so much time of the variance-preserving diffusion, beta from 0.1 to 20.

    Arguments:
        x: Points (n, d).
        time: The time, in [0, 1).
        generator: Source of randomness.
    """
    spent = 0.1 * time + 0.5 * 19.9 * time**2
    noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    return math.exp(-0.5 * spent) * x + math.sqrt(-math.expm1(-spent)) * noise
