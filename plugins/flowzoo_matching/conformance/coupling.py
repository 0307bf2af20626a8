"""Checks of couplings: rows in, pairs of rows out, and both marginals kept."""

from __future__ import annotations

import torch
from torch import Tensor

from flowzoo.conformance.check import Failed, check, require
from flowzoo.conformance.probes.sequential import mean_is_zero
from flowzoo.conformance.specimen import Specimen
from flowzoo_matching.coupling import Coupling, Pairs

_BIAS = 0.2  # by how much a row may be drawn too often before it is found, in units of once
_AT_ONCE = 8  # pairings that one draw of the sequential test averages


@check("coupling")
def shapes(specimen: Specimen) -> str:
    """Pairs are two lists of as many row numbers, for batches of any size and dimension."""
    for n, d in ((16, 2), (5, 1), (2, 3), (1, 2)):
        x, z = _batch(specimen, n, d)
        for dtype in (torch.float64, torch.float32):
            _indices(_paired(specimen, x.to(dtype), z.to(dtype)), n)
        _indices(_paired(specimen, x, z, specimen.points(n, 2, seed=5)), n)
    return "row numbers for batches of 16, 5, 2 and 1, with and without context"


@check("coupling")
def marginals(specimen: Specimen) -> str:
    """Every row of data and of noise is drawn as often as every other, on average."""
    n = 8
    x, z = _batch(specimen, n)
    if _always(specimen, x, z, torch.arange(n)):
        return "each side is a permutation of its rows"
    coupling, draws = specimen.make(), specimen.generator()

    def excess() -> Tensor:
        found = []
        for _ in range(_AT_ONCE):
            sides = _indices(coupling.pair(x, z, None, draws), n)
            found.append(torch.cat([rows.bincount(minlength=n) * n / len(rows) for rows in sides]))
        return torch.stack(found).mean(0) - 1

    return mean_is_zero(excess, _BIAS, "the number of times a row is drawn, once each expected,")


@check("coupling")
def any_points(specimen: Specimen) -> str:
    """Points that repeat, and points of any scale, are paired like others."""
    x, z = _batch(specimen, 16)
    for dtype in (torch.float64, torch.float32):
        for scale in (0.0, 1e-6, 1e6):
            _indices(_paired(specimen, (scale * x).to(dtype), (scale * z).to(dtype)), 16)
        _indices(_paired(specimen, x.to(dtype), z.to(dtype)[:2].repeat(8, 1)), 16)
    return "row numbers at scales of 0, 1e-6 and 1e6, and for noise that repeats"


@check("coupling")
def repeatable(specimen: Specimen) -> str:
    """The pairs follow from the rows and the generator, whatever else was drawn."""
    coupling, (x, z) = specimen.make(), _batch(specimen, 16)
    before = torch.get_rng_state()
    first = _indices(coupling.pair(x, z, None, specimen.generator(1)), 16)
    untouched = torch.equal(before, torch.get_rng_state())
    torch.rand(1)
    second = _indices(coupling.pair(x, z, None, specimen.generator(1)), 16)
    torch.set_rng_state(before)
    for name, one, other in zip(("data", "noise"), first, second, strict=True):
        require(torch.equal(one, other), f"the {name} rows differ between two equal generators")
    require(untouched, "torch's global generator is used although one is given")
    return "equal generators give equal pairs"


@check("coupling")
def leaves_rows(specimen: Specimen) -> str:
    """Pairing changes neither the data nor the noise, and records no gradient."""
    x, z = _batch(specimen, 16)
    kept = x.clone(), z.clone()
    pairs = _paired(specimen, x.requires_grad_(), z)
    require(torch.equal(x.detach(), kept[0]), "the data are changed in place")
    require(torch.equal(z, kept[1]), "the noise is changed in place")
    for rows in (pairs.data, pairs.noise):
        require(rows is None or not rows.requires_grad, "row numbers carry a gradient")
    return "both as before"


def _batch(specimen: Specimen, n: int, d: int = 2) -> tuple[Tensor, Tensor]:
    return 2 + specimen.points(n, d, seed=1), specimen.points(n, d, seed=2)


def _paired(specimen: Specimen, x: Tensor, z: Tensor, context: Tensor | None = None) -> Pairs:
    coupling: Coupling = specimen.make()
    try:
        return coupling.pair(x, z, context, specimen.generator())
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise Failed(f"cannot pair batches {tuple(x.shape)} {x.dtype}: {reason}") from error


def _indices(pairs: Pairs, n: int) -> tuple[Tensor, Tensor]:
    """Return the row numbers of both sides, written out.

    Raises:
        Failed: They are no row numbers, or not as many.
    """
    sides = []
    for name, rows in (("data", pairs.data), ("noise", pairs.noise)):
        rows = torch.arange(n) if rows is None else rows
        require(
            rows.dim() == 1 and not rows.is_floating_point(),
            f"the {name} rows are {tuple(rows.shape)} {rows.dtype}, expected row numbers (m,)",
        )
        inside = bool(((rows >= 0) & (rows < n)).all())
        require(inside and len(rows) > 0, f"the {name} rows are not numbers below {n}")
        sides.append(rows)
    data, noise = sides
    require(
        len(data) == len(noise), f"{len(data)} data rows are paired with {len(noise)} noise rows"
    )
    return data, noise


def _always(specimen: Specimen, x: Tensor, z: Tensor, each: Tensor) -> bool:
    """Return whether twenty pairings are permutations of all rows on both sides."""
    coupling, draws = specimen.make(), specimen.generator()
    for _ in range(20):
        for rows in _indices(coupling.pair(x, z, None, draws), len(x)):
            if not torch.equal(rows.sort().values, each):
                return False
    return True
