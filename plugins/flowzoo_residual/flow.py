"""The residual block: z = x + g(x) for a small network g."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from flowzoo.errors import Diverged, Incompatible, UserError
from flowzoo.field import Point
from flowzoo.flow import Decoded, Encoded, Flow
from flowzoo.integrators import Integrator
from flowzoo.maps import LinearMap
from flowzoo.registry import suggest
from flowzoo.regularizers import RunningCost
from flowzoo.traces import Noise, TraceEstimator, draw
from flowzoo_residual.inversion import differentiable, invert
from flowzoo_residual.jacobian import NetworkJacobian
from flowzoo_residual.layers import ACTIVATIONS, Activation, Network, Perceptron
from flowzoo_residual.logdet import neumann, roulette, series

LogDet: TypeAlias = Literal["exact", "series", "neumann"]

_AIM = {torch.float64: 1e-12}  # of the residual where an inversion stops
_SINGLE = 1e-6  # in other precisions
_ROUNDING = 100.0  # times that is taken, where rounding lets a residual fall no further


class Residual(Flow):
    r"""z = x + g(x) with a perceptron g; ladj = log abs det(I + J), J the Jacobian of g.

    With a bound c < 1 of the layers' norms g contracts, and every block is a bijection (i-ResNet).
    Without one it need not be: IGNN keeps g small by a cost alone, and where a block folds space
    over, its density is none, and decode fails or finds another point.

    A block is a step of length one along the velocity g. Running costs are paid at its beginning:
    `transport` is |g(x)|^2 / 2.

    In evaluation log-determinants are exact, in any dimension, at the price of n determinants as
    wide as the narrowest layer. Estimates serve in training alone.

    Arguments:
        dim: Dimension d of the data.
        hidden: Widths of the hidden layers.
        activation: The activation of g, with slopes of at most 1; the second derivative of elu,
            which is published, jumps.
        lipschitz: The bound c of every layer's norm; null leaves the weights free.
        power_iterations: Power iterations that follow the norms in a training step.
        scale: Factor of the initial weights.
        log_det: How log abs det(I + J) is computed in training: `exact`; by the first terms of its
            power `series` with probes, biased; or by the `neumann` series of the gradient with a
            random number of terms, without bias. Estimates need a spectral radius of J below 1.
        terms: Terms of the series; for `neumann`, those always taken.
        rate: Mean of the Poisson number of further terms of `neumann`.
        samples: Number of probes.
        noise: Law of the probes; Gaussian as published.
        iterations: Most evaluations of the fixed point of `decode`, and most Newton steps of the
            points that it leaves.
        context_dim: Width c of the context, which enters by the first layer.

    Raises:
        Incompatible: A number is out of its range.
        UserError: There is no such activation or log_det.

    References:
        Invertible Residual Networks (Behrmann, Grathwohl, Chen, Duvenaud & Jacobsen, ICML 2019),
        https://arxiv.org/abs/1811.00995; Residual Flows for Invertible Generative Modeling (Chen,
        Behrmann, Duvenaud & Jacobsen, NeurIPS 2019), https://arxiv.org/abs/1906.02735; Invertible
        Neural Networks for Graph Prediction (Xu, Cheng & Xie, 2022),
        https://arxiv.org/abs/2206.01163
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"hidden": [8, 8]},
        {"hidden": [8], "activation": "tanh", "lipschitz": None, "log_det": "neumann"},
        {"hidden": [1, 8], "activation": "softplus", "log_det": "series"},
    )

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (128, 128),
        activation: Activation = "softplus",
        lipschitz: float | None = 0.9,
        power_iterations: int = 5,
        scale: float = 1.0,
        log_det: LogDet = "exact",
        terms: int = 5,
        rate: float = 2.0,
        samples: int = 1,
        noise: Noise = "rademacher",
        iterations: int = 100,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        counts = {"dim": dim, "power_iterations": power_iterations, "terms": terms}
        _require_positive(**counts, samples=samples, iterations=iterations, scale=scale, rate=rate)
        if not hidden or any(width < 1 for width in hidden):
            raise Incompatible(f"residual: hidden must name widths from 1 on, got {list(hidden)}")
        for name, value, known in (
            ("activation", activation, ACTIVATIONS),
            ("log_det", log_det, get_args(LogDet)),
        ):
            if value not in known:
                raise UserError(f"residual: unknown {name} '{value}'{suggest(value, known)}")
        if lipschitz is not None and not 0 < lipschitz < 1:
            raise Incompatible(
                f"residual: lipschitz must lie between 0 and 1, or be null, got {lipschitz}"
            )
        self.dim, self.context_dim = dim, context_dim
        self.network = Network(
            dim, hidden, activation, lipschitz, power_iterations, scale, context_dim
        )
        self.log_det: LogDet = log_det
        self.terms, self.rate, self.samples, self.iterations = terms, rate, samples, iterations
        self.noise: Noise = noise

    def encode(
        self,
        x: Tensor,
        running: Sequence[RunningCost] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """Send data to noise; in training mode the norms of the weights are followed.

        Raises:
            Incompatible: The context has another width, or a cost needs a potential.
        """
        self.requires(running)
        g = self.network(context, settle=self.training)
        at, probes = _point(g, x), self._probes(x, generator)
        ladj = self._ladj(at.jacobian, probes, generator)
        return Encoded(x + at.v, ladj, _costs(running, g, at, probes))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Send noise to data, differentiably (first derivatives).

        Raises:
            Incompatible: The context has another width.
            Diverged: A point was not found.
        """
        return self._decoded(self.network(context), z)

    def generate(
        self, z: Tensor, running: Sequence[RunningCost] = (), context: Tensor | None = None
    ) -> Decoded:
        """Send noise to data, and take the costs of the way from there."""
        self.requires(running)
        g = self.network(context)
        x = self._decoded(g, z)
        return Decoded(x, _costs(running, g, _point(g, x), None))

    def requires(self, running: Sequence[RunningCost]) -> None:
        """Raise Incompatible where a cost needs more than a velocity and its Jacobian."""
        for cost in running:
            if cost.needs:
                raise Incompatible(
                    f"{type(cost).__name__} needs {', '.join(sorted(cost.needs))}, which a "
                    "residual block does not have; the gradient of a potential does"
                )

    def with_numerics(
        self, integrator: Integrator | None = None, trace: TraceEstimator | None = None
    ) -> Residual:
        """Return this flow, weights shared; given any trace, exact in every mode."""
        other = copy.copy(self)
        if trace is not None:
            other.log_det = "exact"
        return other

    def _probes(self, x: Tensor, generator: torch.Generator | None) -> Tensor | None:
        if self.log_det == "exact" or not self.training:
            return None
        return draw(self.noise, (self.samples, *x.shape), x, generator)

    def _ladj(
        self, jacobian: LinearMap, probes: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        if probes is None:
            assert isinstance(jacobian, NetworkJacobian)
            return jacobian.log_abs_det()
        if self.log_det == "series":
            return series(jacobian, probes, self.terms)
        return neumann(jacobian, probes, roulette(self.terms, self.rate, generator))

    def _decoded(self, g: Perceptron, z: Tensor) -> Tensor:
        aim = _AIM.get(z.dtype, _SINGLE)
        x, size = invert(g.detach(), z.detach(), aim, self.iterations)
        bad = ~(size <= _ROUNDING)  # nan is bad, too
        if bool(bad.any()):
            raise Diverged(self._complaint(z, size, bad, aim))
        return differentiable(g, x, z) if torch.is_grad_enabled() else x

    def _complaint(self, z: Tensor, size: Tensor, bad: Tensor, aim: float) -> str:
        start = f"residual: {int(bad.sum())} of {len(z)} samples were not inverted"
        wrong = (~z.isfinite().all(-1)).nonzero()[:, 0].tolist()
        if wrong:
            return f"{start}: {len(wrong)} hold nan or inf, the first is number {wrong[0]}"
        worst = aim * float(size[bad].max())
        return (
            f"{start}: the worst residual, relative to 1 + |z|, is {worst:.2g} after "
            f"{self.iterations} iterations of the fixed point and as many of Newton; allow "
            "more, use float64, or bound the layers (lipschitz: 0.9), without which a block need "
            "not be a bijection"
        )


def _point(g: Perceptron, x: Tensor) -> Point:
    return Point(x.new_zeros(()), x, *g.at(x))


def _costs(
    running: Sequence[RunningCost], g: Perceptron, at: Point, probes: Tensor | None
) -> Tensor:
    """Return the costs of a step from a point, (n, r)."""
    if not running:
        return at.v.new_zeros(len(at.v), 0)
    still = _point(g, at.x.detach()) if any(cost.detached for cost in running) else at
    return torch.stack([c.rate(still if c.detached else at, probes) for c in running], -1)


def _require_positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not value > 0:
            raise Incompatible(f"residual: {name} must be positive, got {value}")
