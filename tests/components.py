"""What is registered, and how to construct it without knowing it: no test lists components."""

from __future__ import annotations

import typing

import torch

from flowzoo.build import build
from flowzoo.errors import UserError
from flowzoo.registry import Registry
from flowzoo.registry.signature import class_options

F64 = torch.float64


def names(kind):
    """Return the names registered under a kind."""
    return Registry.installed().names(kind)


def load(kind, name):
    """Return a registered class."""
    return Registry.installed().load(kind, name)


def make(kind, name, **wanted):
    """Construct a component with those of the wanted options that it takes."""
    cls = load(kind, name)
    options = class_options(cls)
    return cls(**{key: value for key, value in wanted.items() if key in options})


def velocity_cases():
    """Return `name` of each registered velocity, `name/potential` for one made of a potential."""
    cases = []
    for name in names("velocity"):
        try:
            wraps = "potential" in class_options(load("velocity", name))
        except UserError:  # the test that uses the case shows the error
            wraps = False
        cases += [f"{name}/{p}" for p in names("potential")] if wraps else [name]
    return cases


def make_velocity(case, dim, context_dim=0, seed=0, dtype=F64):
    """Construct a velocity case, or None where it takes no context and one is wanted."""
    name, _, potential = case.partition("/")
    if not potential and getattr(load("velocity", name), "examples", [{}])[0]:
        return _first_example(name, dim, context_dim, seed, dtype)  # one made of another velocity
    inner = ("potential", potential) if potential else ("velocity", name)
    if context_dim and "context_dim" not in class_options(load(*inner)):
        return None
    torch.manual_seed(seed)
    made = make(*inner, dim=dim, context_dim=context_dim)
    return _shaken(load("velocity", name)(made) if potential else made, dtype)


def _first_example(name, dim, context_dim, seed, dtype):
    spec = {"name": name, **load("velocity", name).examples[0]}
    torch.manual_seed(seed)
    registry = Registry.installed()
    return _shaken(build("velocity", spec, registry, dim=dim, context_dim=context_dim), dtype)


def _shaken(velocity, dtype):
    velocity = velocity.to(dtype)  # None keeps what it was built with
    with torch.no_grad():  # away from initialisations at which a derivative vanishes
        for p in velocity.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return velocity


def integrator_options(name):
    return class_options(load("integrator", name))


def fixed_grids():
    """Return the registered integrators that have a tableau, by name."""
    return [
        n for n in names("integrator") if _sound(n) and hasattr(load("integrator", n), "tableau")
    ]


def _sound(name):
    try:
        load("integrator", name)
    except UserError:
        return False  # what loads nowhere fails in test_pairings.py
    return True


def make_integrator(name, steps=8, tol=1e-8, **more):
    """Construct an integrator: by tolerances where it takes them, else by steps."""
    adaptive = "rtol" in integrator_options(name)
    wanted = {"rtol": tol, "atol": tol} if adaptive else {"steps": steps}
    return make("integrator", name, **wanted, **more)


def methods(name):
    """Return the methods that an integrator can be told, from its annotation."""
    option = integrator_options(name).get("method") if _sound(name) else None
    return [] if option is None else list(typing.get_args(option.annotation))
