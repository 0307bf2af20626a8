"""Checks of laws of time: what is drawn, and whether the density is that of what is drawn."""

from __future__ import annotations

import torch

from flowzoo.conformance.check import check, require
from flowzoo.conformance.specimen import Specimen

_DRAWS = 40_000
_BINS = 8
_SURE = 5.0  # standard errors


@check("times")
def draws(specimen: Specimen) -> str:
    """Times and densities are (n,), finite, in the dtype of x; times lie in [0, 1]."""
    law = specimen.make()
    for n in (4096, 1, 0):
        for dtype in (torch.float64, torch.float32):
            drawn = law.draw(specimen.points(n, 2, dtype), specimen.generator())
            for name, values in (("t", drawn.t), ("density", drawn.density)):
                require(
                    values.shape == (n,) and values.dtype == dtype,
                    f"{name} is {tuple(values.shape)} {values.dtype}, expected ({n},) {dtype}",
                )
                require(bool(values.isfinite().all()), f"{name} is not finite")
            inside = bool(((drawn.t >= 0) & (drawn.t <= 1)).all())
            require(inside, "times are outside [0, 1]")
            require(bool((drawn.density > 0).all()), "the density at a drawn time is not positive")
    return "4096, 1 and no times in two precisions"


@check("times")
def repeatable(specimen: Specimen) -> str:
    """Times follow from the generator alone, and differ from one draw to the next."""
    law, x = specimen.make(), specimen.points(16, 2)
    before, generator = torch.get_rng_state(), specimen.generator(1)
    first, other = law.draw(x, generator).t, law.draw(x, generator).t
    untouched = torch.equal(before, torch.get_rng_state())
    torch.rand(1)
    second = law.draw(x, specimen.generator(1)).t
    torch.set_rng_state(before)
    require(torch.equal(first, second), "the times differ between two equal generators")
    require(untouched, "torch's global generator is used although one is given")
    require(not torch.equal(first, other), "the times are the same in every draw")
    return "equal generators give equal times"


@check("times")
def density(specimen: Specimen) -> str:
    """Divided by the density, parts of [0, 1] count as much as they are long.

    The parts lie between quantiles: where times hardly ever are, a quotient says little.
    """
    law, rows = specimen.make(), torch.zeros(_DRAWS, 1, dtype=torch.float64)
    parts = torch.linspace(0.02, 0.98, _BINS + 1, dtype=torch.float64)
    edges = law.draw(rows, specimen.generator(3)).t.quantile(parts)
    drawn = law.draw(rows, specimen.generator(2))
    for name, values in (("t", drawn.t), ("density", drawn.density)):
        require(values.shape == (_DRAWS,), f"{name} is {tuple(values.shape)}, not (n,)")
    worst = 0.0
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        found = torch.where((drawn.t >= low) & (drawn.t < high), 1 / drawn.density, 0.0)
        error = float(found.std()) / _DRAWS**0.5
        off = abs(float(found.mean()) - (high - low)) / error
        require(
            off <= _SURE,
            f"[{low:.3g}, {high:.3g}] counts {float(found.mean()):.4f}, expected "
            f"{high - low:.4f} ± {_SURE * error:.4f}",
        )
        worst = max(worst, off)
    return f"off by {worst:.2g} standard errors, allowed {_SURE:g}"
