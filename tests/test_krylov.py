"""Krylov spaces against eigenvalues and dense solves: bounds, breakdowns, samples apart."""

from __future__ import annotations

import pytest
import torch
from oracles import F64, Matrix, gap, with_spectrum

from flowzoo.krylov import Tridiagonal, lanczos, quadrature, solve
from flowzoo.logdet import brackets

SPECTRA = {
    "spread": torch.logspace(-1, 2, 12, dtype=F64),
    "clustered": torch.cat([torch.linspace(0.5, 0.6, 6), torch.linspace(50, 60, 6)]).to(F64),
    "at its floor": torch.cat([torch.full((7,), 0.3), torch.tensor([1.0, 2, 5, 9, 40])]).to(F64),
    "a multiple of the identity": torch.full((12,), 0.7, dtype=F64),
}


class Rows(Matrix):
    """Matrices that give those of some samples, and count the products of each sample."""

    def __init__(self, a, symmetric=True, counts=None, index=None):
        super().__init__(a, symmetric)
        self.counts = torch.zeros(len(a), dtype=torch.long) if counts is None else counts
        self.index = torch.arange(len(a)) if index is None else index

    def vjp(self, p):
        self.counts[self.index] += 1
        return super().vjp(p)

    def rows(self, index):
        return Rows(self.a[index], True, self.counts, self.index[index])


def bounded(a, floor):
    map_ = Matrix(a, True)
    map_.floor = floor
    return map_


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def forms(a, p, fn):
    """Return p' f(A) p (k, n) from the eigenvalues."""
    values, vectors = torch.linalg.eigh(a)
    return ((vectors.mT @ p[..., None])[..., 0].square() * fn(values)).sum(-1)


def matrix(t):
    """Return T (k, n, m, m)."""
    links = t.coupling[..., :-1]
    return torch.diag_embed(t.diagonal) + torch.diag_embed(links, 1) + torch.diag_embed(links, -1)


# --- Lanczos and its quadratures -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_basis_is_orthonormal_and_projects_the_map_on_t(dtype):
    a = with_spectrum(torch.logspace(0, 3, 43, dtype=F64), n=3).to(dtype)
    t, basis = lanczos(Matrix(a, True), normal(2, 3, 43, dtype=dtype), 43)
    eps = torch.finfo(dtype).eps
    assert (basis @ basis.mT - torch.eye(43, dtype=dtype)).abs().max() < 50 * eps
    assert gap(basis @ a @ basis.mT, matrix(t)) < 50 * eps * 1e3


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_radau_fixes_a_node_and_is_exact_to_one_degree_more_than_gauss(steps):
    a, p = with_spectrum([0.2, 0.7, 1.1, 1.6, 2.0, 2.9], n=3), normal(2, 3, 6)
    t, _ = lanczos(Matrix(a, True), p, steps)
    nodes, vectors = t.radau(torch.tensor(0.15, dtype=F64))
    assert gap(nodes[..., 0], torch.full((2, 3), 0.15, dtype=F64)) < 1e-13
    square = p.square().sum(-1)
    for degree, exact in ((2 * steps, True), (2 * steps + 1, False)):
        found = square * quadrature(lambda x, k=degree: x**k, nodes, vectors)
        error = ((found / forms(a, p, lambda x, k=degree: x**k)) - 1).abs()
        assert error.max() < 1e-12 if exact else error.min() > 1e-8


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("steps", range(1, 13))
def test_gauss_lies_above_and_radau_below(name, steps):
    a, p = with_spectrum(SPECTRA[name], n=5), normal(6, 5, 12)
    for share in (1.0, 0.5):  # a floor that is an eigenvalue, and one that is not
        floor = share * float(SPECTRA[name].min())
        lower, upper = brackets(bounded(a, floor), p, steps)
        truth = forms(a, p, torch.log)
        rounding = 1e-11 * p.square().sum(-1)
        assert (lower <= truth + rounding).all()
        assert (truth <= upper + rounding).all()
        if steps == 12:
            assert gap(lower, upper) < 1e-10


def test_brackets_close_in_as_steps_are_taken():
    a, p = with_spectrum(SPECTRA["spread"], n=5), normal(6, 5, 12)
    widths = []
    for steps in (2, 4, 6, 8):
        lower, upper = brackets(bounded(a, 0.1), p, steps)
        widths.append((upper - lower).mean().item())
    assert widths[0] > 2 * widths[1] > 4 * widths[2] > 8 * widths[3] > 0


@pytest.mark.parametrize("steps", [5, 10, 43])
def test_brackets_in_single_precision(steps):
    spectrum = torch.logspace(0, 4, 43, dtype=F64)
    a, p = with_spectrum(spectrum, n=4), normal(8, 4, 43)
    lower, upper = brackets(bounded(a.float(), 1.0), p.float(), steps)
    truth = forms(a, p, torch.log)
    allowed = 2e-3 * p.square().sum(-1)
    assert (lower.to(F64) <= truth + allowed).all()
    assert (upper.to(F64) >= truth - allowed).all()


def test_a_floor_that_rounding_puts_above_an_eigenvalue_keeps_the_nodes_finite_and_above():
    """The pivots of T - floor are positive but for rounding; here they are zero, and negative."""
    one, half = torch.ones(1, 3, 2), torch.full((1, 3, 2), 0.5)
    t = Tridiagonal(one, half, torch.tensor([[2, 2, 1]]))
    for floor in (1.0, 1.0 + 1e-7):
        nodes, vectors = t.radau(torch.tensor(floor))
        assert nodes.isfinite().all()
        assert (nodes >= floor).all()
        assert quadrature(torch.log, nodes, vectors).isfinite().all()


def test_a_matrix_that_is_no_number_gives_none_and_leaves_the_others():
    a = with_spectrum([1.0, 2.0, 3.0], n=3)
    a[1] = torch.nan
    lower, upper = brackets(bounded(a, 0.5), normal(2, 3, 3), 3)
    for each in (lower, upper):
        assert each[:, 1].isnan().all()
        assert each[:, [0, 2]].isfinite().all()


def test_no_maps_and_probes_of_zeros():
    empty = brackets(bounded(torch.zeros(0, 3, 3, dtype=F64), 1.0), torch.zeros(2, 0, 3), 2)
    assert [tuple(x.shape) for x in empty] == [(2, 0), (2, 0)]
    p = torch.stack([torch.zeros(3), torch.ones(3)]).to(F64)[None]
    lower, upper = brackets(bounded(with_spectrum([1.0, 2.0, 3.0], n=2), 1.0), p, 2)
    assert lower[0, 0] == upper[0, 0] == 0
    assert lower[0, 1] > 0


# --- conjugate gradients -------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [True, False])
def test_solutions_are_those_of_a_dense_solve(rows):
    """Easy and hard samples together, those that are done leaving the batch or not."""
    spectra = [[1.0] * 12, [1.0] * 6 + [3.0] * 6, torch.logspace(-1, 1, 12), SPECTRA["spread"]]
    a = torch.cat([with_spectrum(s, seed=i) for i, s in enumerate(spectra)])
    b = normal(3, 4, 12)
    found = solve(Rows(a) if rows else Matrix(a, True), b, 1e-10, cap=60)
    assert gap(found.x, torch.linalg.solve(a, b[..., None])[..., 0]) < 1e-8
    assert found.converged.all()
    assert (found.residual <= 1e-10).all()
    assert found.steps[:, 0].tolist() == [1] * 3
    assert found.steps[:, 1].tolist() == [2] * 3
    assert (found.steps[:, 3] > 10).all()


def test_samples_that_are_done_leave_the_batch():
    easy = with_spectrum([2.0] * 12, n=9)
    a = Rows(torch.cat([easy, with_spectrum(SPECTRA["spread"])]))
    found = solve(a, normal(2, 10, 12), 1e-8, cap=40)
    assert a.counts[:9].tolist() == [1] * 9
    assert a.counts[9] == found.steps[:, 9].max() > 10


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_sample_is_the_same_alone_as_beside_a_hard_one(rows, dtype):
    """Among them one that is solved exactly in a step, whose residual is 0."""
    kind = Rows if rows else (lambda a: Matrix(a, True))
    a = torch.stack([2 * torch.eye(12, dtype=F64), with_spectrum(SPECTRA["spread"])[0]]).to(dtype)
    b = torch.ones(1, 2, 12, dtype=dtype)
    together = solve(kind(a), b, atol=0.0, cap=12)
    assert together.x[0, 0].tolist() == [0.5] * 12
    assert together.residual[0, 0] == 0
    assert together.steps[0].tolist() == [1, 12]
    assert together.x.isfinite().all()
    alone = solve(kind(a[1:]), b[:, 1:], atol=0.0, cap=12)
    assert gap(together.x[:, 1:], alone.x) <= 10 * torch.finfo(dtype).eps * alone.x.abs().max()


@pytest.mark.parametrize("rows", [True, False])
def test_values_are_those_of_the_steps_that_each_took(rows):
    spectra = [[2.0] * 12, [1.0] * 6 + [3.0] * 6, torch.logspace(-1, 1, 12), SPECTRA["spread"]]
    a = torch.cat([with_spectrum(s, seed=i) for i, s in enumerate(spectra)])
    b = normal(3, 4, 12)
    found = solve(Rows(a) if rows else Matrix(a, True), b, 0.1, cap=40)
    values = quadrature(torch.log, *found.tridiagonal.gauss())
    assert len(found.steps.unique()) > 3
    for i in range(4):
        for j in range(3):
            steps = int(found.steps[j, i])
            if steps <= 8:  # beyond, rounding tells the two apart
                t, _ = lanczos(Matrix(a[[i]], True), b[j, i][None, None], steps)
                assert values[j, i] == pytest.approx(quadrature(torch.log, *t.gauss()).item())


def test_squares_that_underflow_end_it():
    a = torch.diag(torch.tensor([1e6, 1.001e6]))[None]
    found = solve(Matrix(a, True), torch.full((1, 1, 2), 1e-20), atol=0.0, cap=10)
    assert gap(1e26 * found.x, torch.tensor([[[1.0, 1 / 1.001]]])) < 1e-3


@pytest.mark.parametrize(("atol", "rtol"), [(1e-2, 0.0), (0.0, 1e-3), (1e-2, 1e-2)])
def test_each_stops_at_the_first_residual_within_the_tolerance(atol, rtol):
    a, b = with_spectrum(SPECTRA["spread"], n=6), 5 * normal(2, 6, 12)
    allowed = atol + rtol * b.abs().amax(-1)
    found = solve(Matrix(a, True), b, atol, rtol, cap=60)
    true = (b - (a @ found.x[..., None])[..., 0]).abs().amax(-1)
    assert gap(found.residual, true) < 1e-10
    assert (true <= allowed).all()
    for sample in range(6):
        for probe in range(2):
            b1, cap = b[probe, sample][None, None], int(found.steps[probe, sample]) - 1
            before = solve(Matrix(a[[sample]], True), b1, 0.0, cap=cap)
            assert before.residual[0, 0] > allowed[probe, sample]
            assert not before.converged.any()


def test_at_least_one_step_is_taken_and_at_most_the_cap():
    a, b = Matrix(with_spectrum(SPECTRA["spread"], n=3), True), normal(1, 3, 12)
    assert solve(a, b, atol=1e9).steps.tolist() == [[1] * 3]
    for cap in (1, 4):
        found = solve(a, b, 1e-12, cap=cap)
        assert found.steps.tolist() == [[cap] * 3]
        assert not found.converged.any()
    assert solve(a, b, 0.0).steps.tolist() == [[12] * 3]


def test_a_known_product_is_not_taken_again():
    a, b = Rows(with_spectrum(SPECTRA["spread"], n=3)), normal(2, 3, 12)
    known = (a.a @ b[..., None])[..., 0]
    for run in (lambda **more: solve(a, b, 0.0, cap=5, **more).x,
                lambda **more: lanczos(a, b, 5, **more)[1]):  # fmt: skip
        a.counts.zero_()
        without = run()
        assert a.counts.tolist() == [5] * 3
        assert gap(run(product=known), without) < 1e-12
        assert a.counts.tolist() == [9] * 3


def test_steps_give_the_matrix_of_lanczos():
    a, b = Matrix(with_spectrum(SPECTRA["spread"], n=4), True), normal(2, 4, 12)
    by_steps = solve(a, b, 0.0, cap=6).tridiagonal
    by_lanczos, _ = lanczos(a, b, 6)
    assert gap(matrix(by_steps), matrix(by_lanczos)) < 1e-9
    assert gap(by_steps.coupling[..., -1], by_lanczos.coupling[..., -1]) < 1e-9


def test_zeros_have_the_solution_zero_and_no_maps_none():
    a = with_spectrum(SPECTRA["spread"], n=2)
    b = torch.stack([torch.zeros(12), torch.ones(12)]).to(F64)[None]
    found = solve(Rows(a), b, 1e-10, cap=50)
    assert found.x[0, 0].abs().max() == 0
    assert found.steps[0, 0] == 0
    assert found.converged.all()
    none = solve(Rows(a[:0]), b[:, :0])
    assert none.x.shape == (1, 0, 12)
    assert none.steps.shape == (1, 0)


def test_negative_curvature_stops_a_sample_alone():
    a = torch.cat([with_spectrum([-1.0, 1.0, 2.0]), with_spectrum([1.0, 2.0, 3.0])])
    b = normal(4, 2, 3)
    found = solve(Matrix(a, True), b, 1e-10, cap=10)
    assert not found.converged[:, 0].any()
    assert found.converged[:, 1].all()
    values = quadrature(torch.log, *found.tridiagonal.gauss())
    assert values[:, 0].isnan().all()
    assert values[:, 1].isfinite().all()
