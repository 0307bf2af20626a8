"""Elementwise nonlinearities together with their slopes, which the closed-form Jacobian needs.

Solvers of high order and gradients of a trace want smooth ones: tanh, softplus, swish. The second
derivative of `relu` is zero and that of `elu` jumps: with `relu` the gradient of a divergence lacks
what the activations' kinks contribute, and adaptive solvers step across them blindly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

ActivationName: TypeAlias = Literal[
    "tanh", "softplus", "softplus20", "swish", "elu", "relu", "square", "identity"
]


class Activation(nn.Module, ABC):
    """y = s(h), elementwise."""

    @abstractmethod
    def forward(self, h: Tensor) -> Tensor:
        """Return s(h)."""

    @abstractmethod
    def slope(self, h: Tensor, y: Tensor) -> Tensor:
        """Return s'(h), for y = s(h) already computed."""


class Tanh(Activation):
    """tanh h."""

    def forward(self, h: Tensor) -> Tensor:
        """Return tanh h."""
        return torch.tanh(h)

    def slope(self, h: Tensor, y: Tensor) -> Tensor:
        """Return 1 - y^2."""
        return 1 - y * y


class Softplus(Activation):
    """log(1 + exp h)."""

    def forward(self, h: Tensor) -> Tensor:
        """Return log(1 + exp h)."""
        # At torch's usual threshold of 20 the value would jump by 2e-9; here by less than rounding.
        return functional.softplus(h, threshold=40.0)

    def slope(self, h: Tensor, y: Tensor) -> Tensor:
        """Return sigmoid h."""
        return torch.sigmoid(h)


class SharpSoftplus(Activation):
    """log(1 + exp 20 h) / 20, close to relu, but smooth: JKO-iFlow's."""

    def forward(self, h: Tensor) -> Tensor:
        """Return log(1 + exp 20 h) / 20."""
        return functional.softplus(h, beta=20, threshold=40.0)

    def slope(self, h: Tensor, y: Tensor) -> Tensor:
        """Return sigmoid 20 h."""
        return torch.sigmoid(20 * h)


class Swish(Activation):
    """h sigmoid(beta h), beta learned.

    Every layer has its own beta; in FFJORD's code all networks of a process share one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(()))

    def forward(self, h: Tensor) -> Tensor:
        """Return h sigmoid(beta h)."""
        return h * torch.sigmoid(self.beta * h)

    def slope(self, h: Tensor, y: Tensor) -> Tensor:
        """Return s + beta y (1 - s), with s = sigmoid(beta h)."""
        s = torch.sigmoid(self.beta * h)
        return s + self.beta * y * (1 - s)


class ELU(Activation):
    """h where it is positive, else exp h - 1."""

    def forward(self, h: Tensor) -> Tensor:
        """Return h or exp h - 1."""
        return functional.elu(h)

    def slope(self, h: Tensor, y: Tensor) -> Tensor:
        """Return exp min(h, 0)."""
        return torch.exp(h.clamp(max=0))


class ReLU(Activation):
    """max(h, 0)."""

    def forward(self, h: Tensor) -> Tensor:
        """Return max(h, 0)."""
        return torch.relu(h)

    def slope(self, h: Tensor, y: Tensor) -> Tensor:
        """Return 1 where h is positive, else 0."""
        return (h > 0).to(h.dtype)


class Square(Activation):
    """h^2."""

    def forward(self, h: Tensor) -> Tensor:
        """Return h^2."""
        return h * h

    def slope(self, h: Tensor, y: Tensor) -> Tensor:
        """Return 2 h."""
        return 2 * h


class Identity(Activation):
    """h."""

    def forward(self, h: Tensor) -> Tensor:
        """Return h."""
        return h

    def slope(self, h: Tensor, y: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(h)


ACTIVATIONS: dict[ActivationName, type[Activation]] = {
    "tanh": Tanh,
    "softplus": Softplus,
    "softplus20": SharpSoftplus,
    "swish": Swish,
    "elu": ELU,
    "relu": ReLU,
    "square": Square,
    "identity": Identity,
}
