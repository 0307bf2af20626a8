"""The velocity of a zuko CNF, and a watch over its solver."""

from __future__ import annotations

from torch import Tensor

from flowzoo.errors import Diverged
from flowzoo.field import Velocity
from flowzoo.integrators import Evaluations
from flowzoo_zuko.library import FFJTransform, FreeFormJacobianTransform

MOST = 70_000  # evaluations in one solve: ten thousand steps, as our own solvers may take


class FreeForm(Velocity):
    """v(t, x) = f([cos(k pi t), sin(k pi t), x, context]), k = 1 ... freqs: a network of zuko.

    zuko, too, solves dx/dt = v from data at t = 0 to noise at t = 1.

    Arguments:
        transform: The transform of a zuko CNF; its weights are shared.
        dim: Dimension d of the data.
        context_dim: Width of the context.

    References:
        FFJORD (Grathwohl et al., ICLR 2019), https://arxiv.org/abs/1810.01367; zuko's FFJTransform
    """

    def __init__(self, transform: FFJTransform, dim: int, context_dim: int = 0) -> None:
        super().__init__()
        self.transform, self.dim, self.context_dim = transform, dim, context_dim

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return v(t, x) as (n, d), for t () or (n,), x (n, d) and context (n, c) or None."""
        return self.transform.f(t, x, context)


class Solve:
    """The velocity of one solve by zuko: its evaluations are counted, and end.

    zuko's solver has no largest number of steps, and makes its step smaller for ever where the
    velocity is not a number.

    Arguments:
        transform: The transform, made for one call; its velocity is replaced.
    """

    def __init__(self, transform: FreeFormJacobianTransform) -> None:
        self.velocity, transform.f = transform.f, self
        self.count, self.arrived = Evaluations(), False

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        """Return v(t, x).

        Raises:
            Diverged: It is not finite, or was evaluated too often.
        """
        v = self.velocity(t, x)
        if self.arrived:
            self.count.backward += 1
            return v
        self.count.forward += 1
        if self.count.forward > MOST:
            raise Diverged(f"zuko's solver has not arrived after {MOST} evaluations")
        if not bool(v.isfinite().all()):
            raise Diverged("the velocity of zuko's CNF is not finite; its solver would not stop")
        return v

    def over(self) -> tuple[Evaluations]:
        """Count what follows as of the backward pass, and return the count."""
        self.arrived = True
        return (self.count,)
