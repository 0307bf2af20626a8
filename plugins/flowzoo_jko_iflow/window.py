"""A window of a velocity: one of several equal parts of its way, as a way of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowzoo.errors import Incompatible
from flowzoo.field import Point, Velocity
from flowzoo.maps import Scaled


class Window(Velocity):
    """v(t, x) = u((j + t) / c, x) / c: part j of c of a velocity u, stretched to [0, 1].

    The parts 0 ... c - 1 one after another move a point as u does, so a block can be split into c
    blocks without changing the map. A window is part of the weights: it is saved with them.

    Arguments:
        of: The velocity u.
        part: Which part j, from 0.
        parts: Into how many parts c the time is divided.

    Raises:
        Incompatible: There is no such part.

    References:
        JKO-iFlow (Xu, Cheng & Xie, NeurIPS 2023), section 4.2: progressive refinement
    """

    window: Tensor
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"of": {"name": "mlp", "hidden": [8]}},
        {"of": {"name": "mlp", "hidden": [8]}, "part": 1, "parts": 3},
        {"of": {"name": "gradient", "potential": {"name": "mlp", "hidden": [8]}}, "parts": 2},
    )

    def __init__(self, of: Velocity, part: int = 0, parts: int = 1) -> None:
        super().__init__()
        if not 0 <= part < parts:
            raise Incompatible(f"window: part must lie in 0 ... {parts - 1}, got {part}")
        self.of = of
        self.dim, self.context_dim, self.provides = of.dim, of.context_dim, of.provides
        self.part, self.parts = part, parts
        # Whole numbers survive every change of precision.
        self.register_buffer("window", torch.tensor([part, parts]))
        self.register_load_state_dict_post_hook(_read)

    def show(self, part: int, parts: int) -> None:
        """Become another part."""
        self.window.copy_(torch.tensor([part, parts]))
        self.part, self.parts = part, parts

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return v(t, x) as (n, d)."""
        v = self.of(self._inner(t), x, context)
        return v if self.parts == 1 else v / self.parts

    def at(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Point:
        """Return the velocity and its Jacobian at (t, x)."""
        return self._outer(t, self.of.at(self._inner(t), x, context))

    def with_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Point:
        """Return the same; the trace of the Jacobian is going to be asked for."""
        return self._outer(t, self.of.with_divergence(self._inner(t), x, context))

    def _inner(self, t: Tensor) -> Tensor:
        return t if self.parts == 1 else (self.part + t) / self.parts

    def _outer(self, t: Tensor, at: Point) -> Point:
        if self.parts == 1:
            return at
        # The potential is divided by c, and its time runs c times slower.
        phi_t = None if at.phi_t is None else at.phi_t / self.parts**2
        return Point(t, at.x, at.v / self.parts, Scaled(at.jacobian, 1 / self.parts), phi_t)


def _read(window: Window, _: object) -> None:
    window.part, window.parts = window.window.tolist()
