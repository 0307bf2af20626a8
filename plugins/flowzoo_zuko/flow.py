"""The component `zuko`: any flow of zuko that sends data to N(0, I)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from flowzoo.errors import UserError
from flowzoo.flow import Encoded, Flow
from flowzoo.integrators import Integrator
from flowzoo.registry import suggest
from flowzoo.regularizers import RunningCost
from flowzoo.traces import TraceEstimator
from flowzoo_zuko.adopted import Adopted
from flowzoo_zuko.library import LazyFlow, flows

Architecture: TypeAlias = Literal[
    "realnvp", "maf", "nsf", "naf", "unaf", "sospf", "bpf", "gf", "cnf"
]

_CLASSES: dict[str, Callable[..., LazyFlow]] = {
    "realnvp": flows.RealNVP,
    "maf": flows.MAF,
    "nsf": flows.NSF,
    "naf": flows.NAF,
    "unaf": flows.UNAF,
    "sospf": flows.SOSPF,
    "bpf": flows.BPF,
    "gf": flows.GF,
    "cnf": flows.CNF,
}


class Zuko(Flow):
    """A flow of zuko, built from its options; `Adopted` has what it does.

    zuko's NICE is its RealNVP under another name (both affine), its NCSF lives on a torus and its
    GMM is no flow, so they are not offered. Splines and Bernstein polynomials move points in
    [-5, 5] only: standardise. naf, unaf, sospf, bpf and gf invert by bisection, to 1e-6 and within
    [-10, 10]. Where the other end does not reach all of R^d, as it may not for naf, unaf, sospf and
    gf, the density integrates to less than one. The checks look at those that keep all promises.

    Arguments:
        dim: Dimension d of the data.
        architecture: realnvp, affine couplings; maf, affine autoregressive; nsf, autoregressive
            rational-quadratic splines; naf, monotonic networks; unaf, integrals of positive
            networks; sospf, sums of squares of polynomials; bpf, Bernstein polynomials; gf,
            Gaussianization; cnf, a free-form ODE with the exact trace and zuko's ELU, whose
            divergence has kinks that take solvers many steps.
        transforms: Number of transforms, 3 when left out; a cnf is one.
        hidden: Widths of the hidden layers of every network. A gf without context has none.
        bins: Bins of the splines of nsf, 8 when left out; no other architecture has any.
        tolerance: Relative and absolute tolerance of zuko's solver for a cnf, 1e-5 and 1e-6 when
            left out; that of the log-determinant is absolute and a hundred times larger.
        context_dim: Width of the context, 0 for none.

    Raises:
        UserError: The architecture is unknown, has no such option, or a number is not positive.

    References:
        Density estimation using Real NVP (Dinh et al., ICLR 2017), https://arxiv.org/abs/1605.08803
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al., NeurIPS 2017),
        https://arxiv.org/abs/1705.07057
        Neural Spline Flows (Durkan et al., NeurIPS 2019), https://arxiv.org/abs/1906.04032
        Neural Autoregressive Flows (Huang et al., ICML 2018), https://arxiv.org/abs/1804.00779
        Unconstrained Monotonic Neural Networks (Wehenkel & Louppe, NeurIPS 2019),
        https://arxiv.org/abs/1908.05164
        Sum-of-Squares Polynomial Flow (Jaini et al., ICML 2019), https://arxiv.org/abs/1905.02325
        Short-Term Density Forecasting of Low-Voltage Load using Bernstein-Polynomial Normalizing
        Flows (Arpogaus et al., 2022), https://arxiv.org/abs/2204.13939
        Gaussianization Flows (Meng et al., AISTATS 2020), https://arxiv.org/abs/2003.01941
        FFJORD (Grathwohl et al., ICLR 2019), https://arxiv.org/abs/1810.01367
    """

    examples: ClassVar[list[dict[str, Any]]] = [
        {"architecture": name, "hidden": [16]} for name in ("realnvp", "maf", "nsf", "cnf")
    ]

    def __init__(
        self,
        dim: int,
        architecture: Architecture,
        transforms: int | None = None,
        hidden: Sequence[int] = (64, 64),
        bins: int | None = None,
        tolerance: float | None = None,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        if architecture not in _CLASSES:
            hint = suggest(architecture, _CLASSES)
            raise UserError(f"zuko: unknown architecture '{architecture}'{hint}")
        options = _options(architecture, transforms=transforms, bins=bins, tolerance=tolerance)
        widths = [_at_least(1, "every width in hidden", width) for width in hidden]
        net = _CLASSES[architecture](dim, context_dim, hidden_features=widths, **options)
        self.flow = Adopted(net, context_dim)
        self.dim, self.context_dim = dim, context_dim
        self.train()

    def train(self, mode: bool = True) -> Zuko:
        """Set the mode of this flow; zuko's modules stay in training mode.

        There it changes no value, only whether the weights take part in gradients.
        """
        super().train(mode)
        self.flow.net.train()
        return self

    def encode(
        self,
        x: Tensor,
        running: Sequence[RunningCost] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """Send data to noise."""
        return self.flow.encode(x, running, context, generator)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Send noise to data."""
        return self.flow.decode(z, context)

    def with_numerics(
        self, integrator: Integrator | None = None, trace: TraceEstimator | None = None
    ) -> Flow:
        """Return a cnf solved by other numerics, weights shared; others have none to change."""
        other = self.flow.with_numerics(integrator, trace)
        return self if other is self.flow else other


def _options(architecture: str, **given: float | None) -> dict[str, Any]:
    """Return what is given as arguments of zuko's class."""
    options: dict[str, Any] = {}
    for name, number in given.items():
        if number is None:
            continue
        if not _has(architecture, name):
            raise UserError(f"zuko: {architecture} has no {name}; leave it out, got {number}")
        if name == "tolerance":
            if not number > 0:
                raise UserError(f"zuko: tolerance must be positive, got {number}")
            options |= {"rtol": number, "atol": number}
        else:
            options[name] = _at_least(2 if name == "bins" else 1, name, int(number))
    return options


def _has(architecture: str, option: str) -> bool:
    only = {"bins": "nsf", "tolerance": "cnf"}
    return architecture == only[option] if option in only else architecture != "cnf"


def _at_least(least: int, name: str, number: int) -> int:
    if number < least:
        raise UserError(f"zuko: {name} must be at least {least}, got {number}")
    return number
