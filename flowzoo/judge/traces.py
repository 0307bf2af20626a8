"""How noisy a flow's own divergence is: the trace estimator that it was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from flowzoo.continuous import Continuous
from flowzoo.errors import Diverged, UserError
from flowzoo.flow import Chain, Flow
from flowzoo.integrators import State
from flowzoo.judge.measure import Measure, Metric, at_least_two, mean
from flowzoo.judge.numerics import piece
from flowzoo.judge.solves import Elapsed, pieces, solve
from flowzoo.judge.subject import OWN, Subject
from flowzoo.judge.truth import root
from flowzoo.maps import LinearMap
from flowzoo.traces import Exact

_STREAM = 3000  # of the generator of probes, apart from those of solves, samples and times


class TraceError(Metric):
    r"""How far a flow's own trace estimator is from the exact divergence, and what comes of it.

        trace-error = sqrt(E_x mean_t (e(t, x_t) - div v(t, x_t))^2)

    `trace-error` is in nats per unit time: e is one estimate with probes of its own, x a test
    point, x_t its trajectory by the judge's solver, and t the middle of each of equal intervals of
    the time that the flow takes. The part `relative` is its ratio to the root mean square of div v.

    `log-prob-noise` is the standard deviation over probes of the log-density of a test point, in
    nats, by the flow's own solver and trace: the root of the mean over test points of
    (l - l')^2 / 2, from two solves with independent probes. It is left out where the own solver
    gives up. An adaptive solver takes other steps for other probes, which is part of it.

    `trace-products` is how many products with the Jacobian one divergence takes: one for each
    probe, d for all rows, none for a closed form. A count has no error.

    In a chain all blocks that are ODEs count, by the time that each takes, and `trace-products` is
    their mean. Flows without an ODE of ours have no trace, and get nothing.

    Arguments:
        times: Times at which each trajectory is looked at.
        subsample: Test points that are looked at.

    Raises:
        UserError: There is no time, or the subsample is smaller than 2.
    """

    ideals: ClassVar[Mapping[str, float]] = {"trace-error": 0.0, "log-prob-noise": 0.0}

    def __init__(self, times: int = 4, subsample: int = OWN) -> None:
        if times < 1:
            raise UserError(f"trace-error needs at least 1 time for each point, got {times}")
        self.times, self.subsample = times, at_least_two("trace-error", subsample)

    def measure(self, subject: Subject) -> dict[str, Measure]:
        """Return `trace-error`, `log-prob-noise`, `trace-products`; nothing without an ODE."""
        own = [block.trace for block, _ in _blocks(subject) if isinstance(block, Continuous)]
        if not own:
            return {}
        squares, exact, products = self._along(subject)
        note = f"the own trace at {self.times} times of each trajectory"
        error = root(mean(squares, better="lower", note=note), "nats per unit time")
        size = float(exact.mean()) ** 0.5
        if size > subject.tolerance:  # below, the divergence itself is rounding
            error = replace(error, parts=error.parts | {"relative": error.value / size})
        count = Measure(products, None, "products", None, {}, "the own trace")
        found = {"trace-error": error}
        random = any(trace.probes(subject.x[:1], subject.generator()) is not None for trace in own)
        variance = self._variance(subject) if random else torch.zeros_like(squares)
        if variance is not None:
            note = "the own solver and trace, two draws of probes"
            found["log-prob-noise"] = root(mean(variance, better="lower", note=note), "nats")
        return found | {"trace-products": count}

    def _variance(self, subject: Subject) -> Tensor | None:
        """Return (l - l')^2 / 2 (n,) of two own solves; None where one gives no number."""
        try:
            rows, first = subject.own(self.subsample)
            context = None if subject.context is None else subject.context[rows]
            second = solve(
                subject.flow,
                subject.x[rows],
                context,
                (),
                subject.generator(_STREAM),
                subject.volume,
            )
        except Diverged:
            return None
        variance = 0.5 * (first.log_prob - second.log_prob).square()
        return variance if bool(variance.isfinite().all()) else None

    def _along(self, subject: Subject) -> tuple[Tensor, Tensor, float]:
        """Return mean squares along each trajectory, of error and divergence, and the products."""
        rows, generator = subject.rows(self.subsample), subject.generator(_STREAM + 1)
        products: list[int] = []

        def one(part: Tensor) -> Tensor:
            some = rows[part]
            context = None if subject.context is None else subject.context[some]
            way = _Way(subject.x[some], context, self.times, generator)
            for own, judged in _blocks(subject):
                way.through(own, judged)
            products.extend(way.products)
            return way.squares / way.elapsed

        parts = pieces(one, len(rows), piece(subject.x.shape[1]), rows.device)
        squares, exact = torch.cat(list(parts), 1)
        return squares, exact, sum(products) / len(products)


class _Way:
    """Points on their way to noise, and what is seen of their divergence.

    Arguments:
        x: Where they are, (n, d).
        context: What they are conditioned on, (n, c).
        times: Times at which to look in each block.
        generator: Source of the probes.
    """

    def __init__(
        self, x: Tensor, context: Tensor | None, times: int, generator: torch.Generator
    ) -> None:
        self.x, self.context, self.times, self.generator = x, context, times, generator
        # The integrals over time of squared error and squared divergence.
        self.squares = torch.zeros(2, len(x), dtype=torch.float64, device=x.device)
        self.elapsed = 0.0
        self.products: list[int] = []

    def through(self, own: Flow, judged: Flow) -> None:
        """Send the points through a block, looking at its trace where it is an ODE."""
        context = self.context if own.context_dim else None
        if not (isinstance(own, Continuous) and isinstance(judged, Continuous)):
            self.x = judged.encode(self.x, (), context).z
            return
        first = None if context is None else context[:1]
        end = float(judged.encode(self.x[:1], (Elapsed(),), first).costs)

        def field(t: Tensor, state: State, stage: int = 0) -> State:
            return (judged.velocity(t, state[0], context),)

        now = 0.0
        for i in range(self.times):
            then = end * (i + 0.5) / self.times
            (self.x,) = judged.solver.solve(field, (self.x,), now, then).state
            self._look(own, then, end / self.times, context)
            now = then
        (self.x,) = judged.solver.solve(field, (self.x,), now, end).state
        self.elapsed += end

    def _look(self, own: Continuous, t: float, span: float, context: Tensor | None) -> None:
        """Compare the two divergences at time t, which stands for a span."""
        x = self.x
        at = own.velocity.at(torch.tensor(t, dtype=x.dtype, device=x.device), x, context)
        counted = _Counted(at.jacobian)
        probes = own.trace.probes(x, self.generator)
        seen = replace(at, jacobian=counted)
        estimate = own.trace.divergence(own.velocity, seen, probes, context).double()
        exact = Exact()(at.jacobian, None).double()
        self.products.append(counted.products)
        self.squares += span * torch.stack([estimate - exact, exact]).square()


class _Counted(LinearMap):
    """A map that counts its products; a row of the whole matrix is one."""

    def __init__(self, a: LinearMap) -> None:
        self.a, self.symmetric, self.products = a, a.symmetric, 0

    def vjp(self, p: Tensor) -> Tensor:
        self.products += len(p) if p.dim() == 3 else 1
        return self.a.vjp(p)

    def jvp(self, p: Tensor) -> Tensor:
        self.products += len(p) if p.dim() == 3 else 1
        return self.a.jvp(p)

    def dense(self) -> Tensor:
        matrix = self.a.dense()
        self.products += matrix.shape[-1]
        return matrix

    def trace(self) -> Tensor | None:
        return self.a.trace()


def _blocks(subject: Subject) -> list[tuple[Flow, Flow]]:
    """Return the blocks of a flow, each with its own and with the judge's numerics."""

    def paired(own: Flow, judged: Flow) -> Iterator[tuple[Flow, Flow]]:
        if not (isinstance(own, Chain) and isinstance(judged, Chain)):
            yield own, judged
            return
        for one, other in zip(own.flows(), judged.flows(), strict=True):
            yield from paired(one, other)

    return list(paired(subject.flow, subject.judged))
