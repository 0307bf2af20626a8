"""Checks of how integrators are differentiated, and of how they count what that costs."""

from __future__ import annotations

import torch
from torch import Tensor

from flowzoo.conformance.check import Failed, check, require
from flowzoo.conformance.probes import invariance
from flowzoo.conformance.probes.known import Watched, start
from flowzoo.conformance.probes.slopes import slopes
from flowzoo.conformance.probes.stepping import SPAN, accurate, equation
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import Incompatible
from flowzoo.integrators import FixedGrid, Integrator, State

LEAVES = tuple(
    f"the gradient in {leaf}"
    for leaf in ("places", "ladj", "costs", "the start", "the end", "the parameters")
)


class _Problem:
    """The known ODE with everything in which its solution can be differentiated."""

    def __init__(self, specimen: Specimen, seed: int = 0) -> None:
        state = start(specimen.points(6, seed=seed))
        self.state: State = tuple(y.requires_grad_() for y in state)
        self.ode = equation(state[0])
        self.ode.a += 0.1 * seed
        self.ode.a.requires_grad_()
        self.t0, self.t1 = (torch.tensor(t, dtype=torch.float64).requires_grad_() for t in SPAN)

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.state, self.t0, self.t1, self.ode.a]

    def solved(self, integrator: Integrator) -> Tensor:
        """Return a number that depends on every entry of the state that is found."""
        params = (self.ode.a,)
        return _weighed(integrator.solve(self.ode, self.state, self.t0, self.t1, params).state)

    def exactly(self) -> Tensor:
        """Return that number of the known solution."""
        return _weighed(self.ode.solution(self.state, self.t0, self.t1))


def _weighed(state: State) -> Tensor:
    parts = []
    for y in state:
        weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view(y.shape)
        parts.append((weights * y).sum())
    return torch.stack(parts).sum()


@check("integrator")
def gradient(specimen: Specimen) -> str:
    """Gradients in state, start, end and parameters are those of the known solution."""
    made, problem = accurate(specimen), _Problem(specimen)
    found = _gradients(problem.solved(made.integrator), problem)
    expected = torch.autograd.grad(problem.exactly(), problem.leaves)
    return invariance.agree(found, expected, 5 * made.allowed, LEAVES)


@check("integrator", of=FixedGrid)
def discrete_gradient(specimen: Specimen) -> str:
    """On a fixed grid the gradient is that of the discrete solution, to rounding."""
    made, problem = specimen.make(), _Problem(specimen)
    return slopes(
        lambda: problem.solved(made),
        problem.leaves,
        specimen.generator(),
        1e-9,
        "the gradient in everything",
    )


@check("integrator")
def second_derivatives(specimen: Specimen) -> str:
    """A gradient can be differentiated again, rightly, or is refused in a sentence."""
    made, problem = accurate(specimen), _Problem(specimen)
    try:
        found = _penalty(problem.solved(made.integrator), problem)
    except Incompatible as refusal:
        return f"refuses, saying: {refusal}"
    expected = _penalty(problem.exactly(), problem)
    names = ("the second derivative in places", "in the parameters")
    return invariance.agree(found, expected, 10 * made.allowed, names)


@check("integrator")
def two_solves(specimen: Specimen) -> str:
    """Two solves before one backward pass do not disturb each other."""
    made, pair = specimen.make(), [_Problem(specimen, seed) for seed in (0, 1)]
    apart = [_gradients(problem.solved(made), problem) for problem in pair]
    both = [problem.solved(made) for problem in pair]
    torch.stack(both).sum().backward()
    said = ""
    for problem, expected in zip(pair, apart, strict=True):
        found = tuple(torch.zeros_like(y) if y.grad is None else y.grad for y in problem.leaves)
        said = invariance.agree(found, expected, 1e-12, LEAVES, "of two solves")
    return said


@check("integrator")
def evaluations(specimen: Specimen) -> str:
    """The evaluations of the field are counted rightly, forward and backward, and as foretold."""
    made, counts = specimen.make(), []
    for wanted in (False, True):
        problem = _Problem(specimen)
        field, params = Watched(problem.ode), (problem.ode.a,)
        with torch.set_grad_enabled(wanted):
            solution = made.solve(field, problem.state, problem.t0, problem.t1, params)
        forward = len(field.calls)
        _counted("forward", solution.nfe.forward, forward)
        foretold = made.evaluations in (None, forward)
        require(
            foretold, f"`evaluations` is {made.evaluations}, the field was asked {forward} times"
        )
        if wanted:
            torch.autograd.grad(_weighed(solution.state), problem.leaves, allow_unused=True)
        _counted("backward", solution.nfe.backward, len(field.calls) - forward)
        counts = [forward, len(field.calls) - forward]
    return f"{counts[0]} forward, {counts[1]} backward"


def _counted(which: str, said: int, true: int) -> None:
    require(said == true, f"nfe.{which} is {said}, the field was asked {true} times")


def _gradients(value: Tensor, problem: _Problem) -> tuple[Tensor, ...]:
    require(value.requires_grad, "the solution has no gradient")
    leaves = problem.leaves
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return tuple(
        torch.zeros_like(y) if g is None else g for y, g in zip(leaves, found, strict=True)
    )


def _penalty(value: Tensor, problem: _Problem) -> tuple[Tensor, ...]:
    """Return the gradients in places and parameters of the squared gradient in the places."""
    (slope,) = torch.autograd.grad(value, problem.state[0], create_graph=True)
    if not slope.requires_grad:
        raise Failed("the gradient has no graph: a penalty on it would vanish without a word")
    return torch.autograd.grad(slope.square().sum(), (problem.state[0], problem.ode.a))
