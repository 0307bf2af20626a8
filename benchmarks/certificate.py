"""Does the true number lie inside the printed interval? Seeded repetitions on data of known law.

Each repetition draws a new test set and judges a flow whose true KL to the data is known: in closed
form, by quadrature, or from a hundred times as many points. Counted is how often `kl` ± error holds
the true KL, and `nll` ± error the true entropy plus the true KL. The intervals are 99 %.

    python benchmarks/certificate.py --repetitions 100 --points 2000
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from scipy import integrate, stats
from tabulate import tabulate
from torch import Tensor, nn

from flowzoo.build import build
from flowzoo.continuous import Continuous
from flowzoo.data import Data
from flowzoo.data.heavy_tailed import StudentT
from flowzoo.data.oracles import GaussianOracle, MixtureOracle
from flowzoo.data.synthetic import Gaussian, Mixture
from flowzoo.data.toys import EightGaussians
from flowzoo.field import Velocity
from flowzoo.flow import Encoded, Flow
from flowzoo.integrators import RK4
from flowzoo.judge import evaluate
from flowzoo.judge.likelihood import KL, NLL, density_gap
from flowzoo.judge.subject import Subject
from flowzoo.objective import Batch
from flowzoo.recipes import load_recipes
from flowzoo.registry import Registry
from flowzoo.regularizers import RunningCost
from flowzoo.settings import Budget, Optimizer, Schedule, Training
from flowzoo.training import fit


class Known(Velocity):
    """A velocity in closed form, computed in float32 as a trained one would be."""

    def __init__(self, fn: Callable[[Tensor, Tensor], Tensor], dim: int) -> None:
        super().__init__()
        self.fn, self.dim, self.one = fn, dim, nn.Parameter(torch.ones(()))

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return v(t, x)."""
        return self.one * self.fn(t, x)


class Map(Flow):
    """The optimal map of a product of Student laws, without a trajectory."""

    def __init__(self, oracle: object, dim: int) -> None:
        super().__init__()
        self.oracle, self.dim = oracle, dim

    def encode(
        self,
        x: Tensor,
        running: Sequence[RunningCost] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """Return T(x), whose ladj is log p(x) - log N(T(x))."""
        z = self.oracle.transport(x)
        normal = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
        return Encoded(z, self.oracle.log_prob(x) - normal, x.new_zeros(len(x), 0))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the inverse of T."""
        return self.oracle.inverse_transport(z)


@dataclass(frozen=True)
class Case:
    """A flow whose KL to the data is known.

    Arguments:
        name: What it is.
        flow: The flow under judgement.
        data: The law of the test points, with its entropy.
        draw: Draws n test points.
        kl: The true KL(data || flow), in nats.
        tolerance: That of the judge's solver.
    """

    name: str
    flow: Flow
    data: Data
    draw: Callable[[int, torch.Generator], Tensor]
    kl: float
    tolerance: float = 1e-5


def gaussian(dim: int, condition: float, field: str, stretch: float) -> Case:
    """Return a Gaussian judged against the exact flow of another Gaussian."""
    source = Gaussian(dim, condition, mean=0.3, train=2, val=2, test=2)
    true = source.oracle
    other = GaussianOracle(true.mean + 0.1, true.basis, true.variances * stretch)
    shift = other.basis.mT @ (true.mean - other.mean)
    ratio = true.variances / other.variances
    kl = 0.5 * float((ratio + shift.square() / other.variances - 1 - ratio.log()).sum())
    flow = Continuous(Known(getattr(other, field), dim))
    name = f"Gaussian, d = {dim}, condition {condition:g}, {field.replace('_', ' ')}"
    return Case(name, flow, source.load(), source.sample, kl)


def mixture(tolerance: float) -> Case:
    """Return a mixture in the plane judged against the exact flow of a wider one."""
    source = Mixture(2, 5, radius=2.5, scale=0.4, train=2, val=2, test=2)
    true = source.oracle
    other = MixtureOracle(true.weights, true.means * 0.98, true.scale * 1.1)
    axis = torch.linspace(-7, 7, 2001, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_p, log_q = true.log_prob(grid), other.log_prob(grid)
    kl = float((log_p.exp() * (log_p - log_q)).sum()) * float(axis[1] - axis[0]) ** 2
    flow = Continuous(Known(other.matching_velocity, 2))
    name = f"mixture, d = 2, judge at {tolerance:g}"
    return Case(name, flow, source.load(), source.sample, kl, tolerance)


def heavy_tailed() -> Case:
    """Return a product of Student laws judged against the map of lighter tails."""
    source, other = StudentT(5, df=4.0, train=2, val=2, test=2), StudentT(5, df=6.0)
    p, q = stats.t(4.0), stats.t(6.0)
    kl, _ = integrate.quad(
        lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -math.inf, math.inf, epsabs=1e-12
    )
    flow = Map(other.oracle, 5)
    return Case("Student, d = 5, df 4 by df 6", flow, source.load(), source.sample, 5 * kl)


def trained(recipe: str, steps: int, points: int) -> Case:
    """Return eight Gaussians judged against a trained flow, whose KL is taken from many points."""
    source, found = EightGaussians(), load_recipes()[recipe]
    data = source.load()
    torch.manual_seed(0)
    flow = build("flow", found.flow, Registry.installed(), dim=2)
    objective = build("objective", found.objective, Registry.installed())
    training = Training(
        batch_size=512, optimizer=Optimizer(lr=0.02), schedule=Schedule(name="cosine")
    )
    fit(flow, objective, Batch(data.train), budget=Budget(steps=steps), training=training)
    many = source.sample(100 * points, torch.Generator().manual_seed(10**6))
    gap = density_gap(Subject(flow.eval(), replace(data, test=many), tolerance=1e-6))
    assert gap is not None
    return Case(f"8 Gaussians, trained {recipe}", flow, data, source.sample, float(gap.mean()))


def covered(case: Case, repetitions: int, points: int) -> list[str]:
    """Return a row of the table: how often each interval holds the truth, and how wide it is."""
    assert case.data.entropy is not None
    truth = {"kl": case.kl, "nll": case.data.entropy + case.kl}
    hits, widths, solver = {"kl": 0, "nll": 0}, {"kl": 0.0, "nll": 0.0}, 0.0
    for seed in range(repetitions):
        test = case.draw(points, torch.Generator().manual_seed(seed))
        data = replace(case.data, test=test)
        metrics = [NLL(), KL()]
        found = evaluate(case.flow, data, None, metrics, "cpu", seed, case.tolerance)
        for name, true in truth.items():
            error = found[name].error
            assert error is not None
            hits[name] += abs(found[name].value - true) <= error
            widths[name] += error / repetitions
        solver += found["kl"].parts["solver"] / repetitions
    counts = [f"{hits[name]} of {repetitions}, ± {widths[name]:.2g}" for name in truth]
    return [case.name, f"{case.kl:.4f}", *counts, f"{solver:.1e}"]


def coarse(points: int) -> list[str]:
    """Return by how much two RK4 steps flatter a trained OT-Flow, and what the certificate says."""
    case = trained("ot-flow", 300, 100)
    data = replace(case.data, test=case.draw(points, torch.Generator().manual_seed(0)))
    two_steps = case.flow.with_numerics(RK4(2))
    found = evaluate(two_steps, data, metrics=[NLL()])
    own, judge = found["nll-own"], found["nll"]
    assert own.error is not None
    assert judge.error is not None
    whole = Subject(two_steps, data).own(points)[1].log_prob
    difference = abs(-float(whole.mean()) - judge.value)
    verdict = "covers it" if difference <= own.parts["solver"] else "DOES NOT COVER IT"
    numbers = [f"{m.value:.4f} ± {m.error:.4f}" for m in (own, judge)]
    return [*numbers, f"{difference:.4f}", f"{own.parts['solver']:.4f}", verdict]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--points", type=int, default=2000, help="test points of a repetition")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    makers: dict[str, Callable[[], Case]] = {
        "gaussian 2": lambda: gaussian(2, 10.0, "velocity", 1.3),
        "gaussian 10": lambda: gaussian(10, 100.0, "matching_velocity", 1.1),
        "gaussian 50": lambda: gaussian(50, 1000.0, "velocity", 1.02),
        "mixture": lambda: mixture(1e-5),
        "mixture coarse": lambda: mixture(1e-2),
        "heavy": heavy_tailed,
        "trained matching": lambda: trained("flow-matching", 1500, args.points),
        "trained ot-flow": lambda: trained("ot-flow", 300, args.points),
    }
    chosen = [make for name, make in makers.items() if args.only in name]
    rows = [covered(make(), args.repetitions, args.points) for make in chosen]
    print(f"{args.points} test points in each repetition, 99 % intervals\n")
    head = ["data and flow", "true KL", "`kl` holds it", "`nll` holds H + KL", "solver's part"]
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True), "\n")
    if not args.only:
        head = ["two RK4 steps", "judge", "difference", "solver's part", "certificate"]
        print(tabulate([coarse(args.points)], head, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
