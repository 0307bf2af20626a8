"""The convex flow: z = grad F(x) for a strongly convex F, inverted by convex optimisation."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from flowzoo.errors import Incompatible
from flowzoo.flow import Encoded, Flow
from flowzoo.integrators import Integrator
from flowzoo.logdet import CG
from flowzoo.maps import LinearMap, Scaled
from flowzoo.regularizers import RunningCost
from flowzoo.traces import Exact, TraceEstimator
from flowzoo_cp_flow.convex import Convex, ConvexPoint
from flowzoo_cp_flow.inversion import Inversion, Inverted
from flowzoo_cp_flow.layers import require_finite
from flowzoo_cp_flow.newton import Newton

# Dimensions up to which the exact log-determinant, which has no noise, costs a training step no
# more than the published one-probe surrogate; ours costs less (benchmarks/results/speed.md).
EXACT = 64


class ConvexFlow(Flow):
    r"""z = grad F(x) with F(x) = softplus(w1) G(x) + (least + softplus(w0)) |x|^2 / 2.

    G is convex, so grad F is a bijection, and the optimal transport map from the data to what it
    makes of them. ladj = log det of the Hessian of F = tr log of it, by the trace.

    Arguments:
        potential: G.
        trace: How the log-determinant is computed; when left out exactly up to 64 dimensions, and
            by cg beyond them.
        inversion: How grad F(x) = z is solved for x; by Newton's method when left out.
        quadratic: softplus(w0) in the beginning, positive.
        weight: softplus(w1) in the beginning, positive.
        least: A lower bound of the Hessian's eigenvalues, and with it of how far apart the flow
            keeps points; 0 as published.
        train_quadratic: Whether w0 is trained.

    Raises:
        Incompatible: A number is out of its range, or the trace knows no logarithm.

    References:
        Convex Potential Flows (Huang, Chen, Tsirigotis & Courville, ICLR 2021),
        https://arxiv.org/abs/2012.05942
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"potential": {"name": "icnn", "width": 8, "layers": 2}},
        {"potential": {"name": "input-augmented", "width": 8, "layers": 2}, "least": 0.1},
        {"potential": {"name": "picnn", "width": 8, "layers": 2}, "trace": "cg"},
    )

    def __init__(
        self,
        potential: Convex,
        trace: TraceEstimator | None = None,
        inversion: Inversion | None = None,
        quadratic: float = 1.0,
        weight: float = math.log(2),
        least: float = 0.0,
        train_quadratic: bool = True,
    ) -> None:
        super().__init__()
        if not (quadratic > 0 and weight > 0 and least >= 0):
            raise Incompatible(
                "convex: quadratic and weight must be positive and least not negative, got "
                f"{quadratic}, {weight}, {least}"
            )
        self.potential, self.least = potential, least
        self.dim, self.context_dim = potential.dim, potential.context_dim
        if trace is None:
            trace = Exact() if self.dim <= EXACT else CG()
        _require_logarithm(trace)
        self.trace = trace
        self.inversion = Newton() if inversion is None else inversion
        self.raw_quadratic = nn.Parameter(_raw(quadratic), requires_grad=train_quadratic)
        self.raw_weight = nn.Parameter(_raw(weight))

    def at(self, x: Tensor, context: Tensor | None = None) -> ConvexPoint:
        """Return F, its gradient and its Hessian at x (n, d)."""
        weight, quadratic = self._factors()
        point = self.potential.at(x, context)
        value = weight * point.value + 0.5 * quadratic * x.square().sum(-1)
        gradient = torch.addcmul(weight * point.gradient, quadratic, x)
        return ConvexPoint(value, gradient, Scaled(point.hessian, weight, quadratic))

    def encode(
        self,
        x: Tensor,
        running: Sequence[RunningCost] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """Send data to noise; in training mode the first batch sets the normalisations.

        Raises:
            Incompatible: The points or the contexts have another shape, or a cost needs a
                trajectory.
            Diverged: The first training batch holds nan or inf.
        """
        self.requires(running)
        self._require_shape(x, context)
        if self.training and self.potential.waits and x.shape[0] > 1:
            require_finite("convex", x, context)
            self.potential.settle(x.detach(), context)
        point = self.at(x, context)
        ladj = self.trace(point.hessian, self.trace.probes(x, generator), torch.log)
        return Encoded(point.gradient, ladj, x.new_zeros(x.shape[0], 0))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Send noise to data, differentiably."""
        self._require_shape(z, context)
        return self.inversion(self.at, z, context)

    def invert(self, z: Tensor, context: Tensor | None = None) -> Inverted:
        """Send noise to data without gradients, and report each sample's residual."""
        return self.inversion.solve(self.at, z, context)

    def with_numerics(
        self, integrator: Integrator | None = None, trace: TraceEstimator | None = None
    ) -> ConvexFlow:
        """Return this flow, weights shared, with another trace."""
        other = copy.copy(self)
        if trace is not None:
            _require_logarithm(trace)
            other.trace = trace
        return other

    def _require_shape(self, x: Tensor, context: Tensor | None) -> None:
        if x.dim() != 2 or x.shape[1] != self.dim:
            shape = tuple(x.shape)
            raise Incompatible(f"convex: points must have shape (n, {self.dim}), got {shape}")
        if context is not None and (context.dim() != 2 or len(context) != len(x)):
            shape = tuple(context.shape)
            raise Incompatible(f"convex: contexts must have shape ({len(x)}, c), got {shape}")

    def _factors(self) -> tuple[Tensor, Tensor]:
        return softplus(self.raw_weight), self.least + softplus(self.raw_quadratic)


def _raw(positive: float) -> Tensor:
    """Return softplus^-1 of a number, log(e^p - 1) without its overflow."""
    return torch.tensor(positive + math.log(-math.expm1(-positive)))


def _require_logarithm(trace: TraceEstimator) -> None:
    """Raise Incompatible where a trace cannot estimate tr log A, by asking it for that of I."""
    own = torch.Generator().manual_seed(0)  # the global one draws the weights
    trace(_Identity(), trace.probes(torch.ones(1, 2), own), torch.log)


class _Identity(LinearMap):
    """The identity of R^2, once."""

    symmetric = True
    floor = 1.0

    def vjp(self, p: Tensor) -> Tensor:
        return p

    def jvp(self, p: Tensor) -> Tensor:
        return p

    def dense(self) -> Tensor:
        return torch.eye(2)[None]
