"""FFJORD as published: a plain transcription of its right-hand side, solved by torchdiffeq.

The published code evaluates layer by layer, gate and drift on the whole batch,

    h_l = s((W h_{l-1} + b) sigmoid(g t + c) + w t),

takes the divergence by automatic differentiation with a graph of the graph (a loop over dimensions
where it is exact, one backward pass where it is Hutchinson's), also inside a solve that records no
gradients, and calls torchdiffeq's dopri5 adjoint with its defaults.

References:
    FFJORD (Grathwohl et al., ICLR 2019), https://arxiv.org/abs/1810.01367, and its code,
    https://github.com/rtqichen/ffjord
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchdiffeq import odeint_adjoint

from flowzoo.flow import log_normal
from flowzoo.integrators import Evaluations
from flowzoo_ffjord.velocity import ODENet


class PublishedFFJORD(nn.Module):
    """d/dt (x, -ladj), on the weights of an `ODENet` of concatsquash layers.

    Arguments:
        net: What has the weights; nothing of it is called but its layers' linear maps.
        probes: Hutchinson's (n, d), kept for the solve; None for the exact trace.
    """

    def __init__(self, net: ODENet, probes: Tensor | None) -> None:
        super().__init__()
        self.net, self.probes = net, probes
        self.nfe, self.solved = Evaluations(), False

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """Return v(t, x) as (n, d)."""
        layers: list[Any] = list(self.net.layers)
        activations = (*self.net.activations, nn.Identity())
        t = t.reshape(1, 1)
        for layer, activation in zip(layers, activations, strict=True):
            x = activation(layer.linear(x) * torch.sigmoid(layer.gate(t)) + layer.drift(t))
        return x

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the derivative of places and minus ladj."""
        self.nfe.forward += not self.solved
        self.nfe.backward += self.solved
        with torch.enable_grad():
            x = state[0].requires_grad_(True)
            v = self.velocity(t, x)
            if self.probes is None:
                diagonal = [
                    torch.autograd.grad(v[:, i].sum(), x, create_graph=True)[0][:, i]
                    for i in range(x.shape[1])
                ]
                return v, -torch.stack(diagonal).sum(0)
            (product,) = torch.autograd.grad(v, x, self.probes, create_graph=True)
            return v, -(product * self.probes).sum(1)

    def loss(self, x: Tensor, end_time: float, rtol: float, atol: float) -> Tensor:
        """Return the mean negative log-likelihood in nats; its backward pass solves again."""
        start, times = (x, x.new_zeros(len(x))), torch.tensor([0.0, end_time]).to(x)
        z, minus_ladj = odeint_adjoint(self, start, times, rtol=rtol, atol=atol, method="dopri5")
        self.solved = True
        return -(log_normal(z[-1]) - minus_ladj[-1]).mean()
