"""One cell in this process: what is kept, what becomes of an exception, the reference."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from fake_matrices import make

from flowzoo.bench import load_matrix
from flowzoo.bench.cell import run_cell, state_of
from flowzoo.bench.phases import gaussian_nll
from flowzoo.bench.store import CURVE, FLOW, Store
from flowzoo.errors import Diverged, Incompatible, UserError


@pytest.fixture
def cell(tmp_path):
    """Return a maker of one planned cell and its folder."""

    def make_one(text="flows: [affine]\ndata: [blob]\n"):
        store = Store(tmp_path / "run")
        (cell,) = store.plan(load_matrix(make(tmp_path, text)))
        return cell, store.path(cell)

    return make_one


def test_a_stored_fit_is_scored_again_but_not_fitted_again(cell, monkeypatch):
    one, folder = cell()
    first = run_cell(one, folder)

    def refuse(*_, **__):
        raise AssertionError("fitted again")

    monkeypatch.setattr("flowzoo.bench.phases.fit", refuse)
    again = run_cell(one, folder)
    assert (again.state, again.metrics) == ("ok", first.metrics)
    assert again.costs["steps"] == 40


@pytest.mark.parametrize("damage", ["truncated", "rubbish", "other code"])
def test_a_fit_that_cannot_be_trusted_is_done_again(cell, damage):
    one, folder = cell()
    first = run_cell(one, folder)
    if damage == "other code":
        plugin = Path(one.plugins[0])
        plugin.write_text(plugin.read_text().replace("0.01 * torch.randn", "0.02 * torch.randn"))
    else:
        content = (folder / FLOW).read_bytes()
        (folder / FLOW).write_bytes(content[:-5] if damage == "truncated" else b"rubbish")
    again = run_cell(one, folder)
    assert again.state == "ok"
    assert (again.metrics == first.metrics) == (damage != "other code")


def test_a_metric_that_is_not_a_number_is_never_ok(cell):
    record = run_cell(*cell("flows: [affine]\ndata: [blob]\nmetrics: [nll, odd]\n"))
    assert record.state == "diverged"
    assert "odd" in record.reason
    assert record.costs["steps"] == 40


def test_a_swap_that_does_not_fit_is_skipped_without_importing_torch(cell, monkeypatch):
    one, folder = cell()
    object.__setattr__(one, "skip", "recipe 'affine' has no part 'trace'")
    monkeypatch.setitem(sys.modules, "flowzoo.bench.phases", None)
    record = run_cell(one, folder)
    assert (record.state, record.reason) == ("skipped", "recipe 'affine' has no part 'trace'")


def test_weights_depend_on_the_seed_and_on_nothing_before(cell):
    one, folder = cell()
    first = run_cell(one, folder)
    torch.rand(7)
    for name in (FLOW, CURVE):
        (folder / name).unlink()
    assert run_cell(one, folder).metrics == first.metrics


@pytest.mark.parametrize(
    ("error", "state", "keeps_trace"),
    [
        (Incompatible("a does not fit b"), "skipped", False),
        (Diverged("nan"), "diverged", False),
        (UserError("no such file"), "failed", False),
        (MemoryError(), "out-of-memory", False),
        (RuntimeError("CUDA error: out of memory"), "out-of-memory", False),
        (torch.OutOfMemoryError("Tried to allocate 20 GiB"), "out-of-memory", False),
        (RuntimeError("shapes differ"), "failed", True),
        (KeyError(), "failed", True),
    ],
)
def test_exceptions_become_states(error, state, keeps_trace):
    try:
        raise error
    except Exception as caught:
        found, reason, trace = state_of(caught)
    assert found == state
    assert reason
    assert bool(trace) == keeps_trace


def test_gaussian_reference_is_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    x = x @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 0.3], [0.0, 0.0, 0.1]]).double() + 4
    covariance = torch.cov(x.T, correction=0)
    # On its own training rows, the Gaussian's NLL is its entropy.
    expected = 0.5 * torch.logdet(2 * torch.pi * torch.e * covariance)
    assert gaussian_nll(x, x) == pytest.approx(float(expected), abs=1e-10)
    assert gaussian_nll(x[:, [0, 0]], x[:, [0, 0]]) is None
