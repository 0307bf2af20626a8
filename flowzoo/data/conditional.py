"""A dataset with contexts: the mixture of which CP-Flow learns the density given the weights."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Generator, Tensor

from flowzoo.data.dataset import Data, Dataset, draw_splits
from flowzoo.data.synthetic import check_sizes
from flowzoo.data.validation import validate

_PLACE, _LOG_VARIANCE = 2.0, -1.0
_LOG_2PI = math.log(2 * math.pi)


class WeightedMixture(Dataset):
    r"""x ~ c N(2, 1/e) + (1 - c) N(-2, 1/e) on the line, given the context c ~ U(0, 1).

    The entropy is that of x given c: the lowest NLL of a flow that knows the context.

    Arguments:
        train: Number of training rows.
        val: Number of validation rows.
        test: Number of test rows.
        seed: Seed of the draws.

    Raises:
        UserError: A number is out of its range.

    References:
        Convex Potential Flows (Huang, Chen, Tsirigotis & Courville, ICLR 2021),
        https://arxiv.org/abs/2012.05942, and its code
    """

    name: ClassVar[str] = "weighted-mixture"

    def __init__(
        self, train: int = 50_000, val: int = 2_000, test: int = 10_000, seed: int = 0
    ) -> None:
        check_sizes(self.name, 1, train, val, test)
        self.train, self.val, self.test, self.seed = train, val, test, seed

    def sample(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw n fresh rows (n, 1) and their contexts (n, 1), float64 on the CPU."""
        context = torch.rand(n, 1, generator=generator, dtype=torch.float64)
        side = torch.rand(n, 1, generator=generator, dtype=torch.float64) < context
        noise = torch.randn(n, 1, generator=generator, dtype=torch.float64)
        return _PLACE * (2.0 * side - 1) + math.exp(0.5 * _LOG_VARIANCE) * noise, context

    def log_prob(self, x: Tensor, context: Tensor) -> Tensor:
        """Return log p(x | c) (n,), in nats, for x (n, 1) and contexts (n, 1) in [0, 1]."""
        return _joint(x, torch.logit(context)).logsumexp(-1)

    def load(self) -> Data:
        """Draw the three splits."""

        def draw(n: int, generator: Generator) -> Tensor:
            return torch.cat(self.sample(n, generator), 1)

        drawn = draw_splits(draw, (self.train, self.val, self.test), self.seed)
        (train, its), (val, vals), (test, tests) = (both.split(1, 1) for both in drawn)
        data = Data(
            self.name,
            train,
            val,
            test,
            entropy=_entropy(),
            log_prob=self.log_prob,
            notes="Two Gaussians at 2 and -2 of variance 1/e, the weight of the first the context.",
            title="mixture by weight",
            train_context=its,
            val_context=vals,
            test_context=tests,
        )
        return validate(data, self.name, minimum=2)


def _joint(x: Tensor, logit: Tensor) -> Tensor:
    """Return the logarithms of weight times density of both components, (..., 2)."""
    weight = torch.nn.functional.logsigmoid(torch.cat((logit, -logit), -1))
    place = x.new_tensor([_PLACE, -_PLACE])
    square = (x - place).square() * math.exp(-_LOG_VARIANCE)
    return weight - 0.5 * (square + _LOG_VARIANCE + _LOG_2PI)


@lru_cache
def _entropy(nodes: int = 200) -> float:
    """Return the mean of H(x | c) over c, in nats.

    H(x | c) = H(k | c) + H(x | k) - H(k | x, c) for the component k. The means of the first two are
    1/2 and that of a Gaussian. The third is a quadrature over x and the logit of c, in both of
    which the integrand is analytic and vanishes at infinity: the trapezoidal rule is exact to
    rounding.
    """
    x = torch.linspace(-9, 9, nodes, dtype=torch.float64)[:, None, None]
    logit = torch.linspace(-40, 40, nodes, dtype=torch.float64)[None, :, None]
    joint = _joint(x.expand(-1, nodes, -1), logit.expand(nodes, -1, -1))
    doubt = torch.special.entr(joint.softmax(-1)).sum(-1)
    slope = torch.sigmoid(logit[..., 0]) * torch.sigmoid(-logit[..., 0])  # dc / dlogit
    area = float(x[1] - x[0]) * float(logit[0, 1] - logit[0, 0])
    mean_doubt = float((joint.logsumexp(-1).exp() * slope * doubt).sum()) * area
    return 0.5 + 0.5 * (1 + _LOG_2PI + _LOG_VARIANCE) - mean_doubt
