"""Windows of a velocity: parts of its way that make up the whole."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from jko_chains import F64, TIGHT, velocity
from oracles import GaussianOT, gap, jacobian

from flowzoo.continuous import Continuous
from flowzoo.errors import Incompatible
from flowzoo.field import Gradient
from flowzoo.flow import Chain
from flowzoo.integrators import RK438
from flowzoo.regularizers import HJB, JacobianFrobenius, Transport
from flowzoo_jko_iflow.window import Window

KINDS = ["free", "gradient"]


def windows(of, parts, integrator):
    return Chain([Continuous(Window(of, j, parts), integrator) for j in range(parts)])


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "parts", "context_dim"), [("free", 1, 0), ("free", 3, 2), ("gradient", 2, 0)]
)
def test_the_parts_make_up_the_whole_way(places, kind, parts, context_dim):
    of, x = velocity(kind, context_dim), places(3, 2)
    context = places(3, context_dim, seed=1) if context_dim else None
    whole = Continuous(of, TIGHT).encode(x, context=context)
    found = windows(of, parts, TIGHT).encode(x, context=context)
    assert (whole.z - x).abs().max() > 0.1
    torch.testing.assert_close(found.z, whole.z, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.ladj, whole.ladj, rtol=0, atol=1e-10)
    back = windows(of, parts, TIGHT).decode(found.z, context)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("parts", [2, 3])
def test_on_a_grid_they_take_the_very_steps_of_a_finer_grid(places, parts):
    of, x = velocity(), places(6, 2)
    fine = Continuous(of, RK438(2 * parts)).encode(x)
    found = windows(of, parts, RK438(2)).encode(x)
    torch.testing.assert_close(found.z, fine.z, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(found.ladj, fine.ladj, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("parts", [2, 3])
def test_costs_of_the_parts_are_those_of_a_slower_way(places, parts):
    # |v|^2, |J|_F^2 and the residual scale as 1 / c^2, over c units of time.
    of, x = velocity("gradient"), places(6, 2)
    costs = [Transport(), HJB(), JacobianFrobenius()]
    whole = Continuous(of, RK438(4 * parts)).encode(x, costs).costs
    found = windows(of, parts, RK438(4)).encode(x, costs).costs
    assert whole.min() > 1e-4
    torch.testing.assert_close(parts * found, whole, rtol=1e-12, atol=1e-13)


@torch.no_grad()
def test_an_optimal_potential_has_no_residual_in_any_part(places):
    of, x = Gradient(GaussianOT(2, 3.0)), places(3, 2)
    chain = windows(of, 3, TIGHT)
    encoded = chain.encode(x, [HJB(), Transport()])
    residual, transport = encoded.costs.T
    torch.testing.assert_close(encoded.z, x / 3, rtol=0, atol=1e-10)
    torch.testing.assert_close(residual, torch.zeros(3, dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close(3 * transport, 0.5 * (x / 3 - x).square().sum(-1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", ["one", "each"])
@pytest.mark.parametrize("ask", ["at", "with_divergence"])
def test_what_a_window_knows_at_a_point(places, kind, times, ask):
    of, x = velocity(kind), places(6, 2).requires_grad_()
    window = Window(of, 1, 3)
    t = torch.tensor(0.4, dtype=F64) if times == "one" else torch.linspace(0.1, 0.9, 6, dtype=F64)
    at = getattr(window, ask)(t, x)
    v = of((1 + t) / 3, x) / 3
    expected = jacobian(v, x)
    assert gap(window(t, x), v) < 1e-14
    assert gap(at.v, v) < 1e-14
    assert gap(at.jacobian.dense(), expected) < 1e-12
    p = places(6, 2, seed=3)
    assert gap(at.jacobian.vjp(p), torch.einsum("nij,ni->nj", expected, p)) < 1e-12
    assert gap(at.jacobian.jvp(p), torch.einsum("nij,nj->ni", expected, p)) < 1e-12
    assert torch.equal(at.t, t)


def test_the_time_derivative_is_that_of_the_windows_own_potential(places):
    of, x = velocity("gradient"), places(6, 2).requires_grad_()
    t = torch.linspace(0.1, 0.9, 6, dtype=F64).requires_grad_()
    phi = of.potential((1 + t) / 3, x) / (of.scale * 3)
    phi_t, grad = torch.autograd.grad(phi.sum(), (t, x))
    at = Window(of, 1, 3).at(t.detach(), x)
    assert gap(at.v, -grad) < 1e-12  # of this potential the velocity is the descent
    assert phi_t.abs().max() > 1e-3
    assert gap(at.phi_t, phi_t) < 1e-12


@pytest.mark.parametrize(("part", "parts"), [(2, 2), (-1, 3), (0, 0)])
def test_there_is_no_such_part(part, parts):
    with pytest.raises(Incompatible, match=f"window: part must lie in 0 ... {parts - 1}"):
        Window(velocity(), part, parts)


def copies():
    def saved(window):
        other = Window(velocity(seed=5))
        other.load_state_dict(window.state_dict())
        return other

    def rounded(window):
        return copy.deepcopy(window).half().double()

    pickled = lambda window: pickle.loads(pickle.dumps(window))  # noqa: E731
    return {"saved": saved, "copied": copy.deepcopy, "pickled": pickled, "rounded": rounded}


@pytest.mark.parametrize("way", copies())
def test_a_window_is_part_of_the_weights(places, way):
    window, x, t = Window(velocity()), places(6, 2), torch.tensor(0.3, dtype=F64)
    window.show(2049, 4099)  # no numbers of float16
    other = copies()[way](window)
    assert (other.part, other.parts) == (2049, 4099)
    assert other.window.tolist() == [2049, 4099]
    assert gap(other(t, x), window(t, x)) < (1e-2 if way == "rounded" else 1e-15)
    other.show(0, 1)
    assert (window.part, window.parts, window.window.tolist()) == (2049, 4099, [2049, 4099])


def test_a_window_shows_another_part(places):
    of, x, t = velocity(), places(6, 2), torch.tensor(0.3, dtype=F64)
    window = Window(of)
    assert torch.equal(window(t, x), of(t, x))
    window.show(1, 2)
    assert torch.equal(window(t, x), of((1 + t) / 2, x) / 2)
    assert window.window.tolist() == [1, 2]
