"""Convex activations: the ReLU smoothed by a density, with the two derivatives a Hessian needs."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn.functional import softplus

from flowzoo.errors import Incompatible

Smoothing: TypeAlias = Literal["logistic", "gaussian", "gaussian2", "laplace", "cauchy"]


class Softplus:
    r"""s(a) = E[relu(a + noise)]: convex, with s' the noise's distribution and s'' its density.

    | smoothing | s(a) |
    |---|---|
    | `logistic` | log(1 + e^a), the softplus itself |
    | `gaussian` | a Phi(a) + phi(a) |
    | `gaussian2` | twice that |
    | `laplace` | relu(a) + e^-abs(a) / 2 |
    | `cauchy` | a / 2 + (a atan a - log(1 + a^2) / 2) / pi |

    Arguments:
        smoothing: The density.
        centred: Subtract s(0), so that the activation of 0 is 0.
        symmetric: Subtract a / 2, which makes the logistic, Gaussian, Laplace and Cauchy ones even
            functions. They then fall for a < 0: convexity is kept only where a is affine in x.

    Raises:
        Incompatible: There is no such smoothing.

    References:
        Convex Potential Flows (Huang, Chen, Tsirigotis & Courville, ICLR 2021),
        https://arxiv.org/abs/2012.05942, and its code
    """

    def __init__(
        self, smoothing: Smoothing = "logistic", centred: bool = False, symmetric: bool = False
    ) -> None:
        if smoothing not in _KINDS:
            raise Incompatible(f"no smoothing is called '{smoothing}': one of {', '.join(_KINDS)}")
        self.smoothing: Smoothing = smoothing
        self.centred, self.symmetric = centred, symmetric
        self._function: type[_Convex] = _KINDS[smoothing]
        self._shift = self._function.at_zero if centred else 0.0

    def __call__(self, a: Tensor) -> Tensor:
        """Return s(a)."""
        return self.derivatives(a)[0]

    def derivatives(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return s(a), s'(a) and s''(a), each differentiable."""
        # Plain operations serve where nothing is recorded, and the transforms of torch.func.
        recorded = torch.is_grad_enabled() and a.requires_grad
        plain = not recorded or forward_ad._current_level >= 0
        plain = plain or torch._C._are_functorch_transforms_active()
        s, slope, curvature = (self._function.values if plain else self._function.apply)(a)
        if self.symmetric:
            s, slope = torch.sub(s, a, alpha=0.5), slope - 0.5
        return (s - self._shift if self._shift else s), slope, curvature


class _Convex(Function):
    """(s, s', s'') of one smoothing; its derivative costs s''' alone and is differentiable again.

    Backward saves a, s' and s'' as inputs and outputs of this very function, so that the second
    derivative of what it computes goes through it once more, and so on to all orders. A member
    gives `at_zero`, `values` and `third`; `Function` has a metaclass that leaves none for ABC.
    """

    at_zero: float

    @staticmethod
    def values(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return s, s', s''."""
        raise NotImplementedError

    @staticmethod
    def third(a: Tensor, slope: Tensor, curvature: Tensor) -> Tensor:
        """Return s''' from a, s' and s''."""
        raise NotImplementedError

    @classmethod
    def forward(cls, ctx: Any, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s, slope, curvature = cls.values(a)
        ctx.save_for_backward(a, slope, curvature)
        ctx.set_materialize_grads(False)
        return s, slope, curvature

    @classmethod
    def backward(cls, ctx: Any, *grads: Tensor | None) -> Tensor | None:  # pyright: ignore
        a, slope, curvature = ctx.saved_tensors
        factors = (lambda: slope, lambda: curvature, lambda: cls.third(a, slope, curvature))
        total = None
        for g, factor in zip(grads, factors, strict=True):
            if g is not None:
                total = g * factor() if total is None else torch.addcmul(total, g, factor())
        return total


class _Logistic(_Convex):
    at_zero = math.log(2)

    @staticmethod
    def values(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slope = torch.sigmoid(a)
        # Beyond its threshold torch takes softplus for the identity: at 20, too early for float64;
        # beyond 88 the exponential would overflow in float32.
        s = softplus(a, threshold=40)
        return s, slope, slope * torch.sigmoid(-a)

    @staticmethod
    def third(a: Tensor, slope: Tensor, curvature: Tensor) -> Tensor:
        return curvature * (1 - 2 * slope)


class _Gaussian(_Convex):
    at_zero = 1 / math.sqrt(2 * math.pi)

    @staticmethod
    def values(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slope = torch.erf(a * math.sqrt(0.5)).mul_(0.5).add_(0.5)
        curvature = (a * a).mul_(-0.5).add_(math.log(_Gaussian.at_zero)).exp_()
        return torch.addcmul(curvature, a, slope), slope, curvature

    @staticmethod
    def third(a: Tensor, slope: Tensor, curvature: Tensor) -> Tensor:
        return -a * curvature


class _Gaussian2(_Gaussian):
    at_zero = 2 * _Gaussian.at_zero

    @staticmethod
    def values(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s, slope, curvature = _Gaussian.values(a)
        return 2 * s, 2 * slope, 2 * curvature


class _Laplace(_Convex):
    at_zero = 0.5

    @staticmethod
    def values(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        curvature = 0.5 * torch.exp(-a.abs())
        slope = torch.where(a > 0, 1 - curvature, curvature)
        return torch.relu(a) + curvature, slope, curvature

    @staticmethod
    def third(a: Tensor, slope: Tensor, curvature: Tensor) -> Tensor:
        return -a.sign() * curvature


class _Cauchy(_Convex):
    at_zero = 0.0

    @staticmethod
    def values(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slope, square = 0.5 + torch.atan(a) / math.pi, a * a
        s = a * slope - torch.log1p(square) / (2 * math.pi)
        return s, slope, 1 / (math.pi * (1 + square))

    @staticmethod
    def third(a: Tensor, slope: Tensor, curvature: Tensor) -> Tensor:
        return -2 * math.pi * a * curvature * curvature


_KINDS: dict[str, type[_Convex]] = {
    "logistic": _Logistic,
    "gaussian": _Gaussian,
    "gaussian2": _Gaussian2,
    "laplace": _Laplace,
    "cauchy": _Cauchy,
}
