"""The flow around an object from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowzoo.adapters.foreign import Foreign, first
from flowzoo.errors import Incompatible, UserError
from flowzoo.flow import Encoded, Flow, log_normal
from flowzoo.regularizers import RunningCost

COMPARED = 8  # points on which an object's own density is compared with that of its encode
AGREEMENT = 1e-2  # by how much the two may differ, relative to 1 + |log p|


class Adapted(Flow):
    """A density from elsewhere: log p(x) and samples are what the object itself says.

    In evaluation mode every `encode` is compared with the object's `log_prob` on a few points.

    Arguments:
        thing: The object, as `adapt` describes it.
        dim: Dimension d of the data, where the object does not say it.

    Raises:
        UserError: The dimension is not known, or is not the given one.
    """

    def __init__(self, thing: Any, dim: int | None = None) -> None:
        super().__init__()
        self.foreign = Foreign(thing, dim)
        self.dim = self.foreign.dim
        self.context_dim = self.foreign.number("context_dim") or 0
        self.latent = self.foreign.has("encode", "decode")

    def encode(
        self,
        x: Tensor,
        running: Sequence[RunningCost] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """Send data to noise as the object does.

        Raises:
            Incompatible: The object has no encode and decode, or a cost is asked for.
            Diverged: It gave what is not a number.
            UserError: It gave something else, or its own `log_prob` says something else.
        """
        self._require_latent()
        self.requires(running)
        made = self._ask("encode", x, context, generator)
        nfe = made.nfe if isinstance(made, Encoded) else ()
        if isinstance(made, Encoded):
            made = made.z, made.ladj
        if not (isinstance(made, tuple | list) and len(made) == 2):
            got = type(made).__name__
            raise UserError(f"encode of {self.foreign.name} must return (z, ladj), got {got}")
        z = self.foreign.sound("encode", made[0], x.shape).to(x)
        ladj = self.foreign.sound("encode", made[1], x.shape[:1]).to(x)
        if not self.training:
            self._compare(x, context, generator, log_normal(z) + ladj)
        return Encoded(z, ladj, x.new_zeros(len(x), 0), nfe)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Send noise to data as the object does.

        Raises:
            Incompatible: The object has no encode and decode.
            Diverged: It gave what is not a number.
            UserError: It gave something else.
        """
        self._require_latent()
        return self.foreign.sound("decode", self._ask("decode", z, context), z.shape).to(z)

    def log_prob(
        self, x: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return log p(x) as (n,), in nats, as the object says it; -inf where it has no density.

        Raises:
            Diverged: It gave what is not a number.
            UserError: It gave something else.
        """
        log_prob = self._ask("log_prob", x, context, generator)
        return self.foreign.sound("log_prob", log_prob, x.shape[:1]).to(x)

    def sample(
        self, n: int, context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw (n, d) samples as the object does.

        Raises:
            Diverged: It gave what is not a number.
            UserError: It gave something else.
        """
        drawn = first(self._ask("sample", n, context, generator))
        x, like = self.foreign.sound("sample", drawn, (n, self.dim)), self.foreign.like
        return x if like is None else x.to(like)

    def _ask(
        self,
        method: str,
        what: Tensor | int,
        context: Tensor | None,
        generator: torch.Generator | None = None,
    ) -> Any:
        name, width = self.foreign.name, 0 if context is None else context.shape[-1]
        if width != self.context_dim:
            hint = "" if self.context_dim else "; a conditional object says its `context_dim`"
            expected = (
                f"a context of width {self.context_dim}" if self.context_dim else "no context"
            )
            raise Incompatible(f"{name} expects {expected}, got one of width {width}{hint}")
        if isinstance(what, Tensor) and what.shape[1:] != (self.dim,):
            shape = tuple(what.shape)
            raise Incompatible(f"{name} is a density in {self.dim} dimensions, got points {shape}")
        return self.foreign.ask(method, what, context, generator)

    def _require_latent(self) -> None:
        if not self.latent:
            raise Incompatible(
                f"{self.foreign.name} has no encode and decode: it knows a density and samples, "
                "but sends no point to noise"
            )

    def _compare(
        self,
        x: Tensor,
        context: Tensor | None,
        generator: torch.Generator | None,
        encoded: Tensor,
    ) -> None:
        """Refuse an object whose encode has another density than its `log_prob`."""
        few, encoded = slice(COMPARED), encoded[:COMPARED]
        with torch.no_grad():
            stated = self.log_prob(x[few], None if context is None else context[few], generator)
        off = (stated - encoded).abs()
        agrees = (stated == encoded) | (off <= AGREEMENT * (1 + stated.abs()))
        if not bool(agrees.all()):
            worst = float(off[~agrees].max())
            raise UserError(
                f"log_prob and encode of {self.foreign.name} differ by {worst:.3g} nats: encode "
                "must send data to N(0, I) and return z (n, d) with log |det dz/dx| (n,)"
            )
