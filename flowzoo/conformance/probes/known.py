"""What checks compare with: linear maps, an ODE and an optimal flow in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from flowzoo.conformance.check import Failed
from flowzoo.field import Point
from flowzoo.integrators import Field, State, Time
from flowzoo.maps import LinearMap

PATIENCE = 100_000  # evaluations after which a solve is taken to hang


class Known(LinearMap):
    """Maps given by their matrices, one for all samples (1, d, d) or one for each (n, d, d).

    Arguments:
        a: The matrices.
        symmetric: Whether they are.
        closed: Whether it knows its trace.
        floor: A lower bound of their eigenvalues, where it knows one.
    """

    def __init__(
        self,
        a: Tensor,
        symmetric: bool = False,
        closed: bool = False,
        floor: float | Tensor | None = None,
    ) -> None:
        self.a, self.symmetric, self.closed, self.floor = a, symmetric, closed, floor

    def vjp(self, p: Tensor) -> Tensor:
        """Return A^T p."""
        return p @ self.a[0] if len(self.a) == 1 else (p[..., None, :] @ self.a)[..., 0, :]

    def jvp(self, p: Tensor) -> Tensor:
        """Return A p."""
        return p @ self.a[0].T if len(self.a) == 1 else (p[..., None, :] @ self.a.mT)[..., 0, :]

    def dense(self) -> Tensor:
        """Return A."""
        return self.a

    def trace(self) -> Tensor | None:
        """Return tr A where it is known."""
        return self.a.diagonal(dim1=-2, dim2=-1).sum(-1) if self.closed else None

    def rows(self, index: Tensor) -> Known:
        """Return those of some samples; the one for all is theirs, too."""
        a = self.a if len(self.a) == 1 else self.a[index]
        return Known(a, self.symmetric, self.closed, self.floor)


class Watched:
    """A field that keeps every evaluation in `calls`, as (stage, t), and stops a solve that hangs.

    Arguments:
        field: The field.
    """

    def __init__(self, field: Field) -> None:
        self.field = field
        self.calls: list[tuple[int, Tensor]] = []

    def __call__(self, t: Tensor, state: State, stage: int = 0) -> State:
        """Return what the field returns.

        Raises:
            Failed: It was evaluated more often than any solve needs.
        """
        self.calls.append((stage, t.detach()))
        if len(self.calls) > PATIENCE:
            raise Failed(f"a solve did not end within {PATIENCE} evaluations of its field")
        return self.field(t, state, stage)


class Logistic:
    """dx/dt = g(t) x (1 - x) with g = a + cos 3t: nonlinear, not autonomous, solved in closed form.

    With s = a (t1 - t0) + (sin 3 t1 - sin 3 t0) / 3 and D = 1 - x + x e^s the solution is
    x e^s / D, its log-determinant the sum of s - 2 log D, and the integral of g x that of log D,
    which is the cost here.

    Arguments:
        a: The coefficients a, (d,) or ().
    """

    def __init__(self, a: Tensor) -> None:
        self.a = a

    def __call__(self, t: Tensor, state: State, stage: int = 0) -> State:
        """Return the derivative of as many entries as the state has."""
        x, g = state[0], self.a + torch.cos(3 * t)
        slopes = (g * x * (1 - x), (g * (1 - 2 * x)).sum(-1), _columns((g * x).sum(-1), state))
        return slopes[: len(state)]

    def solution(self, state: State, t0: Time, t1: Time) -> State:
        """Return the state at t1, differentiable in everything."""
        t0, t1 = (torch.as_tensor(t, dtype=state[0].dtype) for t in (t0, t1))
        x, s = state[0], self.a * (t1 - t0) + (torch.sin(3 * t1) - torch.sin(3 * t0)) / 3
        d = 1 - x + x * s.exp()
        gained = ((s - 2 * d.log()).sum(-1), _columns(d.log().sum(-1), state))
        return (x * s.exp() / d, *(y + z for y, z in zip(state[1:], gained, strict=False)))


def _columns(cost: Tensor, state: State) -> Tensor:
    return cost[:, None].expand(-1, state[2].shape[1] if len(state) > 2 else 1)


def start(x: Tensor, entries: int = 3, costs: int = 1) -> State:
    """Return a state with places in (0, 1), and with integrals begun before in ladj and costs."""
    places = 0.1 + 0.8 * torch.sigmoid(x)
    return (places, x.new_full((len(x),), -0.2), x.new_full((len(x), costs), 0.5))[:entries]


def optimal_point(x: Tensor, t: float = 0.4, scale: float = 2.0) -> Point:
    """Return a point of the optimal flow from N(0, scale^2 I) to N(0, I).

    With m = 1 / scale - 1 it moves x_0 to x_0 (1 + m t), by v = c x with c = m / (1 + m t); its
    potential is -c |x|^2 / 2, so that dPhi/dt = |v|^2 / 2: the Hamilton-Jacobi-Bellman equation.
    """
    rate = (1 / scale - 1) / (1 + (1 / scale - 1) * t)
    v = rate * x
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    jacobian = Known(rate * eye[None].expand(len(x), -1, -1), True)
    return Point(torch.tensor(t, dtype=x.dtype), x, v, jacobian, 0.5 * v.square().sum(-1))
