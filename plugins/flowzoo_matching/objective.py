"""The objective `matching`: one regression on the velocity, no ODE solved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible, UserError
from flowzoo.flow import Flow
from flowzoo.integrators import Evaluations
from flowzoo.objective import Batch, Loss, Objective, Stage
from flowzoo.registry import suggest
from flowzoo_matching.coupling import Coupling, Independent
from flowzoo_matching.path import Affine, ProbabilityPath

TimeLaw = Literal["uniform", "stratified", "logit-normal"]


class Matching(Objective):
    """E |v(t, x_t) - dx_t/dt|^2 / d over data x, noise z ~ N(0, I), pairs of them, and times t.

    Its minimiser is E[dx_t/dt | x_t], which carries the data's law to the noise's. The mean is over
    the batch and the d dimensions, weight 1, as published. The value is no measure of quality: at
    its optimum it is the variance of the target, which depends on path and coupling.

    Arguments:
        path: What lies between data and noise; the straight line when left out.
        coupling: Which data go with which noise; independent when left out.
        times: Law of t on the path's `t_range`. `stratified` is uniform too, with one time in each
            n-th of the range per batch of n, which lowers the variance; `logit-normal`, the sigmoid
            of N(0, 1), spends most of the batch in the middle and hardly any at the ends, which
            sharpen the likelihood.

    Raises:
        UserError: An unknown law of times.

    References:
        Flow Matching for Generative Modeling (Lipman et al., ICLR 2023),
        https://arxiv.org/abs/2210.02747, equation (9); Improving and Generalizing Flow-Based
        Generative Models with Minibatch Optimal Transport (Tong et al., TMLR 2024),
        https://arxiv.org/abs/2302.00482; the logit-normal law: Scaling Rectified Flow Transformers
        (Esser et al., ICML 2024), https://arxiv.org/abs/2403.03206
    """

    def __init__(
        self,
        path: ProbabilityPath | None = None,
        coupling: Coupling | None = None,
        times: TimeLaw = "uniform",
    ) -> None:
        if times not in _TIME_LAWS:
            raise UserError(f"matching: unknown times '{times}'{suggest(times, _TIME_LAWS)}")
        self.path = Affine() if path is None else path
        self.coupling = Independent() if coupling is None else coupling
        self.times: TimeLaw = times

    def stages(self, flow: Flow) -> Iterator[Stage]:
        """Yield the one stage: all parameters of the velocity.

        Raises:
            Incompatible: The flow is not one velocity on the time interval [0, 1].
        """
        flow = _on_unit_interval(flow)
        yield Stage(
            "matching",
            list(flow.velocity.parameters()),
            lambda batch, noise: self.loss(flow, batch, noise),
        )

    def loss(
        self, flow: Continuous, batch: Batch, generator: torch.Generator | None = None
    ) -> Loss:
        """Return the regression's loss on a batch: one evaluation of the velocity."""
        z = torch.randn(
            batch.x.shape, dtype=batch.x.dtype, device=batch.x.device, generator=generator
        )
        pairs = self.coupling.pair(batch.x, z, batch.context, generator)
        x, z = pairs.of_data(batch.x), pairs.of_noise(z)
        context = None if batch.context is None else pairs.of_data(batch.context)
        at = self.path.sample(self.draw_times(x, generator), x, z)
        total = mse_loss(flow.velocity(at.t, at.x, context), at.v)
        return Loss(total, {"matching": total.detach()}, (Evaluations(forward=1),))

    def draw_times(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw a time for each row of x (n, d), as (n,), in the path's range."""
        low, high = self.path.t_range
        return low + (high - low) * _TIME_LAWS[self.times](x, generator)


def _on_unit_interval(flow: Flow) -> Continuous:
    if not isinstance(flow, Continuous):
        raise Incompatible(
            f"matching regresses the velocity of a single continuous flow, which "
            f"{type(flow).__name__} does not have: use the flow `continuous`"
        )
    if flow.end_time != 1 or flow.raw_end_time is not None:
        found = "a learned one" if flow.raw_end_time is not None else f"end_time {flow.end_time}"
        raise Incompatible(
            f"matching's paths reach the noise at time 1, but this flow has {found}: "
            "set end_time: 1 and train_end_time: false"
        )
    return flow


def _uniform(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(x.shape[0], dtype=x.dtype, device=x.device, generator=generator)


def _stratified(x: Tensor, generator: torch.Generator | None) -> Tensor:
    # Shuffled: rows that come in the same order every time must not see the same times every time.
    strata = torch.randperm(x.shape[0], device=x.device, generator=generator)
    return (strata + _uniform(x, generator)) / x.shape[0]


def _logit_normal(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape[0], dtype=x.dtype, device=x.device, generator=generator).sigmoid()


_TIME_LAWS: dict[str, Callable[[Tensor, torch.Generator | None], Tensor]] = {
    "uniform": _uniform,
    "stratified": _stratified,
    "logit-normal": _logit_normal,
}
