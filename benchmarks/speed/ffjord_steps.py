"""What is timed of FFJORD: a training step at published sizes, by either side."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import torch
from machine import Machine
from published_ffjord import PublishedFFJORD
from torch import Tensor

from flowzoo.continuous import Continuous
from flowzoo.data.toys import EightGaussians
from flowzoo.field import Velocity
from flowzoo.flow import log_normal
from flowzoo.integrators import Evaluations, Integrator
from flowzoo.traces import Exact, Hutchinson
from flowzoo_ffjord.activations import ActivationName
from flowzoo_ffjord.velocity import ODENet

# The loss at points (n, d), with probes from a seed, and the counts that its backward pass adds to.
Step: TypeAlias = Callable[[ODENet, Tensor, int], tuple[Tensor, Evaluations]]


@dataclass(frozen=True)
class Setting:
    """A published training step: its network, batch and numerics."""

    dim: int
    hidden: tuple[int, ...]
    activation: ActivationName
    batch: int
    end_time: float
    exact: bool
    rtol: float
    atol: float

    def __str__(self) -> str:
        """Return the network, the batch and the end time, as a line."""
        net = f"{'-'.join(map(str, self.hidden))} {self.activation}"
        return f"d={self.dim}, layers {net}, batch {self.batch}, T={self.end_time}"

    def net(self, machine: Machine) -> ODENet:
        """Return the fresh network, the same at every call."""
        torch.manual_seed(0)
        net = ODENet(self.dim, self.hidden, activation=self.activation)
        return net.to(machine.device, machine.dtype)

    def points(self, machine: Machine, seed: int) -> Tensor:
        """Draw eight Gaussians on a circle in the first two dimensions, one in the rest."""
        noise = torch.Generator().manual_seed(seed)
        plane = EightGaussians().sample(self.batch, noise)
        rest = 0.4 * torch.randn(self.batch, self.dim - 2, generator=noise)
        return torch.cat((plane, rest), 1).to(machine.device, machine.dtype)


SETTINGS = {
    "toy": Setting(2, (64, 64, 64), "tanh", 100, 0.5, True, 1e-5, 1e-5),
    "miniboone": Setting(43, (860, 860), "softplus", 1000, 1.0, False, 1e-6, 1e-8),
}


class Autograd(Velocity):
    """A network with the Jacobian that any velocity has: by automatic differentiation."""

    def __init__(self, net: ODENet) -> None:
        super().__init__()
        self.net, self.dim = net, net.dim

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return v(t, x) as (n, d)."""
        return self.net(t, x)


def published(s: Setting) -> Step:
    """Return the step of the official code."""

    def step(net: ODENet, x: Tensor, seed: int) -> tuple[Tensor, Evaluations]:
        probes = None if s.exact else Hutchinson("gaussian").probes(x, noise(x, seed))[0]
        field = PublishedFFJORD(net, probes)
        return field.loss(x, s.end_time, s.rtol, s.atol), field.nfe

    return step


def ours(s: Setting, integrator: Integrator, autograd: bool = False) -> Step:
    """Return a step of flowzoo."""
    trace = Exact() if s.exact else Hutchinson("gaussian")

    def step(net: ODENet, x: Tensor, seed: int) -> tuple[Tensor, Evaluations]:
        flow = Continuous(Autograd(net) if autograd else net, integrator, trace, s.end_time)
        out = flow.encode(x, generator=noise(x, seed))
        return -(log_normal(out.z) + out.ladj).mean(), out.nfe[0]

    return step


def noise(x: Tensor, seed: int) -> torch.Generator:
    """Return a source of probes where x is."""
    return torch.Generator(x.device).manual_seed(seed)


def gradient(step: Step, net: ODENet, x: Tensor, seed: int = 0) -> tuple[Tensor, Evaluations]:
    """Return the gradient in all weights, and the evaluations that it took."""
    net.zero_grad(set_to_none=True)
    loss, nfe = step(net, x, seed)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]), nfe


def counted(nfe: Evaluations) -> str:
    """Return evaluations forward and backward."""
    return f"{nfe.forward} + {nfe.backward}"


@dataclass
class Trained:
    """A network that was trained, and what each step took."""

    net: ODENet
    seconds: list[float] = field(default_factory=list)
    nfe: list[Evaluations] = field(default_factory=list)

    @property
    def ms(self) -> float:
        """Median time of the last quarter of the steps, in milliseconds."""
        return 1e3 * statistics.median(self.seconds[-self.last :])

    @property
    def evaluations(self) -> str:
        """Median evaluations of those steps, forward and backward."""
        counts = self.nfe[-self.last :]
        forward = statistics.median_high(nfe.forward for nfe in counts)
        backward = statistics.median_high(nfe.backward for nfe in counts)
        return counted(Evaluations(forward, backward))

    @property
    def last(self) -> int:
        """A quarter of the steps."""
        return max(1, len(self.seconds) // 4)


def train(
    steps: dict[str, Step], s: Setting, machine: Machine, count: int, lr: float
) -> dict[str, Trained]:
    """Train a network by each step, from the same weights on the same batches, in turn."""
    runs = {name: Trained(s.net(machine)) for name in steps}
    optimizers = {
        name: torch.optim.Adam(run.net.parameters(), lr, weight_decay=1e-5)
        for name, run in runs.items()
    }

    def once(name: str, x: Tensor, seed: int) -> Evaluations:
        nfe = gradient(steps[name], runs[name].net, x, seed)[1]
        optimizers[name].step()
        return nfe

    for seed in range(count):
        x = s.points(machine, seed)
        for name, run in runs.items():
            seconds, nfe = machine.once(partial(once, name, x, seed))
            run.seconds.append(seconds)
            run.nfe.append(nfe)
    return runs
