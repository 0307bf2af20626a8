"""Time one exact divergence of a network, forward alone and with the gradient of a loss on it.

Compared in one run, on the same inputs: the loop over dimensions of FFJORD's official code, torch's
batched vector-Jacobian products, forward mode, and flowzoo's `exact` (copies of the batch where it
is differentiated again).

    python benchmarks/speed/trace.py --dims 2 10 43 --width 128 --rows 256
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from tabulate import tabulate
from torch import Tensor, nn

from flowzoo.field import Velocity
from flowzoo.traces import Exact


class Softplus(Velocity):
    """A network with two hidden layers."""

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
        out = v(torch.zeros(()), x)
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
        out = v(torch.zeros(()), x)
    basis = torch.eye(x.shape[1])[:, None, :].expand(-1, len(x), -1)
    (rows,) = torch.autograd.grad(out, x, basis, create_graph=create, is_grads_batched=True)
    return rows.diagonal(dim1=0, dim2=2).sum(-1)


def forward_mode(v: Velocity, x: Tensor) -> Tensor:
    """Jacobian-vector products, batched by torch."""
    t = torch.zeros(())

    def column(e: Tensor) -> Tensor:
        return torch.func.jvp(lambda y: v(t, y), (x,), (e.expand_as(x),))[1]

    columns = torch.func.vmap(column)(torch.eye(x.shape[1]))
    return columns.diagonal(dim1=0, dim2=2).sum(-1)


def ours(v: Velocity, x: Tensor) -> Tensor:
    """The `exact` trace of the velocity's point."""
    return Exact()(v.at(torch.zeros(()), x).jacobian, None)


def seconds(
    method: Callable[[Velocity, Tensor], Tensor], v: Velocity, x: Tensor, train: bool
) -> float:
    """Return the processor time of one call."""
    start = time.process_time()
    if train:
        v.zero_grad()
        method(v, x.detach()).square().mean().backward()
    else:
        with torch.no_grad():
            method(v, x.detach())
    return time.process_time() - start


def main() -> None:
    """Print the median times and their ratio to the loop."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 10, 43])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    methods = [loop, batched, forward_mode, ours]
    table = []
    for dim in args.dims:
        v, x = Softplus(dim, args.width), torch.randn(args.rows, dim)
        for train in (False, True):
            times: dict[str, list[float]] = {m.__name__: [] for m in methods}
            for _ in range(args.repeat):  # interleaved, so that a busy moment hits all alike
                for method in methods:
                    times[method.__name__].append(seconds(method, v, x, train))
            median = {name: 1e3 * statistics.median(t) for name, t in times.items()}
            row = [
                f"{median[m.__name__]:.1f} ({median['loop'] / median[m.__name__]:.1f}x)"
                for m in methods
            ]
            table.append([dim, "forward + backward" if train else "forward", *row])
    print(f"ms, single thread, torch {torch.__version__}; in brackets the speed-up over the loop")
    print(tabulate(table, ["d", "pass", *(m.__name__ for m in methods)], tablefmt="github"))


if __name__ == "__main__":
    main()
