"""The objective `matching`: one regression on the velocity, no ODE solved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

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
from flowzoo_matching.parametrised import Parametrised
from flowzoo_matching.path import Affine, PathSample, ProbabilityPath
from flowzoo_matching.schedule import Schedule
from flowzoo_matching.times import TimeLaw, time_law
from flowzoo_matching.weights import Weight, weights


class Matching(Objective):
    """E w(t) |v(t, x_t) - dx_t/dt|^2 / d over data x, noise z ~ N(0, I), pairs of them, and times.

    Its minimiser is E[dx_t/dt | x_t], which carries the data's law to the noise's. The mean is over
    the batch and the d dimensions, weight 1, as published. The value is no measure of quality: at
    its optimum it is the variance of the target, which depends on path and coupling.

    A velocity that is `parametrised` is regressed on what its network predicts: the pair's data or
    noise in place of dx_t/dt, or a score, times sigma, on minus the noise. Every weight and every
    law of times has the same minimiser.

    Arguments:
        path: What lies between data and noise; the straight line when left out.
        coupling: Which data go with which noise; independent when left out.
        times: Law of t on the path's `t_range`.
        weight: The w(t). `constant` is 1; `velocity`, `data`, `noise` and `score` count the error
            of that quantity, whatever the network predicts; `min-snr` is min(alpha^2 / sigma^2,
            clip) in units of the data's error.
        clip: The gamma of `min-snr`.
        unbiased: True divides by the law's density: the minimised mean is that of uniform times,
            and the law changes its variance alone.

    Raises:
        UserError: An unknown law of times, or an unknown weight.
        Incompatible: `clip` is not positive, or the weight needs a schedule that the path lacks.

    References:
        Flow Matching for Generative Modeling (Lipman et al., ICLR 2023),
        https://arxiv.org/abs/2210.02747, equation (9); Improving and Generalizing Flow-Based
        Generative Models with Minibatch Optimal Transport (Tong et al., TMLR 2024),
        https://arxiv.org/abs/2302.00482; min-snr: Efficient Diffusion Training via Min-SNR
        Weighting Strategy (Hang et al., ICCV 2023), https://arxiv.org/abs/2303.09556, gamma = 5
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"weight": "min-snr", "path": {"name": "affine", "schedule": "cosine"}},
        {"times": "stratified", "weight": "data"},
    )

    def __init__(
        self,
        path: ProbabilityPath | None = None,
        coupling: Coupling | None = None,
        times: TimeLaw | Literal["uniform", "stratified", "logit-normal"] = "uniform",
        weight: Weight = "constant",
        clip: float = 5.0,
        unbiased: bool = False,
    ) -> None:
        if weight not in (known := get_args(Weight)):
            raise UserError(f"matching: unknown weight '{weight}'{suggest(weight, known)}")
        if not clip > 0:
            raise Incompatible(f"matching: clip must be positive, got {clip}")
        self.path = Affine() if path is None else path
        if weight != "constant" and not isinstance(self.path, Affine):
            raise Incompatible(
                f"matching: the weight {weight} is made of alpha and sigma, which a path of type "
                f"{type(self.path).__name__} does not have: use weight: constant, or an affine path"
            )
        self.coupling = Independent() if coupling is None else coupling
        self.times = time_law(times)
        self.weight: Weight = weight
        self.clip, self.unbiased = clip, unbiased

    def stages(self, flow: Flow) -> Iterator[Stage]:
        """Yield the one stage: all parameters of the velocity.

        Raises:
            Incompatible: The flow is not one velocity on the time interval [0, 1], or its velocity
                is parametrised on another schedule than the path's.
        """
        flow = _on_unit_interval(flow)
        self._same_schedule(flow)
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
        drawn = self.times.draw(x, generator)
        at = self.path.sample(self._stretched(drawn.t), x, z, generator)
        found, target = self._compared(flow, at, x, z, context)
        if self.weight == "constant" and not self.unbiased:
            total = mse_loss(found, target)
        else:
            w = self._weights(flow, at.t)
            w = w / drawn.density if self.unbiased else w
            total = (w * (found - target).square().mean(-1)).mean()
        return Loss(total, {"matching": total.detach()}, (Evaluations(forward=1),))

    def draw_times(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw a time for each row of x (n, d), as (n,), in the path's range."""
        return self._stretched(self.times.draw(x, generator).t)

    def _stretched(self, t: Tensor) -> Tensor:
        low, high = self.path.t_range
        return low + (high - low) * t

    def _compared(
        self, flow: Continuous, at: PathSample, x: Tensor, z: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return what the network says at the places, and what it should have said on average."""
        velocity = flow.velocity
        if not isinstance(velocity, Parametrised):
            return velocity(at.t, at.x, context), at.v
        found = velocity.net(at.t, at.x, context)
        if velocity.predicts == "score":  # -z / sigma has no finite mean square
            return velocity.schedule.at(at.t[:, None]).sigma * found, -z
        return found, {"velocity": at.v, "data": x, "noise": z}[velocity.predicts]

    def _weights(self, flow: Continuous, t: Tensor) -> Tensor:
        velocity, path = flow.velocity, self.path
        if not isinstance(path, Affine):  # which has the constant weight
            return t.new_ones(t.shape)
        predicts = velocity.predicts if isinstance(velocity, Parametrised) else "velocity"
        compared = "noise" if predicts == "score" else predicts
        return weights(self.weight, compared, path.schedule, t, self.clip)

    def _same_schedule(self, flow: Continuous) -> None:
        velocity, path = flow.velocity, self.path
        if not isinstance(velocity, Parametrised):
            return
        if not isinstance(path, Affine):
            raise Incompatible(
                f"matching: a {type(path).__name__} path does not say what a network that predicts "
                f"the {velocity.predicts} should say: use an affine path"
            )
        if not _equal(velocity.schedule, path.schedule):
            raise Incompatible(
                f"matching: the path's schedule is {_shown(path.schedule)}, but the velocity is "
                f"parametrised on {_shown(velocity.schedule)}: give both the same"
            )


def _equal(one: Schedule, other: Schedule) -> bool:
    return one is other or (type(one) is type(other) and vars(one) == vars(other))


def _shown(schedule: Schedule) -> str:
    options = ", ".join(f"{name}={value}" for name, value in vars(schedule).items())
    return f"{type(schedule).__name__}({options})"


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
