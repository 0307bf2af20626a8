"""A zuko flow that exists already, as a flow of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible, UserError
from flowzoo.flow import Encoded, Flow
from flowzoo.integrators import Integrator
from flowzoo.odeint import Dopri5
from flowzoo.regularizers import RunningCost
from flowzoo.traces import Exact, TraceEstimator
from flowzoo_zuko.library import (
    DiagNormal,
    FFJTransform,
    FreeFormJacobianTransform,
    LazyFlow,
    UnconditionalDistribution,
)
from flowzoo_zuko.velocity import FreeForm, Solve


class Adopted(Flow):
    """A zuko flow: z = transform(x), ladj = log abs det dz/dx as zuko computes it.

    zuko sends data to noise as we do, so nothing is turned round. A CNF is encoded by zuko's own
    solver; with other numerics it becomes a `Continuous` flow along the same velocity, which shares
    the weights and has trajectories.

    In evaluation mode zuko leaves weights of CNF, UNAF and NAF out of gradients: train such a flow
    in training mode. `flow.Zuko` sees to that by itself.

    Arguments:
        net: The flow, with a standard normal base.
        context_dim: Width of the context that it was built for, 0 for none.

    Raises:
        Incompatible: The base is not N(0, I), or the ladj of a CNF is estimated (`exact=False`).
        UserError: It is no flow of zuko.

    References:
        zuko.lazy.Flow, https://zuko.readthedocs.io
    """

    def __init__(self, net: LazyFlow, context_dim: int = 0) -> None:
        super().__init__()
        if not isinstance(net, LazyFlow):
            raise UserError(f"expected a flow of zuko, got {type(net).__name__}")
        self.dim, self.context_dim = _base_dim(net), context_dim
        self.net = net
        if any(isinstance(part, FFJTransform) and not part.exact for part in net.modules()):
            raise Incompatible(
                f"this {type(net).__name__} estimates its log-determinant by one random probe per "
                "call: set `exact = True` on its transform, the weights stay as they are"
            )

    def encode(
        self,
        x: Tensor,
        running: Sequence[RunningCost] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """Send data to noise by zuko's transform and, for a CNF, zuko's solver.

        Raises:
            Diverged: zuko's solver does not arrive.
            Incompatible: A cost is asked for, or x or the context has another width.
        """
        self._check(x, context)
        self.requires(running)
        if torch.is_inference_mode_enabled():  # zuko differentiates inside, even there
            with torch.inference_mode(False), torch.no_grad():
                context = None if context is None else context.clone()
                return self.encode(x.clone(), running, context, generator)
        if not len(x):  # zuko's solver has no error norm of nothing
            return Encoded(x, x.new_zeros(0), x.new_zeros(0, 0))
        transform, solve = self._transform(context)
        z, ladj = transform.call_and_ladj(x)
        nfe = () if solve is None else solve.over()
        return Encoded(z, ladj, x.new_zeros(len(x), 0), nfe)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Send noise to data by zuko's inverse; NAF, UNAF, SOSPF, BPF and GF bisect to 1e-6.

        Raises:
            Diverged: zuko's solver does not arrive.
            Incompatible: z or the context has another width.
        """
        self._check(z, context)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return self.decode(z.clone(), None if context is None else context.clone())
        return self._transform(context)[0].inv(z) if len(z) else z

    def with_numerics(
        self, integrator: Integrator | None = None, trace: TraceEstimator | None = None
    ) -> Flow:
        """Return a CNF solved by other numerics, weights shared; others have none to change."""
        transform = self.net.transform
        if not isinstance(transform, FFJTransform) or (integrator is None and trace is None):
            return self
        velocity = FreeForm(transform, self.dim, self.context_dim)
        integrator = Dopri5(transform.rtol, transform.atol) if integrator is None else integrator
        flow = Continuous(velocity, integrator, Exact() if trace is None else trace)
        # Not `.train(...)`: the transform is shared, and its mode belongs to `net`.
        flow.training = velocity.training = self.training
        return flow

    def _transform(self, context: Tensor | None) -> tuple[Any, Solve | None]:
        transform = self.net.transform(context)
        cnf = isinstance(transform, FreeFormJacobianTransform)
        return transform, Solve(transform) if cnf else None

    def _check(self, x: Tensor, context: Tensor | None) -> None:
        """Say in a sentence what zuko says as a failed matrix product."""
        name, width = type(self.net).__name__, 0 if context is None else context.shape[-1]
        if x.shape[1:] != (self.dim,):
            shape = tuple(x.shape)
            raise Incompatible(f"{name} of zuko has {self.dim} features, got points {shape}")
        if width != self.context_dim:
            raise Incompatible(
                f"{name} of zuko was built for a context of width {self.context_dim}, got {width}: "
                f"set its context_dim to {width}, or give the context it expects"
            )


def _base_dim(net: LazyFlow) -> int:
    """Return the dimension of a flow whose base is N(0, I)."""
    base = net.base() if isinstance(net.base, UnconditionalDistribution) else None
    standard = (
        isinstance(base, DiagNormal)
        and bool((base.mean == 0).all())
        and bool((base.stddev == 1).all())
    )
    if base is None or not standard:
        raise Incompatible(
            f"the base of this {type(net).__name__} is not N(0, I), so its noise is not ours: "
            "judge its density alone, by flowzoo.adapters.adapt(net())"
        )
    return base.event_shape[0]
