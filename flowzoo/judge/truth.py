"""How far a flow is from the truth, where it is known: its density, its map, its velocity.

The error of the transport cost is `optimality`, the ratio to the least cost (`trajectories`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from flowzoo.continuous import Continuous
from flowzoo.errors import UserError
from flowzoo.judge.likelihood import density_change, density_gap, truncated
from flowzoo.judge.measure import Measure, Metric, at_least_two, mean
from flowzoo.judge.solves import pieces
from flowzoo.judge.subject import AGAIN, Subject, latent
from flowzoo.judge.trajectories import resolution

_STREAM = 2000  # of the generator of times and noise, apart from those of solves and samples
_AT_ONCE = 4096  # points at which a velocity is asked for at once

Known = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class DensityError(Metric):
    """Mean absolute error of the log-density, E |log p_data(x) - log p_flow(x)|, in nats.

    Over test points; unlike the KL's, its terms do not cancel. The error's part `trace` bounds what
    the noise of a trace estimate adds to a mean of absolute values, which it does not average out
    of: by the triangle inequality, no more than the noise of a single point.

    Arguments:
        subsample: Points that are solved again, for the solver's part of the error.

    Raises:
        UserError: The subsample is smaller than 2.
    """

    def __init__(self, subsample: int = AGAIN) -> None:
        self.subsample = at_least_two("density-error", subsample)

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `density-error`, or nothing where the density is not known."""
        gap = density_gap(subject)
        if gap is None:
            return {}
        rows, _ = subject.again(self.subsample)
        fine = gap[rows] + density_change(subject, self.subsample)
        change, noise = gap[rows].abs() - fine.abs(), subject.trace_error * len(gap) ** 0.5
        note = "absolute differences to the true log-density"
        found = mean(
            gap.abs(),
            change,
            finer=subject.finer,
            trace=noise,
            unit="nats",
            better="lower",
            note=note,
        )
        return {"density-error": truncated(found, subject.truncation)}


class MapError(Metric):
    r"""Distance of the flow's map from the optimal one, sqrt(E |z - T(x)|^2), in units.

    Over test points, z = encode(x) by the judge. The part `uvp` is the unexplained variance
    percentage 100 E |z - T(x)|^2 / d of the noise, d its total variance; `uvp_error` is its error.

    Arguments:
        subsample: Points that are solved again, for the solver's part of the error.

    Raises:
        UserError: The subsample is smaller than 2.

    References:
        Do Neural Optimal Transport Solvers Work? A Continuous Wasserstein-2 Benchmark (Korotin,
        Li, Genevay, Solomon, Filippov & Burnaev, NeurIPS 2021), https://arxiv.org/abs/2106.01954
    """

    def __init__(self, subsample: int = AGAIN) -> None:
        self.subsample = at_least_two("map-error", subsample)

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `map-error`, or nothing where the optimal map is not known."""
        transport = getattr(subject.data.oracle, "transport", None)
        if transport is None or not subject.flow.latent:
            return {}
        rows, fine = subject.again(self.subsample)
        ideal = transport(subject.data.test.double()).to(subject.x.device)
        squared = (subject.encoded.z.double() - ideal).square().sum(-1)
        change = squared[rows] - (latent(fine).z - ideal[rows]).square().sum(-1)
        square = mean(
            squared, change, finer=subject.finer, better="lower", note="root mean square distance"
        )
        found, percent = root(square, "units"), 100 / ideal.shape[1]
        parts = found.parts | {"uvp": percent * square.value}
        if square.error is not None:
            parts["uvp_error"] = percent * square.error
        return {"map-error": replace(found, parts=parts)}


class VelocityError(Metric):
    r"""Relative error of the velocity, sqrt(E int |v - u|^2 dt / E int |u|^2 dt), in unit time.

    A flow that ends at T is brought to unit time, v(t T, x) T. `velocity-error` compares with the
    optimal velocity u = T(x) - x at X_t = (1 - t) x + t T(x), T the optimal map (displacement
    interpolation); it is left out where nothing has to move. `matching-velocity-error` compares
    with the marginal velocity of linear paths u(t, X_t), X_t = (1 - t) x + t e with independent
    noise e ~ N(0, I). The points x are the test points, each with stratified times; v is evaluated
    by a float64 copy of the flow. Only a flow that is one ODE has a velocity.

    Arguments:
        times: Times for each point, one drawn uniformly in each of as many equal intervals.

    Raises:
        UserError: There is no time.

    References:
        A computational fluid mechanics solution to the Monge-Kantorovich mass transfer problem
        (Benamou & Brenier, Numerische Mathematik 2000); Flow Matching for Generative Modeling
        (Lipman et al., ICLR 2023), https://arxiv.org/abs/2210.02747
    """

    def __init__(self, times: int = 8) -> None:
        if times < 1:
            raise UserError(f"velocity-error needs at least 1 time for each point, got {times}")
        self.times = times

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `velocity-error` and `matching-velocity-error`, each where its u is known."""
        if not isinstance(subject.flow, Continuous) or not subject.running:
            return {}
        transport = getattr(subject.data.oracle, "transport", None)
        marginal = getattr(subject.data.oracle, "matching_velocity", None)
        measures = {}
        if transport is not None:

            def displaced(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
                ideal = transport(x)
                return x + t[:, None] * (ideal - x), ideal - x

            measures["velocity-error"] = self._relative(subject, displaced, "of optimal transport")
        if marginal is not None:
            noise = subject.generator(_STREAM + 1)

            def mixed(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
                e = torch.randn(x.shape, generator=noise, dtype=x.dtype, device=x.device)
                place = x + t[:, None] * (e - x)
                return place, marginal(t, place)

            measures["matching-velocity-error"] = self._relative(subject, mixed, "of linear paths")
        return {name: found for name, found in measures.items() if found is not None}

    def _relative(self, subject: Subject, known: Known, whose: str) -> Measure | None:
        """Return the relative error; None where the known velocity is not resolved from zero."""
        off, size = self._squares(subject, known)
        if (whole := float(size.mean())) <= resolution(subject):
            return None
        ratio = float(off.mean()) / whole
        values = ratio + (off - ratio * size) / whole  # linearised, as for a ratio of means
        return root(mean(values, better="lower", note=f"against the velocity {whose}"), "")

    def _squares(self, subject: Subject, known: Known) -> tuple[Tensor, Tensor]:
        """Return |v - u|^2 and |u|^2, both (n,), averaged over the times of each point."""
        n, device, flow = len(subject.x), subject.x.device, subject.refined
        assert isinstance(flow, Continuous)
        velocity, end = flow.velocity, subject.encoded.costs[:, 1].double().mean()
        draws = torch.rand(
            n, self.times, generator=subject.generator(_STREAM), dtype=end.dtype, device=device
        )
        t = (torch.arange(self.times, device=device) + draws) / self.times

        def squares(rows: Tensor) -> Tensor:
            x, found = subject.places(rows), []
            context = None if subject.context is None else subject.context[rows].double()
            for at in t[rows].unbind(1):
                place, u = known(at, x)
                v = end * velocity(end * at, place, context)
                found.append(torch.stack([(v - u).square().sum(-1), u.square().sum(-1)]))
            return torch.stack(found).mean(0)

        off, size = torch.cat(list(pieces(squares, n, _AT_ONCE, device)), 1)
        return off, size


def root(square: Measure, unit: str) -> Measure:
    """Return the root of a measured mean square.

    The interval [m - e, m + e] of the square is mapped to that of the root; half its width is the
    distance from sqrt(m) to the further end. Unlike the linearised e / (2 sqrt(m)), it holds zero
    where that of the square does.
    """
    root = math.sqrt(square.value)

    def distance(error: float) -> float:
        low = math.sqrt(max(square.value - error, 0.0))
        return max(root - low, math.sqrt(square.value + error) - root)

    parts = {name: distance(error) for name, error in square.parts.items()}
    error = None if square.error is None else distance(square.error)
    return replace(square, value=root, error=error, unit=unit, parts=parts)
