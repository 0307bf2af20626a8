"""Importers: a right one passes its checks, each wrong one is caught by its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from checking import failed, outcomes

from flowzoo.errors import UserError
from flowzoo.importer import Imported, Importer
from flowzoo.registry import Registry
from flowzoo.weights import Weights
from flowzoo_ot_flow.importer import OTFlowImporter

F64 = torch.float64
PLACES = {"in": "velocity.net.0", "out": "velocity.net.2"}


class Right(Importer):
    """A velocity of two layers, under other names."""

    def convert(self, weights):
        found = weights.model()
        ours = {f"{PLACES.get(n.split('.')[0], n)}.{n.split('.')[-1]}": v for n, v in found.items()}
        if "in.weight" not in found:
            raise UserError("these are no weights of mine: there is no in.weight")
        return self.made(ours, found["in.weight"].shape, weights.others())

    def made(self, state, shape, ignored=()):
        width, inputs = shape
        velocity = {"name": "mlp", "hidden": [width], "time": "plain", "activation": "tanh"}
        spec = {"name": "continuous", "velocity": velocity}
        return Imported(spec, state, inputs - 1, ignored=ignored)

    def sample(self):
        generator = torch.Generator().manual_seed(0)
        shapes = {"in.weight": (5, 4), "in.bias": (5,), "out.weight": (3, 5), "out.bias": (3,)}
        tensors = {
            f"state_dict/{name}": torch.randn(shape, generator=generator, dtype=F64)
            for name, shape in shapes.items()
        }
        return Weights(tensors | {"optimizer/m": torch.ones(1)})


class Misnamed(Right):
    """Leaves the last layer under its old name."""

    def made(self, state, shape, ignored=()):
        renamed = {name.replace("velocity.net.2", "out"): v for name, v in state.items()}
        return super().made(renamed, shape, ignored)


class Taller(Right):
    """States a dimension that the flow does not have."""

    def made(self, state, shape, ignored=()):
        made = super().made(state, shape, ignored)
        spec = {**made.flow, "velocity": {**made.flow["velocity"], "dim": 3}}
        return replace(made, dim=2, flow=spec)


class Exploding(Right):
    """Its weights are so large that no solve stays finite."""

    def made(self, state, shape, ignored=()):
        return super().made({k: v * 1e200 for k, v in state.items()}, shape, ignored)


class Silent(Right):
    """Does not say that it leaves out the optimizer's tensors."""

    def made(self, state, shape, ignored=()):
        return super().made(state, shape)


class Forgetful(Right):
    """Replaces a bias by zero."""

    def made(self, state, shape, ignored=()):
        zeros = {"velocity.net.0.bias": torch.zeros(shape[0], dtype=F64)}
        return super().made(state | zeros, shape, ignored)


class Boasting(Right):
    """Says that it ignores what is not there."""

    def made(self, state, shape, ignored=()):
        return super().made(state, shape, (*ignored, "ghost"))


class Drawing(Right):
    """Adds noise to what it reads."""

    def made(self, state, shape, ignored=()):
        return super().made({k: v + torch.rand(()) for k, v in state.items()}, shape, ignored)


class Spoiling(Right):
    """Changes the weights that it is given."""

    def convert(self, weights):
        found = super().convert(weights)
        found.state["velocity.net.0.bias"].mul_(2)
        return found


class Single(Right):
    """Gives single precision, whatever it reads."""

    def made(self, state, shape, ignored=()):
        return super().made({k: v.float() for k, v in state.items()}, shape, ignored)


class Lenient(Right):
    """Fills what is missing with zeros."""

    def made(self, state, shape, ignored=()):
        zeros = {"velocity.net.2.bias": torch.zeros(shape[1] - 1, dtype=F64)}
        return super().made(zeros | state, shape, ignored)


class Careless(Right):
    """Raises what Python raises."""

    def convert(self, weights):
        return self.made({}, weights.model()["in.weight"].shape)


class Welcoming(Right):
    """Takes anything."""

    def convert(self, weights):
        return super().convert(
            weights if "state_dict/in.weight" in weights.tensors else self.sample()
        )


CAUGHT = {
    "Misnamed": ("fits", "cannot be built: the weights do not fit the flow"),
    "Taller": ("fits", "the flow has 3 dimensions, not 2"),
    "Exploding": ("runs", "are not all finite"),
    "Silent": ("everything", "optimizer/m changes nothing and is not said to be ignored"),
    "Forgetful": ("everything", "state_dict/in.bias changes nothing"),
    "Boasting": ("everything", "it says that it ignores ghost, which is not there"),
    "Drawing": ("repeatable", "two conversions of its sample differ"),
    "Spoiling": ("repeatable", "converting weights changes them"),
    "Single": ("precision", "arrive in another precision"),
    "Lenient": ("refuses", "without state_dict/out.bias the same flow is made"),
    "Careless": ("refuses", "KeyError: 'in.weight', expected a UserError"),
    "Welcoming": ("refuses", "weights of somebody else are converted"),
}


@pytest.mark.parametrize("importer", [Right, OTFlowImporter])
def test_a_right_one_passes(importer):
    assert not failed(importer)
    assert set(outcomes(importer)) >= {check for check, _ in CAUGHT.values()}


@pytest.mark.parametrize("name", CAUGHT)
def test_a_wrong_one_is_caught(name):
    check, said = CAUGHT[name]
    found = failed(globals()[name])
    assert check in found, found
    assert said in found[check]


def test_the_flow_has_the_precision_of_the_weights():
    made = Right().convert(Right().sample())
    registry = Registry.installed()
    assert next(made.build(registry).parameters()).dtype == F64
    for dtype in (torch.float32, torch.float16):
        state = {name: value.to(dtype) for name, value in made.state.items()}
        flow = replace(made, state=state).build(registry)
        assert next(flow.parameters()).dtype == torch.float32
        assert not flow.training


def test_weights_that_are_not_finite_are_refused():
    made = Right().convert(Right().sample())
    made.state["velocity.net.2.bias"][:2] = float("nan")
    with pytest.raises(UserError, match=r"2 of velocity\.net\.2\.bias are not finite"):
        made.build(Registry.installed())
