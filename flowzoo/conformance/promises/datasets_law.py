"""What a data set promises of its law: density, score, transport, velocity and cost agree.

Expectations are tested against the test rows, at five standard errors; the draws are seeded.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowzoo.conformance.check import Skipped, check, off_by, require
from flowzoo.conformance.probes.moments import ERRORS, standard_normal
from flowzoo.conformance.probes.rows import loaded, takes
from flowzoo.conformance.specimen import Specimen
from flowzoo.data.dataset import Data
from flowzoo.errors import UserError

_DIM = 3  # of a data set that takes a dimension
_ROWS = 2000  # test rows that expectations are compared with
_SOME = 50  # rows at which derivatives are compared
_TIMES = (0.1, 0.5, 0.9)
_STEP = 1e-5  # of finite differences, in units of the range
_NODES = 5184  # of a quadrature
_DIGITS = 1e-5  # entropies from tables have six decimals


@check("dataset")
def density(specimen: Specimen) -> str:
    """The mean of -log_prob over the test rows is the stated entropy, within 5 standard errors."""
    data = loaded(specimen, _DIM, test=_ROWS)
    if data.log_prob is None:
        raise Skipped("its density is not known")
    given = () if data.test_context is None else (data.test_context,)
    found = data.log_prob(data.test, *given)
    expected = data.test.shape[:1]
    require(
        found.shape == expected, f"log_prob is {tuple(found.shape)}, expected {tuple(expected)}"
    )
    lost = int((~found.isfinite()).sum())
    require(not lost, f"log_prob is not finite at {lost} of {len(found)} test rows")
    alone = data.log_prob(data.test[:7], *(context[:7] for context in given))
    said = off_by(alone, found[:7], 1e-9, "log_prob of seven rows alone")
    if data.entropy is None:
        return said
    error = math.hypot(_error(found), data.entropy_error)
    return _within(-float(found.mean()) - data.entropy, error, "mean -log_prob - entropy")


@check("dataset")
def mass(specimen: Specimen) -> str:
    """In one and two dimensions the density integrates to 1, for the first context if any.

    By the trapezoidal rule on a grid that reaches to infinity; its error is what the 2^d coarser
    grids that it consists of disagree by.
    """
    said = []
    free = "dim" in takes(specimen) and "dim" not in specimen.spec
    for dim in (1, 2) if free else (2,):
        try:
            data = loaded(specimen, dim, train=_ROWS)
        except UserError:
            continue  # its options exclude this dimension
        if data.log_prob is None:
            raise Skipped("its density is not known")
        if data.dim > 2:
            raise Skipped(f"it has {data.dim} dimensions, too many for a quadrature")
        integral, error = _integral(_given_one(data), data.train)
        allowed = 5e-3 + 2 * error
        require(
            abs(integral - 1) <= allowed,
            f"for d = {data.dim} the density integrates to {integral:.4g}, "
            f"allowed 1 ± {allowed:.1g}",
        )
        said.append(f"integral {integral:.4f} for d = {data.dim}, allowed 1 ± {allowed:.0e}")
    return "; ".join(said)


@check("dataset")
def score(specimen: Specimen) -> str:
    """The score is the gradient of the log-density, by finite differences."""
    data, oracle = _known(specimen, "score", "log_prob")
    x = data.test[:_SOME]
    return off_by(oracle.score(x), _derivatives(oracle.log_prob, x), 1e-6, "the score")


@check("dataset")
def transport(specimen: Specimen) -> str:
    """The transport map carries the rows to N(0, I), is a convex gradient, and can be undone."""
    data, oracle = _known(specimen, "transport")
    z = oracle.transport(data.test)
    require(z.shape == data.test.shape, f"T(x) is {tuple(z.shape)}, x {tuple(data.test.shape)}")
    said = [standard_normal(z, "T(x)")]
    jacobian = _derivatives(oracle.transport, data.test[:_SOME])
    off_by(jacobian.mT, jacobian, 1e-6, "dT/dx, transposed,")
    lowest = float(torch.linalg.eigvalsh(0.5 * (jacobian + jacobian.mT)).min())
    require(
        lowest > 0, f"T is not the gradient of a convex function: dT/dx has a slope {lowest:.2g}"
    )
    if getattr(oracle, "inverse_transport", None) is not None:
        back = oracle.inverse_transport(z)
        said.append(off_by(back, data.test, 1e-8, "inverse_transport(transport(x))"))
    return "; ".join(said)


@check("dataset")
def velocity(specimen: Specimen) -> str:
    """The velocity is the time derivative of (1 - t) x + t T(x), at its place."""
    data, oracle = _known(specimen, "velocity", "transport")
    x, said = data.test[:_SOME], ""
    moves = oracle.transport(x) - x
    for t in _TIMES:
        there = x + t * moves
        said = off_by(oracle.velocity(t, there), moves, 1e-8, f"the velocity at t = {t}")
        times = torch.full((len(x),), t, dtype=x.dtype)
        off_by(oracle.velocity(times, there), moves, 1e-8, "the velocity at times (n,)")
        if getattr(oracle, "interpolate", None) is not None:
            off_by(oracle.interpolate(t, x), there, 1e-10, f"interpolate at t = {t}")
    return said


@check("dataset")
def potential(specimen: Specimen) -> str:
    """The velocity is minus the potential's gradient, and d Phi/dt = |grad Phi|^2 / 2."""
    data, oracle = _known(specimen, "potential", "velocity")
    x, said = data.test[:_SOME], []
    for t in _TIMES:
        v = oracle.velocity(t, x)
        slope = _derivatives(functools.partial(oracle.potential, t), x)
        ahead, behind = (oracle.potential(t + s, x) for s in (_STEP, -_STEP))
        rate, energy = (ahead - behind) / (2 * _STEP), 0.5 * v.square().sum(-1)
        said = [
            off_by(-slope, v, 1e-6, f"minus the potential's gradient at t = {t}"),
            off_by(rate, energy, 1e-6, f"d Phi/dt, |grad Phi|^2 / 2 expected, at t = {t}"),
        ]
    return "; ".join(said)


@check("dataset")
def cost(specimen: Specimen) -> str:
    """The transport cost is the mean of |x - T(x)|^2 / 2 over the test rows, within 5 errors."""
    data, oracle = _known(specimen, "transport")
    if data.transport_cost is None:
        raise Skipped("its transport cost is not known")
    found = 0.5 * (data.test - oracle.transport(data.test)).square().sum(-1)
    gap = float(found.mean()) - data.transport_cost
    return _within(gap, _error(found), "mean |x - T(x)|^2 / 2 - transport_cost")


@check("dataset")
def matching_velocity(specimen: Specimen) -> str:
    """The marginal velocity u of linear paths is E[z - y | x_t], tested by functions of x_t.

    For functions f(x_t) the mean of (z - y - u) f is zero, within 5 standard errors.
    """
    data, oracle = _known(specimen, "matching_velocity")
    y = data.test
    z = torch.randn(y.shape, generator=specimen.generator(9), dtype=y.dtype)
    worst = 0.0
    for t in _TIMES:
        x = (1 - t) * y + t * z
        rest = z - y - oracle.matching_velocity(t, x)
        low, middle, high = _quartiles(x)
        unit = (x - middle) / (high - low)
        tests = torch.cat([torch.ones_like(x[:, :1]), unit.sin(), (2 * unit).cos()], 1)
        products = (rest[:, :, None] * tests[:, None, :]).flatten(1)
        errors = products.std(0) / len(products) ** 0.5
        worst = max(worst, float((products.mean(0) / errors).abs().max()))
    require(worst <= ERRORS, f"z - y - u is {worst:.3g} standard errors from E[. | x_t] = 0")
    return f"z - y - u within {worst:.2g} standard errors of E[. | x_t] = 0, allowed {ERRORS:g}"


@check("dataset")
def modes(specimen: Specimen) -> str:
    """The Gaussian components that it states add up to its density."""
    data, oracle = _known(specimen, "modes", "log_prob")
    weights, means, scale = oracle.modes.weights, oracle.modes.means, oracle.modes.scale
    right = weights.dim() == 1 and means.shape == (len(weights), data.dim) and scale > 0
    require(right, f"weights {tuple(weights.shape)}, means {tuple(means.shape)}, scale {scale:g}")
    off_by(weights.sum(), torch.ones_like(weights.sum()), 1e-12, "the sum of the weights")
    square = ((data.test[:, None] - means) / scale).square().sum(-1)
    constant = weights.log() - data.dim * (math.log(scale) + 0.5 * math.log(2 * math.pi))
    expected = (constant - 0.5 * square).logsumexp(-1)
    return off_by(oracle.log_prob(data.test), expected, 1e-9, f"log_prob of {len(means)} modes")


def _known(specimen: Specimen, *wanted: str) -> tuple[Data, Any]:
    """Return the rows and an oracle that knows what is wanted.

    Raises:
        Skipped: There is no oracle, or it does not know.
    """
    data = loaded(specimen, _DIM, test=_ROWS)
    for name in wanted:
        if getattr(data.oracle, name, None) is None:
            said = "it has no oracle" if data.oracle is None else f"its oracle knows no {name}"
            raise Skipped(said)
    return data, data.oracle


def _within(gap: float, error: float, what: str) -> str:
    allowed = ERRORS * error + _DIGITS
    require(abs(gap) <= allowed, f"{what} is {gap:.3g}, allowed ±{allowed:.2g}")
    return f"{what} {gap:.1e}, allowed ±{allowed:.0e}"


def _integral(log_prob: Callable[[Tensor], Tensor], rows: Tensor) -> tuple[float, float]:
    """Integrate a density over R^d; returns the integral and an error.

    x = middle + width tan(pi (u - 1/2)) makes the integrand periodic in u, so that the rule
    converges faster than any power for smooth densities.
    """
    d = rows.shape[1]
    n = 2 * round(_NODES ** (1 / d) / 2)
    low, middle, high = _quartiles(rows)
    width = torch.minimum(0.5 * (rows.amax(0) - rows.amin(0)), 1.5 * (high - low))
    index = torch.cartesian_prod(*[torch.arange(n)] * d).reshape(-1, d)
    y = torch.tan(math.pi * ((index.to(rows) + 0.3) / n - 0.5))  # 0.3: neither symmetric nor at 0
    values = log_prob(middle + width * y).exp() * (math.pi * width * (1 + y.square())).prod(-1)
    which = (index % 2 * 2 ** torch.arange(d)).sum(-1)
    coarser = torch.stack([values[which == k].mean() for k in range(2**d)])
    return float(values.mean()), _error(coarser)


def _given_one(data: Data) -> Callable[[Tensor], Tensor]:
    """Return the log-density as a function of the place alone."""
    assert data.log_prob is not None
    if data.test_context is None:
        return data.log_prob
    known, context = data.log_prob, data.test_context[:1]
    return lambda x: known(x, context.expand(len(x), -1))


def _quartiles(x: Tensor) -> Tensor:
    return x.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=x.dtype), 0)


def _error(values: Tensor) -> float:
    return float(values.std()) / len(values) ** 0.5


def _derivatives(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the derivatives of fn (n, ...) in x (n, d) as (n, ..., d), by central differences."""
    low, _, high = _quartiles(x)
    columns = []
    for j, h in enumerate(_STEP * (high - low)):
        step = torch.zeros_like(x)
        step[:, j] = h
        columns.append((fn(x + step) - fn(x - step)) / (2 * h))
    return torch.stack(columns, -1)
