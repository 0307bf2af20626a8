"""General-purpose networks: velocities and a potential that are multilayer perceptrons.

All read (x, time features, context) and nothing else, so every path, objective and integrator can
use them. Activations are smooth by default: with a kink in the activation the divergence jumps, and
an adaptive solver of the likelihood pays for every jump.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from flowzoo.errors import Incompatible, UserError
from flowzoo.field import Potential, Velocity
from flowzoo.registry import suggest

Smooth = Literal["silu", "gelu", "tanh", "softplus"]
Activation = Literal["silu", "gelu", "tanh", "softplus", "selu", "relu"]
TimeFeatures = Literal["plain", "fourier", "none"]

_SMOOTH: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}
_KINKED: dict[str, Callable[[], nn.Module]] = {"selu": nn.SELU, "relu": nn.ReLU}


class MLP(Velocity):
    """v(t, x) = W_L s(W_{L-1} ... s(W_0 [x, time, context])) for an activation s.

    Arguments:
        dim: Dimension d of x.
        hidden: Widths of the hidden layers; none makes a velocity that is affine in x.
        activation: The activation s. `selu` (which TorchCFM ships) and `relu` have kinks: the
            divergence is discontinuous, and an adaptive solver needs about ten times the steps.
        time: `plain` feeds t itself; `fourier` feeds cos(k pi t) and sin(k pi t), k = 1 ... K;
            `none` feeds no time, so that v is the same at all times.
        frequencies: The number K of Fourier frequencies; not used by the others.
        context_dim: Width c of the context.

    Raises:
        UserError: An unknown activation or kind of time features.
        Incompatible: A width or number of frequencies below 1.

    References:
        Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport
        (Tong, Fatras, Malkin, Huguet, Zhang, Rector-Brooks, Wolf & Bengio, TMLR 2024),
        https://arxiv.org/abs/2302.00482: three layers of 64, plain time, SELU
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"time": "fourier"}, {"time": "none"})

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64, 64),
        activation: Activation = "silu",
        time: TimeFeatures = "plain",
        frequencies: int = 8,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        self.dim, self.context_dim = dim, context_dim
        self.inputs = Inputs(dim, time, frequencies, context_dim)
        self.net = _perceptron(self.inputs.width, hidden, dim, activation, _SMOOTH | _KINKED)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return v(t, x) as (n, d), for t () or (n,), x (n, d) and context (n, c) or None."""
        return self.net(self.inputs(t, x, context))


class ResidualMLP(Velocity):
    """v(t, x) = C s(h_K), h_{k+1} = h_k + B_k s(A_k s(h_k) + E_k c), h_0 = W [x, c].

    c are the time features and the context, which every block sees again; so more blocks do not
    lose sight of the time, as the layers of a plain perceptron may.

    Arguments:
        dim: Dimension d of x.
        width: Width of the blocks.
        blocks: The number K of blocks; none makes a network of one hidden layer.
        activation: The activation s.
        time: `fourier` feeds cos(k pi t) and sin(k pi t), k = 1 ... K; `plain` feeds t itself.
        frequencies: The number K of Fourier frequencies; not used by `plain`.
        context_dim: Width of the context.

    Raises:
        UserError: An unknown activation or kind of time features.
        Incompatible: A width or number of frequencies below 1, or a negative number of blocks.

    References:
        Identity Mappings in Deep Residual Networks (He, Zhang, Ren & Sun, ECCV 2016),
        https://arxiv.org/abs/1603.05027: activations come before the layers
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"width": 16, "blocks": 2},
        {"width": 8, "blocks": 1, "time": "plain"},
    )

    def __init__(
        self,
        dim: int,
        width: int = 64,
        blocks: int = 3,
        activation: Smooth = "silu",
        time: Literal["fourier", "plain"] = "fourier",
        frequencies: int = 8,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        if width < 1 or blocks < 0:
            raise Incompatible(
                "residual-mlp: width must be at least 1 and blocks at least 0, got "
                f"{width} and {blocks}"
            )
        _known(time, ("fourier", "plain"), "time features")
        self.dim, self.context_dim = dim, context_dim
        self.inputs = Inputs(dim, time, frequencies, context_dim)
        self.activation = _SMOOTH[_known(activation, _SMOOTH, "activation")]()
        self.first = nn.Linear(self.inputs.width, width)
        self.inner = nn.ModuleList(
            nn.Linear(width + self.inputs.width - dim, width) for _ in range(blocks)
        )
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.last = nn.Linear(width, dim)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return v(t, x) as (n, d), for t () or (n,), x (n, d) and context (n, c) or None."""
        rows, act = self.inputs(t, x, context), self.activation
        h, given = self.first(rows), rows[:, self.dim :]
        for inner, outer in zip(self.inner, self.outer, strict=True):
            h = h + outer(act(inner(torch.cat((act(h), given), -1))))
        return self.last(act(h))


class PotentialMLP(Potential):
    """Phi(t, x) = w^T s(W_{L-1} ... s(W_0 [x, time, context])) for a smooth activation s.

    Its velocity is a gradient and its divergence a trace of second derivatives, so activations with
    kinks are not offered.

    Arguments:
        dim: Dimension d of x.
        hidden: Widths of the hidden layers; none makes a potential that is affine in x.
        activation: The activation s.
        time: `plain` feeds t itself; `fourier` feeds cos(k pi t) and sin(k pi t), k = 1 ... K;
            `none` feeds no time, so that Phi is the same at all times, as the Monge-Ampere flow's.
        frequencies: The number K of Fourier frequencies; not used by the others.
        context_dim: Width c of the context.

    Raises:
        UserError: An unknown activation or kind of time features.
        Incompatible: A width or number of frequencies below 1.
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"time": "none"})

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64, 64),
        activation: Smooth = "silu",
        time: TimeFeatures = "plain",
        frequencies: int = 8,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        self.dim, self.context_dim = dim, context_dim
        self.inputs = Inputs(dim, time, frequencies, context_dim)
        self.net = _perceptron(self.inputs.width, hidden, 1, activation, _SMOOTH)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return Phi(t, x) as (n,), for t () or (n,), x (n, d) and context (n, c) or None."""
        return self.net(self.inputs(t, x, context)).squeeze(-1)


class Inputs(nn.Module):
    """Lays (x, time features, context) side by side, as (n, width).

    Arguments:
        dim: Dimension d of x.
        time: `plain`, `fourier` or `none`.
        frequencies: The number of Fourier frequencies.
        context_dim: Width c of the context.
    """

    def __init__(
        self,
        dim: int,
        time: TimeFeatures = "plain",
        frequencies: int = 8,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        widths = {"plain": 1, "fourier": 2 * frequencies, "none": 0}
        self.width = dim + widths[_known(time, widths, "time features")] + context_dim
        self.embed = Fourier(frequencies) if time == "fourier" else nn.Identity()
        self.timed, self.context_dim = time != "none", context_dim

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the rows (n, width).

        Raises:
            Incompatible: The context is missing, unexpected, or of another width.
        """
        width = 0 if context is None else context.shape[-1]
        if width != self.context_dim:
            raise Incompatible(
                f"the network was built for a context of width {self.context_dim} and got width "
                f"{width}: set its context_dim to {width}, or give the context it expects"
            )
        columns = [x] if context is None else [x, context]
        if self.timed:  # a time shared by the batch is embedded once
            columns.insert(1, self.embed(t.reshape(-1, 1)).expand(x.shape[0], -1))
        return torch.cat(columns, -1)


class Fourier(nn.Module):
    """cos(k pi t) and sin(k pi t) for k = 1 ... K.

    The first cosine alone tells all times in [0, 1] apart.

    Arguments:
        frequencies: The number K.
    """

    wave_numbers: Tensor

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        if frequencies < 1:
            raise Incompatible(f"frequencies must be at least 1, got {frequencies}")
        # Integers survive every change of precision; multiples of pi do not.
        wave_numbers = torch.arange(1.0, frequencies + 1)
        self.register_buffer("wave_numbers", wave_numbers, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Return the features (m, 2 K) of times (m, 1)."""
        angles = math.pi * self.wave_numbers * t
        return torch.cat((angles.cos(), angles.sin()), -1)


def _perceptron(
    width: int,
    hidden: Sequence[int],
    out: int,
    activation: str,
    activations: Mapping[str, Callable[[], nn.Module]],
) -> nn.Sequential:
    layer = activations[_known(activation, activations, "activation")]
    if any(h < 1 for h in hidden):
        raise Incompatible(f"every hidden width must be at least 1, got {list(hidden)}")
    layers: list[nn.Module] = []
    for h in hidden:
        layers += [nn.Linear(width, h), layer()]
        width = h
    return nn.Sequential(*layers, nn.Linear(width, out))


def _known(name: str, names: Collection[str], what: str) -> str:
    if name not in names:
        raise UserError(f"unknown {what} '{name}'{suggest(name, names)}")
    return name
