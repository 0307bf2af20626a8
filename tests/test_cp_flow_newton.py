"""Newton's inversion of the gradient of a convex network: exactness, robustness, reports."""

from __future__ import annotations

import math

import pytest
import torch
from cp_flow_oracles import CASES, flow, golden
from torch import nn

from flowzoo.errors import Diverged, UserError
from flowzoo_cp_flow.conformance.inverses import Separable
from flowzoo_cp_flow.convex import Convex
from flowzoo_cp_flow.flow import ConvexFlow
from flowzoo_cp_flow.icnn import InputAugmented
from flowzoo_cp_flow.newton import Newton

F64, F32 = torch.float64, torch.float32
EACH = pytest.mark.parametrize("solver", ["cholesky", "cg"])


def shaken(dim, times=1.6, quadratic=1.0, dtype=F64, width=32, layers=3):
    """Return a flow with random weights, those from x multiplied; the larger, the stiffer."""
    made = ConvexFlow(InputAugmented(dim, width, layers), quadratic=quadratic).to(F64)
    with torch.no_grad():
        made.potential.settle(torch.randn(128, dim, dtype=F64))
        for name, weight in made.potential.named_parameters():
            weight.add_(0.2 * torch.randn_like(weight))
            if weight.dim() == 2 and "positive" not in name:
                weight.mul_(times)
        made.raw_weight.fill_(3.0)
    return made.to(dtype).eval()


def residual(made, x, z, context=None):
    with torch.no_grad():
        return (made.at(x, context).gradient - z).norm(dim=-1)


@EACH
@pytest.mark.parametrize("name", CASES)
def test_it_inverts_the_published_networks(name, solver):
    made, g = flow(name), golden(name)
    z = g["inverse_input"]
    context = g["context"][: len(z)] if "context" in g else None
    found = Newton(solver=solver).solve(made.at, z, context)
    assert found.converged.all()
    assert (found.x - g["inverse_exact"]).abs().max() < 1e-9
    assert (found.x - g["inverse_official_batch"]).abs().max() < 1e-5  # as close as L-BFGS comes


@EACH
@pytest.mark.parametrize(("dtype", "allowed"), [(F64, 1e-10), (F32, 1e-5)])
@pytest.mark.parametrize("dim", [1, 2, 8, 43])
def test_residuals_are_within_the_precision_after_a_few_iterations(dim, dtype, allowed, solver):
    made = shaken(dim, dtype=dtype)
    z = torch.randn(64, dim, dtype=dtype)
    found = Newton(solver=solver).solve(made.at, z)
    assert found.converged.all()
    assert residual(made, found.x, z).max() <= allowed * 1.01
    assert 1 <= found.iterations.max() <= 8


@EACH
def test_stiff_networks_are_inverted(solver):
    made = shaken(8, times=10.0, quadratic=0.1)
    z = torch.randn(64, 8, dtype=F64)
    found = Newton(solver=solver).solve(made.at, z)
    assert found.converged.all()
    assert residual(made, found.x, z).max() <= 1e-10


@EACH
def test_stiff_networks_in_single_precision_reach_what_rounding_leaves(solver):
    made = shaken(8, times=10.0, quadratic=0.1, dtype=F32)
    z = torch.randn(64, 8)
    found = Newton(solver=solver).solve(made.at, z)
    assert found.converged.all()
    assert (found.residual > 1e-5).any()  # or else this tests nothing
    with torch.no_grad():
        size = made.at(found.x).hessian.dense().norm(dim=(-2, -1))
    rounding = torch.finfo(F32).eps * (z.norm(dim=-1) + size * found.x.norm(dim=-1))
    assert (found.residual <= 1e-5 + 20 * rounding).all()


@EACH
def test_a_nearly_flat_potential_with_sharp_kinks_is_inverted(solver):
    """Eigenvalues from 1e-3 to more than a hundred, a kink in between wherever one looks."""
    made = shaken(4, times=30.0, quadratic=1e-3)
    z = torch.randn(64, 4, dtype=F64)
    found = Newton(solver=solver, failed="keep").solve(made.at, z)
    assert found.converged.all()
    assert residual(made, found.x, z).max() <= 1e-8


@EACH
def test_far_out_it_is_as_exact(solver):
    made = shaken(5)
    z = torch.randn(32, 5, dtype=F64) * torch.logspace(0, 4, 32, dtype=F64)[:, None]
    found = Newton(solver=solver).solve(made.at, z)
    assert found.converged.all()
    assert (residual(made, found.x, z) <= 1e-10 + 1e-13 * z.norm(dim=-1)).all()


def test_an_easy_sample_beside_a_hard_one_does_not_wait_for_it():
    made = Separable(3, "cosh")
    z = torch.randn(6, 3, dtype=F64)
    z[4] *= 1e4
    found = Newton().solve(made.at, z)
    assert found.converged.all()
    assert found.iterations[4] > 2 * found.iterations[:4].max()
    assert torch.allclose(found.x, made.inverse(z).detach(), atol=1e-9)


def test_done_samples_are_not_evaluated_again():
    made, sizes = Separable(3, "cosh"), []

    def at(x, context=None):
        sizes.append(len(x))
        return made.at(x, context)

    z = torch.randn(50, 3, dtype=F64)
    z[7] *= 1e6
    found = Newton().solve(at, z)
    assert found.converged.all()
    reference, start, *trials = sizes
    assert (reference, start) == (32, 1)
    assert sum(trials) == found.iterations.sum()  # one each, and none beside


@EACH
def test_the_mean_hessian_makes_the_first_step(solver):
    """It solves a quadratic."""
    made = Separable(6, "bowl")
    found = Newton(solver=solver).solve(made.at, torch.randn(9, 6, dtype=F64))
    assert found.iterations.max() == 1


@EACH
@pytest.mark.parametrize("closed", [True, False])
def test_a_potential_that_is_not_convex_is_reported(solver, closed):
    class Saddle(Convex):
        def __init__(self):
            super().__init__()
            self.dim, self.w = 2, nn.Parameter(torch.ones(2, dtype=F64))

        def forward(self, x, context=None):
            u = x * self.w
            return u[:, 0] ** 4 / 4 - 2 * u[:, 0] ** 2 + 0.5 * u[:, 1] ** 2

    made, z = Saddle(), torch.tensor([[0.1, 0.3], [30.0, 0.2]], dtype=F64)
    found = Newton(solver=solver).solve(made.at, z)
    assert found.indefinite.tolist() == [True, False]
    assert found.converged.tolist() == [False, True]
    with pytest.raises(Diverged, match=r"1 of 2 .* not positive definite.*not strictly convex"):
        Newton(solver=solver)(made.at, z)


@EACH
def test_a_search_that_leads_nowhere_ends_before_its_iterations_do(solver):
    """The gradient is bounded, and z is beyond."""
    made, z = Separable(3, "cone"), 0.1 * torch.randn(5, 3, dtype=F64)
    z[2] = 40.0
    found = Newton(solver=solver).solve(made.at, z)
    assert found.converged.tolist() == [True, True, False, True, True]
    assert found.iterations[2] < 100


def test_what_takes_too_long_says_how_far_it_came():
    made, z = shaken(3), torch.randn(10, 3, dtype=F64)
    found = Newton(iterations=1).solve(made.at, z)
    assert not found.converged.any()
    assert (found.iterations == 1).all()
    assert torch.allclose(found.residual, residual(made, found.x, z), atol=1e-12)
    sentence = r"10 of 10 samples .* worst residual is .* after 1 iterations, allowed 1e-10"
    with pytest.raises(Diverged, match=sentence):
        Newton(iterations=1)(made.at, z)


def test_the_distance_bounds_the_error():
    made, x = shaken(4, quadratic=0.2), torch.randn(30, 4, dtype=F64)
    with torch.no_grad():
        z = made.at(x).gradient
    found = Newton(tolerance=1e-2).solve(made.at, z)
    error = (found.x - x).norm(dim=-1)
    assert (error <= found.distance + 1e-12).all()
    assert error.max() > 1e-6  # or else this tests nothing
    assert torch.allclose(found.distance, found.residual / 0.2)


def test_no_floor_is_no_bound():
    made = Separable(3, "cone")
    found = Newton().solve(made.at, 0.1 * torch.randn(4, 3, dtype=F64))
    assert (found.distance == math.inf).all()


def test_large_batches_go_in_blocks(monkeypatch):
    from flowzoo_cp_flow import newton

    made, z = shaken(6), torch.randn(40, 6, dtype=F64)
    whole = Newton(solver="cholesky").solve(made.at, z)
    monkeypatch.setattr(newton, "_BLOCK", 7 * 36)
    parts = Newton(solver="cholesky").solve(made.at, z)
    assert torch.allclose(parts.x, whole.x, atol=1e-10)
    derived = Separable(6, "cosh", closed=False)  # whose Hessians offer no blocks
    found = Newton(solver="cholesky").solve(derived.at, z)
    assert torch.allclose(found.x, derived.inverse(z).detach(), atol=1e-9)


def test_solvers_are_chosen_by_the_dimension(monkeypatch):
    from flowzoo_cp_flow import newton

    asked = []
    exact = newton._exact
    monkeypatch.setattr(newton, "_exact", lambda *given: asked.append(0) or exact(*given))
    for dim, factors in ((newton._FEW, True), (newton._FEW + 1, False)):
        asked.clear()
        Newton().solve(Separable(dim).at, torch.randn(5, dim, dtype=F64))
        assert bool(asked) == factors


@pytest.mark.parametrize(
    "options", [{"tolerance": 0.0}, {"tolerance": -1.0}, {"iterations": 0}, {"tolerance": math.nan}]
)
def test_numbers_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(UserError, match=f"newton: {name} must be"):
        Newton(**options)
