"""The couplings' benchmark compares pairs of the same batches, against the right laws, and runs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from oracles import F64

# The scripts import each other by these names, as they do when they are run.
sys.path.append(str(Path(__file__).parent.parent / "benchmarks" / "speed"))
machine, couplings = map(importlib.import_module, ("machine", "couplings"))

DOUBLE = machine.Machine("cpu", double=True)


def test_all_sides_pair_the_same_points():
    x, z = couplings.batch(2, 200, DOUBLE)
    sides = couplings.jobs(x, z)
    assert sides["cost matrix"]()[3, 5] == pytest.approx(float((x[3] - z[5]).square().sum()))
    assert sides["pot emd"]().sum() == pytest.approx(1)
    least = couplings.cost(sides["scipy"](), x, z)
    assert couplings.cost(sides["exact-ot"](), x, z) == pytest.approx(least, rel=1e-9)
    for name in ("near-ot", "pot bsp"):
        assert least <= couplings.cost(sides[name](), x, z) * (1 + 1e-9) < 1.1 * least
    # With replacement the mean is the least one, up to its standard error.
    for name in ("pot-plan", "pot emd, drawn"):
        assert couplings.cost(sides[name](), x, z) == pytest.approx(least, rel=0.3)
    assert couplings.cost(sides["independent"](), x, z) > 1.5 * least


def test_the_laws_have_the_distance_that_is_divided_by():
    """The optimal map is z -> 1 + s z; its cost is W2^2."""
    torch.manual_seed(0)
    z, s = torch.randn(200_000, 3, dtype=F64), torch.tensor([0.5, 1.0, 1.5], dtype=F64)
    assert torch.equal(couplings.scales(3, DOUBLE), s)
    moved = (1 + s * z - z).square().sum(-1).mean()
    assert couplings.least(3, DOUBLE) == pytest.approx(3.5)
    assert float(moved) == pytest.approx(3.5, rel=0.01)
    x, _ = couplings.batch(3, 100_000, DOUBLE)
    assert (x.mean(0) - 1).abs().max() < 0.02
    assert (x.std(0) - s).abs().max() < 0.02


def test_the_tables_are_printed(monkeypatch, capsys):
    options = "--dims 2 --batches 16 130 --repeat 1 --batches-each 2 --points 130 --double"
    monkeypatch.setattr(sys, "argv", ["couplings.py", *options.split()])
    couplings.main()
    printed = capsys.readouterr().out
    assert "a pairing, d = 2, batch 16: median of 2 batches" in printed
    assert "over W2^2, about 130 points each" in printed
    (exact,) = [line for line in printed.split("batch 130")[1].splitlines() if "exact-ot " in line][
        :1
    ]
    assert exact.split("|")[4:6] == [" 1.000          ", " 1.000   "]
