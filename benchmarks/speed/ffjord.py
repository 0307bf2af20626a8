"""Time one training step of FFJORD: the algorithm of its official code against flowzoo's.

Two settings: `toy` is the 2-D network (3 layers of 64, tanh, T = 0.5, exact trace, tolerances
1e-5), `miniboone` the 43-dimensional one (2 layers of 860, softplus, T = 1, Hutchinson with
Gaussian noise, rtol 1e-6, atol 1e-8). The data are synthetic. Compared in one run, interleaved, on
the same weights, points and probes:

  official         torchdiffeq's dopri5 adjoint as shipped; layer by layer; a loop over dimensions
                   for the exact trace, one backward pass for Hutchinson's
  adjoint-autograd flowzoo's adjoint at the same tolerances, Jacobian by automatic differentiation
  adjoint          the same with the closed-form Jacobian
  rk4-autograd     Runge-Kutta, discretize-then-optimize, automatic differentiation
  rk4              the same with the closed-form Jacobian
  rk4-recompute    the same, each step recomputed in the backward pass
  rk4-exact        like rk4, with the exact trace whatever the setting says

`gradient error` is relative to a Runge-Kutta solve with `--reference` steps and the same probes
(`rk4-exact`: the exact trace), so that a faster row can be seen to be as accurate. A fresh network
flatters adaptive solvers: `--train` steps of Adam come before the measurement.

    python benchmarks/speed/ffjord.py --settings toy miniboone --steps 8 --rounds 7
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torchdiffeq import odeint_adjoint

from flowzoo.continuous import Continuous
from flowzoo.field import Velocity
from flowzoo.flow import log_normal
from flowzoo.integrators import RK4, Integrator
from flowzoo.odeint import Adjoint
from flowzoo.traces import Exact, Hutchinson, TraceEstimator
from flowzoo_ffjord.activations import ActivationName
from flowzoo_ffjord.velocity import ODENet


@dataclass(frozen=True)
class Setting:
    """A published training step: its network, batch and numerics."""

    dim: int
    hidden: list[int]
    activation: ActivationName
    batch: int
    end_time: float
    exact: bool
    rtol: float
    atol: float


SETTINGS = {
    "toy": Setting(2, [64, 64, 64], "tanh", 100, 0.5, True, 1e-5, 1e-5),
    "miniboone": Setting(43, [860, 860], "softplus", 1000, 1.0, False, 1e-6, 1e-8),
}


class AutogradODENet(ODENet):
    """The network with the Jacobian that any velocity has."""

    at = Velocity.at


class Official(nn.Module):
    """d/dt (x, -ladj) as the official code computes it, on the weights of an `ODENet`."""

    def __init__(self, net: ODENet, probes: Tensor | None) -> None:
        super().__init__()
        self.net, self.probes, self.nfe = net, probes, 0

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """Return v(t, x), every layer with its gate and drift on the whole batch."""
        t = t.reshape(1, 1)
        for i, layer in enumerate(self.net.layers):
            x = layer.linear(x) * torch.sigmoid(layer.gate(t)) + layer.drift(t)  # pyright: ignore
            if i < len(self.net.activations):
                x = self.net.activations[i](x)
        return x

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the derivative of places and minus ladj."""
        self.nfe += 1
        with torch.enable_grad():
            x = state[0].requires_grad_(True)
            v = self.velocity(t, x)
            if self.probes is None:
                rows = [
                    torch.autograd.grad(v[:, i].sum(), x, create_graph=True)[0][:, i]
                    for i in range(x.shape[1])
                ]
                return v, -torch.stack(rows).sum(0)
            (product,) = torch.autograd.grad(v, x, self.probes, create_graph=True)
            return v, -(product * self.probes).sum(1)


Step = Callable[[], tuple[Tensor, int]]


def official(net: ODENet, x: Tensor, s: Setting, seed: int) -> Step:
    """Return a call that gives loss and forward evaluations of the official algorithm."""

    def step() -> tuple[Tensor, int]:
        noise = torch.Generator().manual_seed(seed)
        probes = None if s.exact else torch.randn(1, *x.shape, generator=noise)[0]
        field = Official(net, probes)
        start, times = (x, x.new_zeros(len(x))), torch.tensor([0.0, s.end_time])
        z, minus_ladj = odeint_adjoint(
            field, start, times, rtol=s.rtol, atol=s.atol, method="dopri5"
        )
        return -(log_normal(z[-1]) - minus_ladj[-1]).mean(), field.nfe

    return step


def ours(
    net: ODENet, x: Tensor, s: Setting, seed: int, integrator: Integrator, exact: bool
) -> Step:
    """Return a call that gives loss and forward evaluations of flowzoo."""
    trace: TraceEstimator = Exact() if exact else Hutchinson("gaussian")
    flow = Continuous(net, integrator, trace, s.end_time)

    def step() -> tuple[Tensor, int]:
        out = flow.encode(x, generator=torch.Generator().manual_seed(seed))
        return -(log_normal(out.z) + out.ladj).mean(), out.nfe[0].forward

    return step


def methods(
    net: ODENet, x: Tensor, s: Setting, steps: int, seed: int = 0
) -> dict[str, tuple[Step, bool]]:
    """Return the compared steps by name, and whether each has the exact trace."""
    slow = AutogradODENet(s.dim, s.hidden, activation=s.activation)
    slow.layers, slow.activations = net.layers, net.activations
    adjoint, grid, again = Adjoint(rtol=s.rtol, atol=s.atol), RK4(steps), RK4(steps, True)
    rows = {
        "adjoint-autograd": (slow, adjoint, s.exact),
        "adjoint": (net, adjoint, s.exact),
        "rk4-autograd": (slow, grid, s.exact),
        "rk4": (net, grid, s.exact),
        "rk4-recompute": (net, again, s.exact),
        "rk4-exact": (net, grid, True),
    }
    made = {name: (ours(v, x, s, seed, i, exact), exact) for name, (v, i, exact) in rows.items()}
    return {"official": (official(net, x, s, seed), s.exact), **made}


def gradient(net: ODENet, step: Step) -> tuple[Tensor, int, float]:
    """Return the gradient, the evaluations of the forward solve, and the seconds it took."""
    net.zero_grad(set_to_none=True)
    start = time.perf_counter()
    loss, nfe = step()
    loss.backward()
    seconds = time.perf_counter() - start
    return (
        torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]),
        nfe,
        seconds,
    )


def points(s: Setting, generator: torch.Generator) -> Tensor:
    """Draw from eight narrow Gaussians on a circle, in the first two dimensions."""
    angle = torch.randint(0, 8, (s.batch,), generator=generator) * (math.pi / 4)
    x = 0.4 * torch.randn(s.batch, s.dim, generator=generator)
    x[:, :2] += 2 * torch.stack([angle.cos(), angle.sin()], 1)
    return x


def compare(s: Setting, args: argparse.Namespace) -> list[list[object]]:
    """Return rows: method, median ms, speed-up over the official step, evaluations, error."""
    torch.manual_seed(0)
    noise = torch.Generator().manual_seed(0)
    net = ODENet(s.dim, s.hidden, activation=s.activation)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(args.train):
        gradient(net, ours(net, points(s, noise), s, 0, RK4(args.steps), True))
        optimizer.step()
    x = points(s, noise)
    compared = methods(net, x, s, args.steps)
    truth = {
        exact: gradient(net, ours(net, x, s, 0, RK4(args.reference, True), exact))[0]
        for exact in {exact for _, exact in compared.values()}
    }
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    rows: dict[str, tuple[int, float]] = {}
    for _ in range(args.rounds):  # interleaved, so that a busy moment hits all alike
        for name, (step, exact) in compared.items():
            found, nfe, taken = gradient(net, step)
            seconds[name].append(taken)
            error = (found - truth[exact]).norm() / truth[exact].norm()
            rows[name] = nfe, error.item()
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    return [
        [
            name,
            f"{1e3 * median[name]:.1f}",
            f"{median['official'] / median[name]:.2f}x",
            nfe,
            f"{error:.1e}",
        ]
        for name, (nfe, error) in rows.items()
    ]


def main() -> None:
    """Print one table per setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=8, help="Runge-Kutta steps")
    parser.add_argument("--reference", type=int, default=32, help="steps of the reference gradient")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each method")
    parser.add_argument("--train", type=int, default=50, help="steps of Adam before measuring")
    parser.add_argument("--batch", type=int, help="rows; the published batch when left out")
    parser.add_argument("--width", type=int, help="width; the published one when left out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.settings:
        s = SETTINGS[name]
        hidden = [args.width or width for width in s.hidden]
        s = replace(s, batch=args.batch or s.batch, hidden=hidden)
        head = ["method", "ms", "speed-up", "forward evaluations", "gradient error"]
        print(f"\n{s}\nforward and backward, one thread, torch {torch.__version__}\n")
        print(
            tabulate(compare(s, args), head, tablefmt="github", disable_numparse=True), flush=True
        )


if __name__ == "__main__":
    main()
