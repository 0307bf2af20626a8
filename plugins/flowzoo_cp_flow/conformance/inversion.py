"""Checks of inversions: that grad F(x) = z where they say so, and that they say where not.

The functions F are those of `inverses`, so that solutions and their derivatives are known.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from flowzoo.conformance.check import Failed, check, off_by, require
from flowzoo.conformance.probes import invariance
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import Diverged, FlowzooError
from flowzoo_cp_flow.conformance.inverses import SHAPES, Separable, Shape
from flowzoo_cp_flow.convex import ConvexPoint
from flowzoo_cp_flow.inversion import Inversion, Inverted, OnFailure

_WIDTH = 2  # of contexts
_FAR: dict[Shape, float] = {"bowl": 30.0, "cosh": 1.0, "cone": 2.0}  # times x
_PATIENCE = 5000  # evaluations after which a search is taken to hang
_ROUNDING = 1e-12
_BAD = 3  # the sample that fails


@check("inversion")
def shapes(specimen: Specimen) -> str:
    """A report has the shapes and dtypes that z implies, also for no z, for one and in R^1."""
    made: Inversion = specimen.make()
    for n, d, dtype in (
        (5, 3, torch.float64),
        (5, 3, torch.float32),
        (0, 3, torch.float64),
        (1, 3, torch.float64),
        (4, 1, torch.float64),
    ):
        f, z = Separable(d, dtype=dtype), specimen.points(n, d, dtype)
        found = _solved(made, f, z)
        for what, y, shape in (
            ("x", found.x, (n, d)),
            ("the residual", found.residual, (n,)),
            ("iterations", found.iterations, (n,)),
            ("converged", found.converged, (n,)),
        ):
            require(y.shape == shape, f"{what} has shape {tuple(y.shape)}, expected {shape}")
        require(found.x.dtype == found.residual.dtype == dtype, f"z is {dtype}, x {found.x.dtype}")
        require(found.converged.dtype == torch.bool, f"converged is {found.converged.dtype}")
        require(
            made(_watched(f), z).shape == (n, d), f"the x of {n} z have another shape than they"
        )
    return "as documented"


@check("inversion")
def solves(specimen: Specimen) -> str:
    """The gradient of F at x is z to the tolerance, near and far, whatever the Hessians offer."""
    made: Inversion = specimen.make()
    said = ""
    for shape in SHAPES:
        for d, far, closed in (
            (3, 1.0, True),
            (1, 1.0, True),
            (7, _FAR[shape], True),
            (3, 1.0, False),
        ):
            f, z = _problem(specimen, shape, d, far, closed)
            said = _right(made, f, z, _solved(made, f, z), f"{shape} in R^{d}")
    return said


@check("inversion")
def contexts(specimen: Specimen) -> str:
    """Each sample is solved in its own context, also where some take longer than others."""
    made: Inversion = specimen.make()
    said = ""
    for closed in (True, False):
        f = Separable(3, "cosh", _WIDTH, closed=closed)
        context = specimen.points(12, _WIDTH, seed=1)
        spread = torch.linspace(0.1, 4, 12, dtype=torch.float64).roll(5)
        z = specimen.points(12, 3) * spread[:, None]
        said = _right(made, f, z, _solved(made, f, z, context), "contexts", context)
    return said


@check("inversion")
def residual(specimen: Specimen) -> str:
    """The residual of the report is that of its x, and a bound of the distance is one."""
    made: Inversion = specimen.make()
    f, z = _problem(specimen, "cosh", 3)
    found = _solved(made, f, z)
    said = off_by(found.residual, _missed(f, z, found.x), _ROUNDING, "the residual")
    away = (found.x - f.inverse(z)).norm(dim=-1)
    require(bool((away <= found.distance + _ROUNDING).all()), "x is farther away than `distance`")
    return said


@check("inversion")
def failures(specimen: Specimen) -> str:
    """A z that has no x, or is not a number, fails as it is asked to; the other z are solved."""
    made: Inversion = specimen.make()
    for what, value in (("no x", 50.0), ("nan", torch.nan), ("inf", torch.inf)):
        f, z = _problem(specimen, "cone", 3)
        z[_BAD, 0] = value
        found, good = _solved(made, f, z), torch.arange(len(z)) != _BAD
        require(not found.converged[_BAD], f"a z with {what} is said to have converged")
        require(bool(found.converged[good].all()), f"a z with {what} spoils the other samples")
        _right(made, f, z[good], _some(found, good), f"others of a z with {what}")
        for failed in ("nan", "keep"):
            x = _asked(made, failed)(_watched(f), z).detach()
            off_by(x[good], found.x[good], _ROUNDING, f"with failed: {failed} x")
        x = _asked(made, "nan")(_watched(f), z)
        require(bool(x[_BAD].isnan().all()), f"a z with {what} is not nan with failed: nan")
        _refused(_asked(made, "raise"), f, z, what)
    return "flagged, raised or nan; the others are right"


@check("inversion")
def batch_independence(specimen: Specimen) -> str:
    """A sample alone has the same x as in a batch, to the tolerance."""
    made: Inversion = specimen.make()
    f, z = _problem(specimen, "cosh", 3)
    allowed = _ROUNDING + 2 * made.allowed(z.dtype) / f.floor

    def solved(z: Tensor) -> tuple[Tensor]:
        return (_solved(made, f, z).x,)

    return invariance.batch_independence(solved, (z,), allowed, ("x",))


@check("inversion")
def gradients(specimen: Specimen) -> str:
    """The derivatives of x in z, the context and the weights are those of the inverse."""
    made: Inversion = specimen.make()
    said = ""
    for closed in (True, False):
        f = Separable(3, "cosh", _WIDTH, closed=closed)
        leaves = (specimen.points(8, 3), specimen.points(8, _WIDTH, seed=1))
        z, context = (y.requires_grad_() for y in leaves)
        seed = specimen.points(8, 3, seed=2)
        at = (z, context, *f.parameters())
        x = made(_watched(f), z, context)
        require(x.requires_grad, "x is not differentiable")
        found = torch.autograd.grad(x, at, seed, allow_unused=True)
        expected = torch.autograd.grad(f.inverse(z, context), at, seed)
        allowed = 1e-9 + 10 * made.allowed(z.dtype) / f.floor
        for what, one, other in zip(("z", "context", "R", "K"), found, expected, strict=True):
            require(one is not None, f"no gradient arrives in {what}")
            assert one is not None
            said = off_by(one, other, allowed, f"the gradient in {what}")
    return said


@check("inversion")
def manners(specimen: Specimen) -> str:
    """Nothing is recorded without need or changed in place, and nothing but z decides."""
    made: Inversion = specimen.make()
    f, z = _problem(specimen, "cosh", 3)
    before = torch.get_rng_state()
    with invariance.untouched((z, *f.parameters()), "z or a weight"):
        first = _solved(made, f, z).x
    require(torch.equal(before, torch.get_rng_state()), "torch's global generator is used")
    require(torch.equal(first, _solved(made, f, z).x), "two inversions of the same z differ")
    require(not first.requires_grad, "`solve` records a graph")
    with torch.no_grad():
        require(not made(_watched(f), z).requires_grad, "a graph is recorded where none is wanted")
    with torch.inference_mode():
        off_by(made(_watched(f), z.clone()), first, _ROUNDING, "x in inference mode")
    require(all(w.grad is None for w in f.parameters()), "weights were given gradients")
    return "the same twice, without a graph unless one is wanted"


@check("inversion")
def precision(specimen: Specimen) -> str:
    """In float32 the residual is within what is allowed there, whatever the default dtype."""
    made: Inversion = specimen.make()
    f = Separable(3, "cosh", dtype=torch.float32)
    z = specimen.points(8, 3, torch.float32)

    def solved(z: Tensor) -> tuple[Tensor]:
        return (_solved(made, f, z).x,)

    invariance.ignores_default_dtype(solved, (z,), ("x",))
    found = _solved(made, f, z)
    require(bool(found.converged.all()), "not all float32 samples converge")
    allowed = made.allowed(torch.float32) + 1e-5
    return off_by(_missed(f, z, found.x), torch.zeros(8), allowed, "the float32 residual")


def _problem(
    specimen: Specimen, shape: Shape, d: int, far: float = 1.0, closed: bool = True
) -> tuple[Separable, Tensor]:
    """Return F and z (8, d), those of normal x times `far`."""
    f, x = Separable(d, shape, closed=closed), far * specimen.points(8, d)
    with torch.no_grad():
        return f, f.at(x).gradient


def _watched(f: Separable) -> Callable[..., ConvexPoint]:
    """Return `f.at`, which raises Failed where it is asked for too often."""
    calls = 0

    def at(x: Tensor, context: Tensor | None = None) -> ConvexPoint:
        nonlocal calls
        calls += 1
        if calls > _PATIENCE:
            raise Failed(f"a search did not end within {_PATIENCE} evaluations of F")
        return f.at(x, context)

    return at


def _solved(made: Inversion, f: Separable, z: Tensor, context: Tensor | None = None) -> Inverted:
    return made.solve(_watched(f), z, context)


def _missed(f: Separable, z: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Return |grad F(x) - z| (n,)."""
    with torch.no_grad():
        return (f.at(x, context).gradient - z).norm(dim=-1)


def _right(
    made: Inversion,
    f: Separable,
    z: Tensor,
    found: Inverted,
    what: str,
    context: Tensor | None = None,
) -> str:
    """Return by how much grad F(x) misses z, or raise Failed."""
    require(bool(found.converged.all()), f"{what}: {int((~found.converged).sum())} do not converge")
    allowed = made.allowed(z.dtype) + _ROUNDING * float(z.abs().max())
    missed = _missed(f, z, found.x, context)
    return off_by(missed, torch.zeros_like(missed), allowed, f"{what}: grad F(x) - z")


def _some(found: Inverted, which: Tensor) -> Inverted:
    parts = (found.x, found.residual, found.iterations, found.converged)
    return Inverted(*(y[which] for y in parts))


def _asked(made: Inversion, failed: OnFailure) -> Callable[..., Tensor]:
    """Return an inversion that does so with what fails."""
    other = copy.copy(made)
    other.failed = failed
    return other


def _refused(inversion: Callable[..., Tensor], f: Separable, z: Tensor, what: str) -> None:
    """Raise Failed unless Diverged is raised, with a sentence."""
    try:
        inversion(_watched(f), z)
    except Diverged as error:
        sentence = len(str(error).split()) >= 5
        require(sentence, f"a z with {what} is refused without a reason: '{error}'")
        return
    except FlowzooError as error:
        raise Failed(f"a z with {what} raises {type(error).__name__}, not Diverged") from error
    raise Failed(f"a z with {what} raises nothing")
