"""What the judge looks at: a trained flow on test points, solved once by the judge's numerics.

The judge uses the exact trace and an adaptive solver at a stated tolerance, whatever the flow was
trained with. Every metric reads the same solve, the same finer solve of a subsample, and the same
samples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from flowzoo.errors import Diverged, Incompatible, UserError
from flowzoo.flow import Encoded, Flow
from flowzoo.judge.measure import bias_bound, error_of_noise
from flowzoo.judge.numerics import FINER, TOLERANCE, JudgeTrace
from flowzoo.judge.points import Points, Standardised, require_points
from flowzoo.judge.solves import Solved, brought, latent, pieces, running_costs, solve
from flowzoo.odeint import Dopri5
from flowzoo.regularizers import RunningCost

AGAIN = 200  # test points that are solved again, for the solver's error
OWN = 1000  # test points on which the flow's own numerics are tried
REPEATS = 8  # solves with independent probes, where the judge's trace is an estimate
_SAMPLES = 4096  # samples drawn at once


class Subject:
    """A flow under judgement.

    The flow is neither changed nor moved; where it lies on another device it is copied.

    Arguments:
        flow: The trained flow, in evaluation mode, with the numerics it was trained with.
        data: Test points, in the flow's coordinates.
        scale: The map from the data's published coordinates, None where they are the flow's.
        device: Where to compute.
        seed: Seed of every random choice.
        tolerance: Relative and absolute tolerance of the judge's solver.

    Raises:
        UserError: The test points or their contexts are no points, the tolerance is none, or the
            device is not there.
        Incompatible: The flow is of another dimension.
    """

    def __init__(
        self,
        flow: Flow,
        data: Points,
        scale: Standardised | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
        tolerance: float = TOLERANCE,
    ) -> None:
        require_points(flow, data)
        if not 0 < tolerance < math.inf:
            raise UserError(f"the judge's tolerance must be positive and finite, got {tolerance}")
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"the judge is to compute on {device}, but there is no CUDA: use 'cpu'")
        self.flow, dtype = brought(flow, torch.device(device), data.test)
        self.data, self.scale, self.seed, self.tolerance = data, scale, seed, tolerance
        self.x = data.test.to(device=device, dtype=dtype)
        context = data.test_context
        self.context = None if context is None else context.to(device=device, dtype=dtype)
        self._kept: dict[tuple[str, int, int], Any] = {}

    @property
    def volume(self) -> float:
        """The log-determinant of the standardisation, in nats."""
        return 0.0 if self.scale is None else float(self.scale.ladj)

    def generator(self, stream: int = 0) -> torch.Generator:
        """Return a fresh source of randomness, the same at every call with equal streams."""
        return torch.Generator(self.x.device).manual_seed((self.seed << 16) + stream)

    def rows(self, n: int) -> Tensor:
        """Return the indices of n test points chosen at random, or of all where there are fewer."""
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.seed))
        return order[:n].to(self.x.device)

    def places(self, rows: Tensor) -> Tensor:
        """Return test points as float64, not rounded to the flow's precision as those of `x`."""
        test = self.data.test
        return test[rows.to(test.device)].to(self.x.device, torch.float64)

    @cached_property
    def running(self) -> tuple[RunningCost, ...]:
        """What is integrated along the way: transport cost and time, where there is a way."""
        return running_costs(self.judged)

    @cached_property
    def judged(self) -> Flow:
        """The flow with the judge's numerics; the flow itself where it takes no others."""
        return self.flow.with_numerics(_solver(self.tolerance), JudgeTrace())

    @cached_property
    def refined(self) -> Flow:
        """A float64 copy of the flow, solved at a tolerance a hundred times tighter."""
        flow = copy.deepcopy(self.flow).double()
        return flow.with_numerics(_solver(self.tolerance / FINER), JudgeTrace())

    @property
    def finer(self) -> float:
        """Tolerance of the finer solve; 0 for a flow that takes no numerics, or solves no ODE."""
        return self.tolerance / FINER if self.integrates else 0.0

    @property
    def integrates(self) -> bool:
        """Whether the judge's solver had a part in the test points: the flow solves an ODE."""
        encoded = self.solved.encoded
        return self.judged is not self.flow and encoded is not None and bool(encoded.nfe)

    @property
    def numerics(self) -> str:
        """By what the test points are solved, in a clause."""
        if self.judged is self.flow:
            return "its own numerics where a flow takes no others"
        solver = f", dopri5 at {self.tolerance:g}" if self.integrates else ""
        exact = "exact trace" if self.integrates else "exact log-determinant"
        return ("SLQ" if self.trace_error else exact) + solver

    @cached_property
    def solved(self) -> Solved:
        """All test points as the judge sees them, with the costs of `running`.

        Raises:
            Diverged: The solver gave up, or some points have no finite log-density.
        """
        found = self._careful(self.judged, self.tolerance, self.x, self.context)
        bad = int((~found.log_prob.isfinite()).sum())
        if bad:
            raise Diverged(f"{bad} of {len(self.x)} test points have no finite log-density")
        return found

    @property
    def log_prob(self) -> Tensor:
        """log p (n,) of the test points in the data's coordinates, in nats, as float64."""
        return self.solved.log_prob

    @property
    def encoded(self) -> Encoded:
        """All test points sent to noise, with the costs of `running`.

        Raises:
            Incompatible: The flow only knows its density.
        """
        return latent(self.solved)

    def again(self, n: int) -> tuple[Tensor, Solved]:
        """Return the indices of n test points, and what the finer solve makes of them."""

        def make(rows: Tensor) -> Solved:
            context = None if self.context is None else self.context[rows].double()
            return self._careful(self.refined, self.tolerance / FINER, self.places(rows), context)

        return self._of_rows("again", n, make)

    def beside(self, n: int) -> tuple[Tensor, Tensor]:
        """Return the indices of n test points, and their log p by the judge beside `again`.

        That is `log_prob`, unless the judge's trace is an estimate: then the points are solved
        with the probes of the finer solve, so that the two differ by the solver alone.
        """

        def make(rows: Tensor) -> Tensor:
            if not self.trace_error:
                return self.log_prob[rows]
            context = None if self.context is None else self.context[rows]
            return self._solve(self.judged, self.x[rows], context).log_prob

        return self._of_rows("beside", n, make)

    def own(self, n: int) -> tuple[Tensor, Solved]:
        """Return the indices of n test points, and what the flow's own numerics make of them."""

        def make(rows: Tensor) -> Solved:
            context = None if self.context is None else self.context[rows]
            return self._solve(self.flow, self.x[rows], context)

        return self._of_rows("own", n, make)

    def back(self, n: int) -> tuple[Tensor, Tensor]:
        """Return the indices of n test points, and decode(encode(x)) by the judge's numerics."""

        def make(rows: Tensor) -> Tensor:
            def one(part: Tensor) -> Tensor:
                context = None if self.context is None else self.context[rows[part]]
                return self.judged.decode(self.encoded.z[rows[part]], context)

            return torch.cat(list(pieces(one, len(rows), _SAMPLES, rows.device)))

        return self._of_rows("back", n, make)

    def samples(self, n: int, draw: int = 0) -> Tensor:
        """Return n samples (n, d) of the flow by the judge's numerics, as float64.

        They are in the flow's coordinates, and conditioned, if at all, on contexts of test points.

        Arguments:
            n: How many.
            draw: Number of the draw; different ones are independent.

        Raises:
            Diverged: Some are not finite.
        """
        key = ("samples", n, draw)
        if key not in self._kept:
            generator, chosen = self.generator(1 + draw), None
            if self.context is not None:
                every = torch.randint(len(self.x), (n,), generator=generator, device=self.x.device)
                chosen = self.context[every]

            def one(rows: Tensor) -> Tensor:
                context = None if chosen is None else chosen[rows]
                return self.judged.sample(len(rows), context, generator)

            drawn = torch.cat(list(pieces(one, n, _SAMPLES, self.x.device))).double()
            bad = int((~drawn.isfinite()).any(-1).sum())
            if bad:
                raise Diverged(f"{bad} of {n} samples are not finite")
            self._kept[key] = drawn
        return self._kept[key]

    @cached_property
    def trace_error(self) -> float:
        """Standard error of the mean log-density from the noise of a trace estimate, in nats.

        Zero where two solves with independent probes agree in every bit: the trace is exact.
        Otherwise AGAIN points are solved REPEATS times.
        """
        rows = self.rows(AGAIN)
        context = None if self.context is None else self.context[rows]

        def density(repeat: int) -> Tensor:
            solved = self._careful(
                self.judged, self.tolerance, self.x[rows], context, 1000 + repeat
            )
            return solved.log_prob

        first, second = density(0), density(1)
        if torch.equal(first, second):
            return 0.0
        found = [first, second, *(density(i) for i in range(2, REPEATS))]
        return error_of_noise(torch.stack(found), len(self.x))

    @cached_property
    def truncation(self) -> float | None:
        """By how much quadratures that end early may over-estimate the mean log-density, in nats.

        On AGAIN points, what Gauss's rule gives less what Gauss-Radau's gives with the same probes:
        the truth lies between. Zero for an exact trace, None where no Hessian's floor is known.
        """
        if not self.trace_error or self.judged is self.flow:
            return 0.0
        rows, upper = self.beside(AGAIN)
        context = None if self.context is None else self.context[rows]
        below = self.flow.with_numerics(_solver(self.tolerance), JudgeTrace().below())
        try:
            lower = self._careful(below, self.tolerance, self.x[rows], context)
        except Incompatible:
            return None
        return bias_bound(upper - lower.log_prob, len(self.x))

    def _of_rows(self, name: str, n: int, make: Callable[[Tensor], Any]) -> tuple[Tensor, Any]:
        key = (name, min(n, len(self.x)), 0)
        if key not in self._kept:
            rows = self.rows(n)
            self._kept[key] = (rows, make(rows))
        return self._kept[key]

    def _solve(self, flow: Flow, x: Tensor, context: Tensor | None, stream: int = 0) -> Solved:
        running = self.running if flow is not self.flow else running_costs(flow)
        return solve(flow, x, context, running, self.generator(stream), self.volume)

    def _careful(
        self, flow: Flow, tolerance: float, x: Tensor, context: Tensor | None, stream: int = 0
    ) -> Solved:
        try:
            return self._solve(flow, x, context, stream)
        except Diverged as error:
            if self.judged is self.flow:  # not ours to solve, so what it says is all that is known
                raise
            reason = str(error).partition(";")[0]
            raise Diverged(
                f"the judge's solver gave up at a tolerance of {tolerance:g} ({reason}): the "
                "trained flow is too stiff, or not finite, near some test points"
            ) from error


def _solver(tolerance: float) -> Dopri5:
    return Dopri5(tolerance, tolerance)
