"""Linear layers that depend on time, each affine in x at a given time.

A layer answers with the affine map that it is at time t. That one form serves the velocity, its
Jacobian forwards and backwards, one time for all samples and a time for each. With one time the
dependence on it is folded into a single weight, so that no batch-sized gate is computed or stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

LayerName: TypeAlias = Literal["ignore", "concat", "squash", "concatsquash", "blend", "hyper"]


@dataclass(frozen=True)
class Affine:
    """x -> sum_k g_k * (W_k x) + s, for inputs (..., n, in) and outputs (..., n, out).

    Arguments:
        weights: The W_k, each (out, in).
        shift: s, (out,) or (n, out).
        gates: The g_k, each (n, out) or (n, 1); None for one weight without a gate.
    """

    weights: tuple[Tensor, ...]
    shift: Tensor
    gates: tuple[Tensor, ...] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the image of x."""
        if self.gates is None and self.shift.dim() == 1:
            return linear(x, self.weights[0], self.shift)
        return self.push(x) + self.shift

    def push(self, u: Tensor) -> Tensor:
        """Return the linear part's product with u (..., n, in)."""
        if self.gates is None:
            return linear(u, self.weights[0])
        products = [g * linear(u, w) for g, w in zip(self.gates, self.weights, strict=True)]
        return torch.stack(products).sum(0) if len(products) > 1 else products[0]

    def pull(self, p: Tensor) -> Tensor:
        """Return the product of the linear part's transpose with p (..., n, out)."""
        if self.gates is None:
            return p @ self.weights[0]
        products = [(g * p) @ w for g, w in zip(self.gates, self.weights, strict=True)]
        return torch.stack(products).sum(0) if len(products) > 1 else products[0]

    def restricted(self, size: int) -> Affine:
        """Return the map as a function of the first `size` inputs, for its products alone."""
        return Affine(tuple(w[:, :size] for w in self.weights), self.shift, self.gates)


class TimeLinear(nn.Module, ABC):
    """A linear layer from R^inputs to R^outputs whose weights may depend on time.

    Arguments:
        inputs: Number of inputs.
        outputs: Number of outputs.

    References:
        FFJORD (Grathwohl et al., ICLR 2019), https://arxiv.org/abs/1810.01367, and its code
        (`diffeq_layers`), which also initialises as here
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    @abstractmethod
    def at(self, t: Tensor) -> Affine:
        """Return the map at time t, () for all samples or (n,) for each."""

    def zero(self) -> None:
        """Set the weights that multiply x to zero, biases apart."""
        nn.init.zeros_(self.linear.weight)


class Ignore(TimeLinear):
    """W x + b."""

    def at(self, t: Tensor) -> Affine:
        """Return the same map at all times."""
        return Affine((self.linear.weight,), self.linear.bias)


class Concat(TimeLinear):
    """W [t; x] + b: time is the first input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(1 + inputs, outputs)

    def at(self, t: Tensor) -> Affine:
        """Return W_x x + (W_t t + b)."""
        weight = self.linear.weight
        return Affine((weight[:, 1:],), self.linear.bias + weight[:, 0] * t[..., None])


class Squash(TimeLinear):
    """(W x + b) * sigmoid(g t + c)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.gate = nn.Linear(1, outputs)

    def at(self, t: Tensor) -> Affine:
        """Return the gated map."""
        gate = torch.sigmoid(self.gate(t[..., None]))
        weight, shift = self.linear.weight, gate * self.linear.bias
        if t.dim() == 0:
            return Affine((gate[:, None] * weight,), shift)
        return Affine((weight,), shift, (gate,))


class ConcatSquash(Squash):
    """(W x + b) * sigmoid(g t + c) + w t: FFJORD's code uses it where its paper says `concat`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.drift = nn.Linear(1, outputs, bias=False)

    def at(self, t: Tensor) -> Affine:
        """Return the gated map, shifted by an ungated drift."""
        squashed = super().at(t)
        shift = squashed.shift + self.drift(t[..., None])
        return Affine(squashed.weights, shift, squashed.gates)


class Blend(TimeLinear):
    """(1 - t) (W x + b) + t (W' x + b'): meant for end time 1, beyond which it extrapolates."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.linear_end = nn.Linear(inputs, outputs)

    def at(self, t: Tensor) -> Affine:
        """Return the interpolated map."""
        a, b, t = self.linear, self.linear_end, t[..., None]
        shift = torch.lerp(a.bias, b.bias, t)
        if t.dim() == 1:
            return Affine((torch.lerp(a.weight, b.weight, t),), shift)
        return Affine((a.weight, b.weight), shift, (1 - t, t))

    def zero(self) -> None:
        """Set both weights to zero, biases apart."""
        super().zero()
        nn.init.zeros_(self.linear_end.weight)


class Hyper(TimeLinear):
    """W(t) x + b(t), both affine in eight tanh features of time.

    `linear` puts out b first, then W by rows. At the start neither depends on time, and both are
    N(0, 0.01^2).
    """

    features = 8

    def __init__(self, inputs: int, outputs: int) -> None:
        nn.Module.__init__(self)
        self.inputs, self.outputs = inputs, outputs
        self.hidden = nn.Linear(1, self.features)
        self.linear = nn.Linear(self.features, outputs * (1 + inputs))
        for layer in (self.hidden, self.linear):
            nn.init.zeros_(layer.weight)
            nn.init.normal_(layer.bias, 0.0, 0.01)

    def at(self, t: Tensor) -> Affine:
        """Return the map; with a time for each sample, nine weights and gates, not n weights."""
        features, shape = torch.tanh(self.hidden(t[..., None])), (self.outputs, self.inputs)
        weight, bias = self.linear.weight, self.linear.bias
        shift = linear(features, weight[: self.outputs], bias[: self.outputs])
        if t.dim() == 0:
            return Affine((self.linear(features)[self.outputs :].view(shape),), shift)
        modes = (bias, *weight.unbind(1))
        gates = (torch.ones_like(features[:, :1]), *features.split(1, dim=1))
        return Affine(tuple(m[self.outputs :].reshape(shape) for m in modes), shift, gates)

    def zero(self) -> None:
        """Set W(t) to zero, the bias b(t) apart."""
        for tensor in (self.linear.weight, self.linear.bias):
            nn.init.zeros_(tensor[self.outputs :])


LAYERS: dict[LayerName, type[TimeLinear]] = {
    "ignore": Ignore,
    "concat": Concat,
    "squash": Squash,
    "concatsquash": ConcatSquash,
    "blend": Blend,
    "hyper": Hyper,
}
