"""The published inversion: one L-BFGS for a batch, and what it is worth."""

from __future__ import annotations

import pytest
import torch
from cp_flow_oracles import CASES, flow, golden
from test_cp_flow_newton import residual, shaken

from flowzoo.errors import Diverged, UserError
from flowzoo_cp_flow.conformance.inverses import Separable
from flowzoo_cp_flow.lbfgs import LBFGS
from flowzoo_cp_flow.newton import Newton

F64 = torch.float64


@pytest.mark.parametrize("name", [name for name in CASES if "res" not in name])
def test_it_comes_to_where_the_published_code_does(name):
    """To rounding, and so not to the solution."""
    made, g = flow(name), golden(name)
    z = g["inverse_input"]
    context = g["context"][: len(z)] if "context" in g else None
    found = LBFGS().solve(made.at, z, context)
    assert found.converged.all()
    assert (found.x - g["inverse_official_batch"]).abs().max() < 1e-9
    assert (found.x - g["inverse_exact"]).abs().max() > 1e-8


def test_its_residual_is_reported_and_larger_than_newtons():
    made, z = shaken(8), torch.randn(64, 8, dtype=F64)
    found = LBFGS().solve(made.at, z)
    assert torch.allclose(found.residual, residual(made, found.x, z), atol=1e-13)
    assert found.converged.all()
    assert found.residual.max() > 100 * Newton().solve(made.at, z).residual.max()
    assert (found.distance >= found.residual / 1.01).all()  # the floor is 1


def test_in_single_precision_it_stops_far_from_the_solution():
    made, z = shaken(8, times=4.0, dtype=torch.float32), torch.randn(256, 8)
    found = LBFGS().solve(made.at, z)
    assert found.residual.max() > 10 * Newton().solve(made.at, z).residual.max()
    assert not LBFGS(tolerance=1e-5).solve(made.at, z).converged.all()


def test_samples_are_coupled_and_say_the_same_number_of_iterations():
    made, z = Separable(3, "cosh"), torch.randn(20, 3, dtype=F64)
    together, alone = LBFGS().solve(made.at, z), LBFGS().solve(made.at, z[:1])
    assert together.iterations.unique().numel() == 1
    assert together.iterations[0] > alone.iterations[0]
    assert not torch.equal(together.x[0], alone.x[0])


def test_its_tolerance_and_iterations_are_options():
    made, z = shaken(3), torch.randn(10, 3, dtype=F64)
    assert not LBFGS(tolerance=1e-15).solve(made.at, z).converged.all()
    short = LBFGS(iterations=2).solve(made.at, z)
    assert (short.iterations == 2).all()
    with pytest.raises(Diverged, match="l-bfgs: 10 of 10 samples were not inverted"):
        LBFGS(iterations=2)(made.at, z)
    with pytest.raises(UserError, match="l-bfgs: iterations must be at least 1, got 0"):
        LBFGS(iterations=0)


def test_it_decodes_differentiably():
    made = shaken(3, width=8)
    made.inversion = LBFGS()
    z = torch.randn(4, 3, dtype=F64, requires_grad=True)
    again = made.encode(made.decode(z)).z
    (g,) = torch.autograd.grad(again.sum(), z)
    assert torch.allclose(g, torch.ones_like(g), atol=1e-5)


@pytest.mark.parametrize("spoiled", ["z", "context"])
def test_a_number_that_is_none_spoils_no_other_sample(spoiled):
    made = Separable(2, "cosh", 2)
    given = {"z": torch.randn(4, 2, dtype=F64), "context": torch.randn(4, 2, dtype=F64)}
    expected = made.inverse(**given)
    given[spoiled][1, 0] = torch.nan
    found = LBFGS().solve(made.at, **given)
    assert found.converged.tolist() == [True, False, True, True]
    assert torch.allclose(found.x[[0, 2, 3]], expected[[0, 2, 3]], atol=1e-5)
