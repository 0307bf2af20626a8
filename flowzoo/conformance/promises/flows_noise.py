"""What a flow promises of randomness: that there is none but what a generator gives."""

from __future__ import annotations

import torch
from torch import Tensor

from flowzoo.conformance.check import Failed, Skipped, check, off_by, require
from flowzoo.conformance.probes.flows_made import exact, made, takes_numerics
from flowzoo.conformance.probes.invariance import global_seed
from flowzoo.conformance.specimen import Specimen
from flowzoo.errors import Diverged, Incompatible
from flowzoo.flow import Flow
from flowzoo.odeint import Dopri5

_STEPS = 200  # a solve whose noise changes along the way never ends


@check("flow")
def two_calls(specimen: Specimen) -> str:
    """Without a generator two calls give the same log-density, by an exact trace if it has one."""
    flow = exact(made(specimen), 1e-6)
    one, two = (_log_prob(specimen, flow, state) for state in (1, 2))
    off_by(two, one, 0.0, "log_prob of a second call")
    return "the same bits"


@check("flow")
def seeds(specimen: Specimen) -> str:
    """Equal generators give equal samples and log-densities, others others, whatever torch's is."""
    flow = specimen.make(3)
    equal = [_sample(specimen, flow, state, 0) for state in (1, 2)]
    off_by(equal[1], equal[0], 0.0, "sample with an equal generator")
    other = _sample(specimen, flow, 1, 1)
    require(not torch.equal(other, equal[0]), "other generators give the same samples")
    equal = [_log_prob(specimen, flow, state, 0) for state in (1, 2)]
    off_by(equal[1], equal[0], 0.0, "log_prob with an equal generator")
    noisy = not torch.equal(_log_prob(specimen, flow, 1, 1), equal[0])
    return f"samples repeat, and so does log_prob, {'an estimate' if noisy else 'not random'}"


@check("flow")
def own_noise(specimen: Specimen) -> str:
    """Its own noise is fixed in a solve, so that solvers converge, unless it declares otherwise."""
    flow = specimen.make(3)
    one, other = (_log_prob(specimen, flow, 1, seed) for seed in (0, 1))
    if torch.equal(one, other):
        raise Skipped("nothing in its own numerics is random")
    off_by(_log_prob(specimen, flow, 2, 0), one, 0.0, "log_prob with an equal generator")
    if not takes_numerics(flow):
        return "equal generators give equal results"
    try:
        loose, tight = (flow.with_numerics(Dopri5(t, t, _STEPS)) for t in (1e-4, 1e-6))
    except Incompatible:
        return "its noise is declared to be drawn at every stage"
    try:
        found, expected = (_log_prob(specimen, by, 1, 0) for by in (loose, tight))
    except Diverged as error:
        _require_smooth(specimen, flow)
        raise Failed(f"its noise is not fixed in a solve, so that none ends: {error}") from error
    return off_by(found, expected, 1e-2, "log_prob with one noise, at 1e-4 against 1e-6")


def _log_prob(specimen: Specimen, flow: Flow, state: int, seed: int | None = None) -> Tensor:
    """Return log p (n,) with torch's generator in a state, and a generator of a seed or none."""
    generator = None if seed is None else specimen.generator(seed)
    with global_seed(state), torch.no_grad():
        return flow.log_prob(specimen.points(6, flow.dim), generator=generator)


def _require_smooth(specimen: Specimen, flow: Flow) -> None:
    """Raise Skipped where an exact trace, too, takes too many steps."""
    try:
        _log_prob(specimen, exact(flow, 1e-6, _STEPS), 1)
    except Diverged as error:
        raise Skipped(f"it is too rough to be solved to 1e-6: {error}") from error


def _sample(specimen: Specimen, flow: Flow, state: int, seed: int) -> Tensor:
    with global_seed(state), torch.no_grad():
        return flow.sample(6, generator=specimen.generator(seed))
