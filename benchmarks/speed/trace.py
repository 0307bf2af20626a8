"""Time divergences, and the estimates that stand in for them.

The first table has the exact divergence of a network without a closed form, forward alone and with
the gradient of a loss on it: the loop over dimensions of FFJORD's official code, torch's batched
vector-Jacobian products, forward mode, and flowzoo's `exact`, which chooses between these.

The others compare what OT-Flow may use for one potential, as drawn, two layers of width m:

  closed form            the exact trace, along with the velocity
  automatic              the exact trace, all rows of the Jacobian of the closed-form velocity by
                         automatic differentiation; left out above --dense dimensions
  k probes               Hutchinson's estimate with k probes, products by automatic differentiation
                         of the closed-form velocity
  1 probe, closed form   the same with the product in closed form, one for each probe
  hutch++ k              Hutch++ with k products by automatic differentiation

Cost is that of velocity and trace at once, without gradients and with those of a loss on both, in
units of one probe by automatic differentiation. Error is the root mean square of the difference to
the exact trace over that of the trace, over all points and draws. More probes than dimensions are
not drawn: d products give the exact trace.

    python benchmarks/speed/trace.py
    python benchmarks/speed/trace.py --dims --points 43 784 --width 256
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from machine import Job, Machine, agree, options, show, started
from torch import Tensor, nn

from flowzoo.field import Gradient, Point, Velocity
from flowzoo.traces import Exact, Hutchinson, HutchPlusPlus, TraceEstimator
from flowzoo_ot_flow.potential import ResNetPotential

Divergence = Callable[[Velocity, Tensor], Tensor]

UNIT, CLOSED = "1 probe", "closed form"
CLAIM = 63  # the dimension up to which the closed form is to cost 3 probes at most
ESTIMATORS: dict[str, TraceEstimator] = {
    UNIT: Hutchinson(samples=1),
    "3 probes": Hutchinson(samples=3),
    "10 probes": Hutchinson(samples=10),
    "hutch++ 3": HutchPlusPlus(samples=3),
    "hutch++ 10": HutchPlusPlus(samples=10),
}


class Softplus(Velocity):
    """A network with two hidden layers.

    Arguments:
        dim: Dimension d.
        width: Width of both layers.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.dim = dim
        layers = [nn.Linear(dim, width), nn.Softplus(), nn.Linear(width, width), nn.Softplus()]
        self.net = nn.Sequential(*layers, nn.Linear(width, dim))

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return v(x)."""
        return self.net(x)


def loop(v: Velocity, x: Tensor) -> Tensor:
    """One backward pass per dimension, always with a graph of the graph."""
    with torch.enable_grad():
        x = x.requires_grad_()
        out = v(x.new_zeros(()), x)
        rows = [
            torch.autograd.grad(out[:, i].sum(), x, create_graph=True)[0][:, i]
            for i in range(x.shape[1])
        ]
    return torch.stack(rows).sum(0)


def batched(v: Velocity, x: Tensor) -> Tensor:
    """Vector-Jacobian products, batched by torch."""
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x.requires_grad_()
        out = v(x.new_zeros(()), x)
    basis = torch.eye(x.shape[1]).to(x)[:, None, :].expand(-1, len(x), -1)
    (rows,) = torch.autograd.grad(out, x, basis, create_graph=create, is_grads_batched=True)
    return rows.diagonal(dim1=0, dim2=2).sum(-1)


def forward_mode(v: Velocity, x: Tensor) -> Tensor:
    """Jacobian-vector products, batched by torch."""
    t = x.new_zeros(())

    def column(e: Tensor) -> Tensor:
        return torch.func.jvp(lambda y: v(t, y), (x,), (e.expand_as(x),))[1]

    columns = torch.func.vmap(column)(torch.eye(x.shape[1]).to(x))
    return columns.diagonal(dim1=0, dim2=2).sum(-1)


def ours(v: Velocity, x: Tensor) -> Tensor:
    """The `exact` trace of the velocity's point."""
    return Exact()(v.with_divergence(x.new_zeros(()), x).jacobian, None)


METHODS: dict[str, Divergence] = {
    "loop": loop,
    "batched": batched,
    "forward mode": forward_mode,
    "flowzoo": ours,
}


def network_table(machine: Machine, args: argparse.Namespace) -> None:
    """Print the times of the exact divergence of a network, and their ratio to the loop's."""
    table = []
    for dim in args.dims:
        v = Softplus(dim, args.hidden).to(machine.device, machine.dtype)
        x = machine.normal(args.rows, dim)
        for train in (False, True):

            def job(method: Divergence, train: bool = train, v: Velocity = v, x: Tensor = x) -> Job:
                return lambda: run(lambda: method(v, x.detach()), v, train)

            jobs = {name: job(method) for name, method in METHODS.items()}
            timed = machine.compare(jobs, args.repeat, args.patience)
            for name, found in timed.items():
                agree([found.first], [timed["loop"].first], f"{name}, d={dim}")
            slow = timed["loop"].ms
            cells = [f"{found.ms:.1f} ({slow / found.ms:.1f}x)" for found in timed.values()]
            table.append([dim, "forward + backward" if train else "forward", *cells])
    title = f"exact divergence, layers of {args.hidden}, {args.rows} points: ms (speed-up)"
    show(title, ["d", "pass", *METHODS], table)


def run(side: Callable[[], Tensor], v: Velocity, train: bool) -> Tensor:
    """Return what a side gives, after a backward pass where that is asked for."""
    with torch.set_grad_enabled(train):
        found = side()
        if train:
            v.zero_grad(set_to_none=True)
            found.square().mean().backward()
    return found.detach()


def field_jobs(
    field: Gradient, x: Tensor, dense: bool, train: bool
) -> dict[str, Callable[[], Tensor]]:
    """Return what is compared: each gives velocity and trace, side by side as (n, d + 1)."""
    t, probes = x.new_tensor(0.3), {name: e.probes(x) for name, e in ESTIMATORS.items()}

    def both(at: Point, trace: Tensor) -> Tensor:
        return torch.cat([at.v, trace[:, None]], 1)

    def closed() -> Tensor:
        at = field.with_divergence(t, x)
        return both(at, Exact()(at.jacobian, None))

    def automatic() -> Tensor:
        at = Velocity.at(field, t, x)
        return both(at, Exact()(at.jacobian, None))

    def product() -> Tensor:
        at = field.at(t, x)
        return both(at, ESTIMATORS[UNIT](at.jacobian, probes[UNIT]))

    def estimate(name: str) -> Callable[[], Tensor]:
        def one() -> Tensor:
            at = Velocity.at(field, t, x)
            return both(at, ESTIMATORS[name](at.jacobian, probes[name]))

        return one

    sides = {CLOSED: closed, **({"automatic": automatic} if dense else {})}
    sides |= {name: estimate(name) for name in ESTIMATORS} | {f"{UNIT}, closed form": product}

    def job(side: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: run(side, field, train)

    return {name: job(side) for name, side in sides.items()}


def field_of(dim: int, machine: Machine, args: argparse.Namespace) -> tuple[Gradient, Tensor]:
    """Return a potential flow as drawn, and points."""
    torch.manual_seed(0)
    potential = ResNetPotential(dim, args.width).to(machine.device, machine.dtype)
    return Gradient(potential), machine.normal(args.rows, dim)


def cost_table(machine: Machine, args: argparse.Namespace) -> None:
    """Print what velocity and trace cost, and up to which dimension the closed form pays."""
    table, costs, names = [], {}, []
    for dim in args.points:
        field, x = field_of(dim, machine, args)
        for train in (False, True):
            jobs = field_jobs(field, x, dim <= args.dense, train)
            timed = machine.compare(jobs, args.repeat, args.patience)
            if dim <= args.dense:
                agree([timed["automatic"].first], [timed[CLOSED].first], f"exact traces, d={dim}")
            unit = timed[UNIT].ms
            names = list(dict.fromkeys([*names, *timed]))
            cells = [f"{timed[n].ms / unit:.2f}" if n in timed else "" for n in names]
            pass_ = "forward + backward" if train else "forward"
            table.append([dim, pass_, f"{1e3 * unit / len(x):.2f}", *cells])
            costs[dim, pass_] = timed[CLOSED].ms / unit
    title = f"cost of velocity and trace, m={args.width}, {args.rows} points; {UNIT} = 1"
    show(title, ["d", "pass", f"{UNIT}, µs per point", *names], table)
    small = {key: cost for key, cost in costs.items() if key[0] <= CLAIM}
    if small:
        (dim, pass_), cost = max(small.items(), key=lambda item: item[1])
        worst = f"{cost:.2f} probes at most (d = {dim}, {pass_})"
        print(f"\nup to d = {CLAIM} the closed form costs {worst}")


def error_table(machine: Machine, args: argparse.Namespace) -> None:
    """Print the errors of the estimates relative to the trace."""
    table = []
    for dim in args.points:
        field, x = field_of(dim, machine, args)
        at = Velocity.at(field, x.new_tensor(0.3), x)
        exact = Exact()(field.at(at.t, x).jacobian, None).detach()
        size = exact.square().mean().sqrt()
        table.append([dim, *(f"{100 * e / size:.1f} %" for e in errors(at, exact, args.draws))])
    title = f"error of the estimate, m={args.width}, root mean square relative to the trace's"
    show(title, ["d", *ESTIMATORS], table)


def errors(at: Point, exact: Tensor, draws: int) -> Sequence[float]:
    """Return the root mean square error of each estimator over points and draws."""
    found = []
    for trace in ESTIMATORS.values():
        off = [trace(at.jacobian, trace.probes(at.x)).detach() - exact for _ in range(draws)]
        found.append(torch.stack(off).square().mean().sqrt().item())
    return found


def main() -> None:
    """Print the tables."""
    parser = options(__doc__)
    parser.set_defaults(repeat=9)  # these jobs take milliseconds
    parser.add_argument("--dims", type=int, nargs="*", default=[2, 10, 43], help="of the network")
    parser.add_argument("--hidden", type=int, default=128, help="width of the network")
    parser.add_argument(
        "--points", type=int, nargs="*", default=[2, 8, 43, 63, 256, 784], help="of the potential"
    )
    parser.add_argument("--width", type=int, default=64, help="width m of the potential")
    parser.add_argument("--rows", type=int, default=256, help="points at once")
    parser.add_argument(
        "--dense", type=int, default=256, help="dimension up to which all rows are differentiated"
    )
    parser.add_argument("--draws", type=int, default=8, help="draws of probes behind each error")
    args = parser.parse_args()
    machine = started(args)
    if args.dims:
        network_table(machine, args)
    if args.points:
        cost_table(machine, args)
        error_table(machine, args)


if __name__ == "__main__":
    main()
