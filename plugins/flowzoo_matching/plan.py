"""The exact transport plan of POT, drawn from with replacement, as TorchCFM does."""

from __future__ import annotations

import numpy as np
import ot
import torch
from torch import Tensor

from flowzoo.errors import Diverged
from flowzoo_matching.assignment import on_host
from flowzoo_matching.coupling import Coupling, Pairs

_PIVOTS = 10_000_000  # POT's usual 100 000 are too few from about 4000 points on


class PotPlan(Coupling):
    """n pairs drawn with replacement from POT's exact plan between the batch's data and noise.

    The plan of two batches of n points is a permutation over n, so the pairs are those of
    `exact-ot`, of which about 37 % are missing and others come twice or more. For comparisons with
    published results; needs the extra `ot`.

    References:
        POT: Python Optimal Transport (Flamary et al., JMLR 2021), https://pythonot.github.io;
        Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport
        (Tong et al., TMLR 2024), https://arxiv.org/abs/2302.00482
    """

    def pair(
        self,
        x: Tensor,
        z: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Pairs:
        """Return pairs as drawn.

        Raises:
            Diverged: A point is not finite, or POT found no optimum.
        """
        rows, columns, mass = plan(x, z)
        weights = torch.from_numpy(mass).to(x.device)
        drawn = torch.multinomial(weights, len(x), replacement=True, generator=generator)
        places = (torch.from_numpy(side).to(x.device)[drawn] for side in (rows, columns))
        return Pairs(*places)


def plan(x: Tensor, z: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, columns and masses, (m,) each, of the entries of the plan that are not 0.

    Raises:
        Diverged: A point is not finite, or POT found no optimum.
    """
    data, noise = on_host(x, z)
    cost = -2 * (data @ noise.T)
    cost += np.square(data).sum(1)[:, None] + np.square(noise).sum(1)
    even = np.full(len(cost), 1 / len(cost))
    found, log = ot.emd(even, even, cost, numItermax=_PIVOTS, log=True)
    if log["warning"] is not None:
        raise Diverged(f"POT found no optimal plan for {len(cost)} points: {log['warning']}")
    rows, columns = found.nonzero()
    return rows, columns, found[rows, columns]
