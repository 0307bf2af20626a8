"""The network g of a residual block, its Lipschitz bound, and its Jacobian in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.linalg import matrix_norm
from torch.nn.functional import elu, linear, softplus

from flowzoo.errors import Incompatible
from flowzoo_residual.jacobian import NetworkJacobian

Activation: TypeAlias = Literal["elu", "softplus", "tanh"]
Sloped: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]


def _elu(a: Tensor) -> tuple[Tensor, Tensor]:
    s = elu(a)
    return s, s.clamp(max=0) + 1


def _softplus(a: Tensor) -> tuple[Tensor, Tensor]:
    return softplus(a, threshold=40), torch.sigmoid(a)


def _tanh(a: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.tanh(a)
    return s, 1 - s * s


# s and s', none above 1, so that the layers' norms bound the Lipschitz constant of the network.
ACTIVATIONS: dict[Activation, Sloped] = {"elu": _elu, "softplus": _softplus, "tanh": _tanh}


class BoundedLinear(nn.Module):
    """W x + b with W / max(1, |W|_2 / c) in the place of W.

    In training |W|_2 is estimated from below by power iterations that go on from where the last
    step ended. In evaluation it is exact, and nothing is changed: what is evaluated contracts,
    whatever happened to the weights since the last step.

    Arguments:
        inputs: Width of x.
        outputs: Width of the result.
        bound: The bound c; None leaves W as it is.
        iterations: Power iterations a step.
        scale: Factor of W at the start.
    """

    u: Tensor
    v: Tensor

    def __init__(
        self, inputs: int, outputs: int, bound: float | None, iterations: int, scale: float
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.bound, self.iterations = bound, iterations
        with torch.no_grad():
            self.linear.weight.mul_(scale)
            if bound is not None:
                left, _, right = torch.linalg.svd(self.linear.weight, full_matrices=False)
                self.register_buffer("u", left[:, 0].clone())
                self.register_buffer("v", right[0].clone())

    def weight(self, settle: bool = False) -> Tensor:
        """Return the bounded weight; `settle` takes the power iterations first."""
        w = self.linear.weight
        if self.bound is None:
            return w
        norm = self._estimate(settle) if self.training else matrix_norm(w, 2)
        return w / (norm / self.bound).clamp(min=1)

    def _estimate(self, settle: bool) -> Tensor:
        w, (u, v) = self.linear.weight, (self.u, self.v)
        if settle:
            with torch.no_grad():
                for _ in range(self.iterations):
                    v = _unit(w.T @ u)
                    u = _unit(w @ v)
                self.u.copy_(u)
                self.v.copy_(v)
        else:  # the next step overwrites them, maybe before this one's backward pass
            u, v = u.clone(), v.clone()
        return u @ (w @ v)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm().clamp_min(torch.finfo(x.dtype).tiny)


class Network(nn.Module):
    """g(x; c): a multilayer perceptron that the context enters by its first layer, unbounded.

    Arguments:
        dim: Dimension d of x.
        hidden: Widths of the hidden layers.
        activation: The activation.
        bound: Bound of the norm of every layer's weight, or None.
        iterations: Power iterations a step.
        scale: Factor of the weights at the start.
        context_dim: Width of the context.
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int],
        activation: Activation,
        bound: float | None,
        iterations: int,
        scale: float,
        context_dim: int,
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        widths = [dim, *hidden, dim]
        self.layers = nn.ModuleList(
            BoundedLinear(m, n, bound, iterations, scale) for m, n in pairwise(widths)
        )
        self.context_dim = context_dim
        self.context = nn.Linear(context_dim, widths[1], bias=False) if context_dim else None

    def forward(self, context: Tensor | None = None, settle: bool = False) -> Perceptron:
        """Return g for a context (n, c) or None; `settle` takes the power iterations first.

        Raises:
            Incompatible: The context is missing, unexpected, or of another width.
        """
        width = 0 if context is None else context.shape[-1]
        if width != self.context_dim:
            raise Incompatible(
                f"the residual block was built for a context of width {self.context_dim} and got "
                f"width {width}: give it the context that it expects"
            )
        layers: list[BoundedLinear] = list(self.layers)  # pyright: ignore[reportAssignmentType]
        weights = tuple(layer.weight(settle) for layer in layers)
        first, *rest = (layer.linear.bias for layer in layers)
        if self.context is not None and context is not None:
            first = first + self.context(context)
        return Perceptron(weights, (first, *rest), ACTIVATIONS[self.activation])


@dataclass(frozen=True)
class Perceptron:
    """g with given weights.

    Arguments:
        weights: A_1 ... A_L.
        biases: b_1 ... b_L; the first may be (n, h), of each sample its own.
        activation: s and s'.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    activation: Sloped

    def at(self, x: Tensor) -> tuple[Tensor, NetworkJacobian]:
        """Return g(x) (n, d) and its Jacobian, for x (n, d)."""
        slopes = []
        for weight, bias in zip(self.weights[:-1], self.biases, strict=False):
            x, slope = self.activation(_affine(x, weight, bias))
            slopes.append(slope)
        g = linear(x, self.weights[-1], self.biases[-1])
        return g, NetworkJacobian(self.weights, slopes, len(x))

    def __call__(self, x: Tensor) -> Tensor:
        """Return g(x) (n, d)."""
        return self.at(x)[0]

    def of(self, rows: Tensor) -> Perceptron:
        """Return that of some samples."""
        first, *rest = self.biases
        first = first if first.dim() == 1 else first[rows]
        return Perceptron(self.weights, (first, *rest), self.activation)

    def detach(self) -> Perceptron:
        """Return the same without a graph."""
        weights, biases = (tuple(w.detach() for w in each) for each in (self.weights, self.biases))
        return Perceptron(weights, biases, self.activation)


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return linear(x, weight, bias) if bias.dim() == 1 else linear(x, weight) + bias
