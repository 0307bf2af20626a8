"""The potential of OT-Flow; `network` has its formulas."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from flowzoo.errors import Incompatible
from flowzoo.field import Potential, PotentialPoint
from flowzoo.maps import Traced
from flowzoo.networks import Inputs
from flowzoo_ot_flow.fused import Plan, evaluate
from flowzoo_ot_flow.hessian import Hessian, triangular
from flowzoo_ot_flow.laplacian import cheapest
from flowzoo_ot_flow.network import Weights, activations, bends, gradient, output, sensitivities


class ResNetPotential(Potential):
    """Phi(t, x) = w^T u_M(s) + |A s|^2 / 2 + b^T s + c with a residual network u_M.

    Its input is s = [x, t, context]. All hidden layers start as copies of one. No density depends
    on c, so it is a buffer.

    Arguments:
        dim: Dimension d of x.
        width: Width m of the network.
        layers: Number M + 1 of layers, the opening one counted; the published settings have 2.
        rank: Rows r of A; min(10, d + 1) when left out.
        context_dim: Width of the context.
        method: How the Laplacian is computed where it is asked for together with the gradient:
            by `columns`, `folded` (one hidden layer only) or by `autograd` alone; `auto` chooses by
            cost.
        compile: True has torch.compile make the code of `columns` and `folded`: it takes a minute,
            and pays for narrow networks.

    Raises:
        Incompatible: Fewer than two layers, or a width or rank below 1.

    References:
        OT-Flow (Onken, Wu Fung, Li & Ruthotto, AAAI 2021), https://arxiv.org/abs/2006.00104
    """

    c: Tensor
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"layers": 4, "width": 5},
        {"method": "folded", "width": 5},
    )

    def __init__(
        self,
        dim: int,
        width: int = 32,
        layers: int = 2,
        rank: int | None = None,
        context_dim: int = 0,
        method: Literal["auto", "columns", "folded", "autograd"] = "auto",
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.method: Literal["auto", "columns", "folded", "autograd"] = method
        self.compiled = compile
        rank = min(10, dim + 1) if rank is None else rank
        for name, value, least in (("layers", layers, 2), ("width", width, 1), ("rank", rank, 1)):
            if value < least:
                raise Incompatible(f"ot-flow: {name} must be at least {least}, got {value}")
        if method == "folded" and layers > 2:
            raise Incompatible(
                f"ot-flow: method folded is for layers: 2, got {layers}; use columns or auto"
            )
        self.dim, self.context_dim, self.step = dim, context_dim, 1 / (layers - 1)
        self.inputs = Inputs(dim, context_dim=context_dim)
        self.opening = nn.Linear(self.inputs.width, width)
        first = nn.Linear(width, width)
        self.hidden = nn.ModuleList(copy.deepcopy(first) for _ in range(layers - 1))
        self.w = nn.Parameter(torch.ones(width))
        self.A = nn.Parameter(torch.empty(rank, self.inputs.width))
        nn.init.xavier_uniform_(self.A)
        self.b = nn.Parameter(torch.zeros(self.inputs.width))
        self.register_buffer("c", torch.zeros(()))

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return Phi(t, x) as (n,), for t () or (n,), x (n, d) and context (n, c) or None."""
        s, p = self.inputs(t, x, context), self.weights()
        u = output(p, s)
        return u @ p.w + 0.5 * (s @ p.A.T).square().sum(-1) + s @ p.b + self.c

    def gradient(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return grad_x Phi as (n, d), and nothing else: all that sampling needs."""
        s, p = self.inputs(t, x, context), self.weights()
        pulled, _ = sensitivities(p, activations(p, s)[0])
        return gradient(p, s, pulled[0], self.dim)

    def at(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> PotentialPoint:
        """Return gradient, time derivative and Hessian at (t, x), from one set of activations."""
        d, s, p = self.dim, self.inputs(t, x, context), self.weights()
        slopes, _ = activations(p, s)
        pulled, z = sensitivities(p, slopes)
        first = gradient(p, s, pulled[0], d + 1)
        opening, low_rank = p.matrices[0][:, :d], p.A[:, :d]
        hessian = Hessian(opening, p.matrices[1:], low_rank, slopes, bends(slopes, pulled, z))
        return PotentialPoint(first[:, :d], first[:, d], hessian)

    def with_laplacian(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> PotentialPoint:
        """Return the same, the Laplacian computed along with the gradient."""
        if self.method == "autograd" or _plain(x):
            return self.at(t, x, context)
        d, s, p = self.dim, self.inputs(t, x, context), self.weights()
        frame = p.matrices[0][:, :d].T
        if d > len(p.w):
            frame = triangular(frame)  # the Laplacian depends on its products alone
        space, time, laplacian = evaluate(self._plan(s, p, frame), p, s, frame)
        return PotentialPoint(
            space, time, Traced(laplacian, lambda: self.at(t, x, context).hessian)
        )

    def _plan(self, s: Tensor, p: Weights, frame: Tensor) -> Plan:
        method = self.method
        if method == "auto" or method == "autograd":
            method = cheapest(len(s), frame, len(self.hidden))
        derive = torch.is_grad_enabled() and any(y.requires_grad for y in (s, *p.row()))
        return Plan(self.dim, method, derive, s.device.type == "cpu", self.compiled)

    def weights(self) -> Weights:
        """Return the weights as the formulas take them."""
        layers: list[nn.Linear] = [self.opening, *self.hidden]  # pyright: ignore
        matrices, biases = [y.weight for y in layers], [y.bias for y in layers]
        return Weights(self.A, self.b, self.w, matrices, biases)


def _plain(x: Tensor) -> bool:
    """Whether the hand-written derivative is out of place: it is for autograd in one precision."""
    device = x.device.type
    return (
        torch._C._are_functorch_transforms_active()
        or (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device))
        or torch.autograd.forward_ad._current_level >= 0
    )
