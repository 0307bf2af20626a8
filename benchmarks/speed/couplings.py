"""Time couplings, and how far their pairs are from the straightest ones.

Data are N(1, diag(s^2)), s from 0.5 to 1.5, and noise is N(0, I). The first tables have, for each
dimension and batch, the time of a pairing and the mean squared distance of its pairs, relative to
the least that a permutation of the batch has. flowzoo's times include all that a training step
pays. The peer's do not include the matrix of costs, whose time has a row of its own:

  pot emd               POT's network simplex, which gives a plan
  pot emd, drawn        the same, and n pairs drawn from the plan as TorchCFM does
  pot bsp               POT's BSP-OT permutation of 16 plans, where POT has it
  scipy                 linear_sum_assignment of the costs as they are

The last table has what is left of the bias of a batch: the mean squared distance of the pairs over
that of the two laws' optimal map, which no coupling with these marginals can go below.

    python benchmarks/speed/couplings.py
    python benchmarks/speed/couplings.py --dims 2 --batches 256 1024 --repeat 25
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import ot
import torch
from machine import Job, Machine, options, show, started
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from flowzoo_matching.assignment import ExactOT
from flowzoo_matching.coupling import Coupling, Independent, Pairs
from flowzoo_matching.plan import PotPlan
from flowzoo_matching.sinkhorn import Sinkhorn
from flowzoo_matching.sliced import NearOT, Sorted

COUPLINGS: dict[str, Coupling] = {
    "exact-ot": ExactOT(),
    "near-ot": NearOT(),
    "sorted": Sorted(),
    "sinkhorn": Sinkhorn(),
    "pot-plan": PotPlan(),
    "independent": Independent(),
}
MATRIX, PEER = "cost matrix", "pot emd, drawn"


def batch(dim: int, n: int, machine: Machine) -> tuple[Tensor, Tensor]:
    """Draw data and noise (n, d)."""
    return 1 + machine.normal(n, dim) * scales(dim, machine), machine.normal(n, dim)


def scales(dim: int, machine: Machine) -> Tensor:
    """Return the standard deviations (d,) of the data."""
    return torch.linspace(0.5, 1.5, dim, dtype=machine.dtype, device=machine.device)


def least(dim: int, machine: Machine) -> float:
    """Return the squared distance W2^2 of the two laws, |1|^2 + |s - 1|^2."""
    return dim + float((scales(dim, machine) - 1).square().sum())


def squared(x: Tensor, z: Tensor) -> np.ndarray:
    """Return the matrix of costs (n, n) on the host, as TorchCFM does."""
    return torch.cdist(x, z).square().cpu().double().numpy()


def cost(pairs: Pairs, x: Tensor, z: Tensor) -> float:
    """Return the mean squared distance of pairs."""
    return float((pairs.of_data(x) - pairs.of_noise(z)).double().square().sum(-1).mean())


def emd(costs: np.ndarray) -> np.ndarray:
    """Return POT's plan (n, n)."""
    even = np.full(len(costs), 1 / len(costs))
    return ot.emd(even, even, costs)


def drawn(costs: np.ndarray) -> Pairs:
    """Return pairs drawn from POT's plan with numpy's generator, as TorchCFM does."""
    p = emd(costs).ravel()
    n = len(costs)
    picked = np.random.choice(n * n, p=p / p.sum(), size=n, replace=True)  # noqa: NPY002 (theirs)
    return Pairs(*(torch.from_numpy(side) for side in np.divmod(picked, n)))


def bsp(x: Tensor, z: Tensor) -> Pairs:
    """Return the permutation of POT's BSP-OT, merged of 16 plans."""
    sides = [np.ascontiguousarray(side.cpu().double().numpy()) for side in (x, z)]
    _, found, _ = ot.compute_bspot_bijection(*sides, n_plans=16)
    return Pairs(noise=torch.from_numpy(found).long())


def assigned(costs: np.ndarray) -> Pairs:
    """Return scipy's permutation."""
    return Pairs(noise=torch.from_numpy(linear_sum_assignment(costs)[1]))


def jobs(x: Tensor, z: Tensor) -> dict[str, Job]:
    """Return what is timed: each gives pairs, but for the matrix and the plan."""
    ours = {name: partial(each.pair, x, z) for name, each in COUPLINGS.items()}
    costs = squared(x, z)
    peers: dict[str, Job] = {
        MATRIX: partial(squared, x, z),
        "pot emd": partial(emd, costs),
        PEER: partial(drawn, costs),
        "scipy": partial(assigned, costs),
    }
    if hasattr(ot, "compute_bspot_bijection"):
        peers["pot bsp"] = partial(bsp, x, z)
    return ours | peers


def time_table(dim: int, n: int, machine: Machine, args: argparse.Namespace) -> None:
    """Print times and costs of pairings of one batch, and of others as many as are repeated."""
    batches = [batch(dim, n, machine) for _ in range(args.batches_each)]
    taken: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    for x, z in batches:
        best = cost(assigned(squared(x, z)), x.cpu(), z.cpu())
        for name, found in machine.compare(jobs(x, z), args.repeat, args.patience).items():
            taken.setdefault(name, []).append(found.ms)
            if isinstance(found.first, Pairs):
                ratios.setdefault(name, []).append(cost(found.first, x, z) / best)
    ms = {name: float(np.median(times)) for name, times in taken.items()}
    rows = [
        [name, f"{each:.2f}", f"{each / ms[PEER]:.2f}", *over(name, ratios)]
        for name, each in ms.items()
    ]
    title = f"a pairing, d = {dim}, batch {n}: median of {len(batches)} batches"
    show(title, ["coupling", "ms", f"to {PEER}", "cost / least", "worst"], rows)


def over(name: str, ratios: Mapping[str, Sequence[float]]) -> list[str]:
    """Return mean and maximum of the ratios of costs, in words."""
    found = ratios.get(name)
    return [f"{np.mean(found):.3f}", f"{max(found):.3f}"] if found else ["", ""]


def bias_table(machine: Machine, args: argparse.Namespace) -> None:
    """Print the cost of pairs from batches relative to that of the optimal map."""
    rows = []
    for dim in args.dims:
        for n in args.batches:
            sums = dict.fromkeys(COUPLINGS, 0.0)
            draws = max(1, args.points // n)
            for _ in range(draws):
                x, z = batch(dim, n, machine)
                for name, each in COUPLINGS.items():
                    sums[name] += cost(each.pair(x, z), x, z) / draws
            rows.append([dim, n, *(f"{sums[k] / least(dim, machine):.2f}" for k in COUPLINGS)])
    title = f"mean squared distance of the pairs over W2^2, about {args.points} points each"
    show(title, ["d", "batch", *COUPLINGS], rows)


def main() -> None:
    """Print the tables."""
    parser = options(__doc__)
    parser.set_defaults(repeat=5, patience=2.0)  # these jobs take milliseconds
    parser.add_argument("--dims", type=int, nargs="*", default=[2, 8, 32, 128])
    parser.add_argument("--batches", type=int, nargs="*", default=[64, 256, 1024])
    parser.add_argument("--batches-each", type=int, default=8, help="batches behind each time")
    parser.add_argument("--points", type=int, default=8192, help="points behind each bias")
    args = parser.parse_args()
    machine = started(args)
    for dim in args.dims:
        for n in args.batches:
            time_table(dim, n, machine, args)
    bias_table(machine, args)


if __name__ == "__main__":
    main()
