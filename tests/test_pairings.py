"""Every trace x integrator x velocity that is registered: they fit, or say in a sentence why not.

Flows are fitted for a few steps first, so that their weights are not those of an initialisation.
The ladj is compared with the log-determinant of the very map that `encode` computes: they agree up
to the order of the method: halving the step divides the difference by 2^order.
"""

from __future__ import annotations

import functools
import math
from importlib.metadata import entry_points

import pytest
import torch
from components import (
    fixed_grids,
    load,
    make,
    make_integrator,
    make_velocity,
    names,
    velocity_cases,
)
from oracles import F64, gap, jacobian

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible
from flowzoo.field import Gradient, Velocity
from flowzoo.integrators import RK4, Integrator
from flowzoo.objective import Batch, Likelihood
from flowzoo.registry.signature import class_options
from flowzoo.traces import Exact, TraceEstimator

VELOCITIES = velocity_cases()
INTEGRATORS = names("integrator")
VARIANTS = [*INTEGRATORS, *(f"{n}, recompute" for n in fixed_grids())]
TRACES = names("trace")
REDRAWS = ["solve", "stage"]
Z, REPEATS = 5.0, 400  # standard errors (one false alarm in 1.7 million), estimates per point


@functools.cache
def fitted(case):
    """Return a flow of a velocity after 12 steps of Adam on two separated Gaussians."""
    flow = Continuous(make_velocity(case, 2), RK4(3))
    generator = torch.Generator().manual_seed(0)
    x = 0.5 * torch.randn(64, 2, generator=generator, dtype=F64)
    x[::2] += 1.5
    optimizer = torch.optim.Adam(flow.parameters(), 0.01)
    for _ in range(12):
        optimizer.zero_grad()
        Likelihood().loss(flow, Batch(x)).total.backward()
        optimizer.step()
    return flow.requires_grad_(False), x[:3].clone()


def resolutions(variant):
    """Return (order, coarse, fine) integrators; None for the order of an adaptive one."""
    name, _, recompute = variant.partition(", ")
    more = {"recompute": True} if recompute else {}
    order = getattr(getattr(load("integrator", name), "tableau", None), "order", None)
    steps = {1: 24, 2: 16}.get(order, 8)
    coarse = make_integrator(name, steps, 1e-5, **more)
    return order, coarse, make_integrator(name, 2 * steps, 1e-9, **more)


@functools.cache
def mapped(case, variant):
    """Return (order, [(slogdet, exact ladj, inverse error)] at two resolutions)."""
    flow, x = fitted(case)
    order, *integrators = resolutions(variant)
    found = []
    for integrator in integrators:
        fine, y = flow.with_numerics(integrator, Exact()), x.clone().requires_grad_()
        end = fine.encode(y)
        slogdet = torch.linalg.slogdet(jacobian(end.z, y))[1]
        with torch.no_grad():
            inverse = (fine.decode(end.z) - x).abs().max().item()
        found.append((slogdet, end.ladj.detach(), inverse))
    return order, found


def assert_shrinks(coarse, fine, order):
    """An error of some order at two resolutions, or one that tolerances 1e-5 and 1e-9 bound."""
    if order is None:
        assert coarse < 1e-2
        assert fine < 1e-6
    else:
        assert fine < {1: 0.5, 2: 0.02}.get(order, 1e-3)
        assert fine < 1.4 * coarse / 2**order + 1e-9


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", VELOCITIES)
def test_ladj_is_the_log_determinant_of_the_map(case, variant):
    order, ends = mapped(case, variant)
    coarse, fine = ((ladj - slogdet).abs().max().item() for slogdet, ladj, _ in ends)
    assert_shrinks(coarse, fine, order)
    assert ends[1][1].abs().max() > 0.05  # there is something to get wrong


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", VELOCITIES)
def test_decode_undoes_encode(case, variant):
    order, ends = mapped(case, variant)
    assert_shrinks(ends[0][2], ends[1][2], order)


def traces_of(name):
    """Return a registered trace in each way of drawing probes that it offers."""
    redraws = REDRAWS if "redraw" in class_options(load("trace", name)) else [None]
    return [make("trace", name, **({"redraw": r} if r else {})) for r in redraws]


def misfit(velocity, integrator, trace):
    """Return what the declarations say is missing, or None."""
    missing = trace.needs - velocity.provides
    if missing:
        return sorted(missing)[0]
    if trace.redraw == "stage" and integrator.evaluations is None:
        return "redraw"
    return None


@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", VELOCITIES)
def test_parts_fit_or_say_why_not(case, variant, name):
    flow, _ = fitted(case)
    integrator = resolutions(variant)[1]
    for trace in traces_of(name):
        why = misfit(flow.velocity, integrator, trace)
        for build in (lambda t=trace: Continuous(flow.velocity, integrator, t),
                      lambda t=trace: flow.with_numerics(integrator, t)):  # fmt: skip
            if why is None:
                assert build().trace is trace
                continue
            with pytest.raises(Incompatible, match=why) as caught:
                build()
            assert_sentence(str(caught.value))


def assert_sentence(text):
    assert text.count(" ") >= 6
    assert "\n" not in text
    assert not text.endswith(("!", ":"))


def test_refusals_are_the_ones_that_follow_from_the_mathematics():
    """Quadrature needs a gradient field; new probes per stage need stages that are numbered."""
    fixed, gradients = set(fixed_grids()), {c for c in VELOCITIES if "/" in c}
    assert gradients
    assert gradients < set(VELOCITIES)
    refused = {
        (case, name, trace.redraw)
        for case in VELOCITIES
        for variant in INTEGRATORS
        for name in ("exact", "hutchinson", "slq")
        for trace in traces_of(name)
        if misfit(fitted(case)[0].velocity, resolutions(variant)[1], trace)
        and not (trace.redraw == "stage" and variant not in fixed)
    }
    assert refused == {(case, "slq", "solve") for case in set(VELOCITIES) - gradients}


@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize("variant", INTEGRATORS)
@pytest.mark.parametrize("case", VELOCITIES)
def test_every_trace_estimates_the_log_determinant(case, variant, name):
    """The mean over independent estimates, within Z standard errors of the exact trace's ladj."""
    flow, x = fitted(case)
    integrator = resolutions(variant)[1]
    exact = mapped(case, variant)[1][0][1]
    for trace in traces_of(name):
        if misfit(flow.velocity, integrator, trace):
            continue
        generator = torch.Generator().manual_seed(0)
        repeats = 2 if trace.probes(x) is None else REPEATS
        with torch.no_grad():
            numeric = flow.with_numerics(integrator, trace)
            ladj = numeric.encode(x.repeat(repeats, 1), generator=generator).ladj.view(repeats, -1)
        error = (ladj.mean(0) - exact).abs()
        # An adaptive solver chooses other steps for other probes: its tolerance is 1e-5.
        allowed = Z * ladj.std(0) / math.sqrt(repeats) + (1e-12 if integrator.evaluations else 1e-3)
        assert (error <= allowed).all()


@pytest.mark.parametrize("case", VELOCITIES)
def test_the_trace_and_the_dense_jacobian_agree(case):
    flow, x = fitted(case)
    at = flow.velocity.at(torch.tensor(0.4, dtype=F64), x)
    expected = at.jacobian.dense().diagonal(dim1=1, dim2=2).sum(-1)
    assert gap(Exact()(at.jacobian, None), expected) < 1e-12


# --- what is registered --------------------------------------------------------------------------

INTERFACES = {"velocity": Velocity, "integrator": Integrator, "trace": TraceEstimator}


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k in INTERFACES for n in names(k)])
def test_what_is_registered_implements_its_interface(kind, name):
    cls = load(kind, name)
    assert issubclass(cls, INTERFACES[kind])
    assert cls.kind == kind
    assert cls.__doc__
    assert not getattr(cls, "__abstractmethods__", None)


def test_all_that_is_installed_is_covered_here():
    """The lists above hold what the installed packages offer, and nothing is left out."""
    for kind, listed in (("integrator", INTEGRATORS), ("trace", TRACES)):
        assert {e.name for e in entry_points(group=f"flowzoo.{kind}")} == set(listed)
    offered = {e.name for e in entry_points(group="flowzoo.velocity")}
    assert offered == {case.partition("/")[0] for case in VELOCITIES}
    potentials = {e.name for e in entry_points(group="flowzoo.potential")}
    assert {f"gradient/{name}" for name in potentials} <= set(VELOCITIES)
    assert all(isinstance(fitted(c)[0].velocity, Gradient) for c in VELOCITIES if "/" in c)
