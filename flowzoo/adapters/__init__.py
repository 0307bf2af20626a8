"""Adapters: what flowzoo did not make, as a flow that the judge can score.

`adapted` is the flow around an object, `foreign` how an object is asked, `law` a torch distribution
as such an object.
"""

from __future__ import annotations

from torch.distributions import Distribution

from flowzoo.adapters.adapted import Adapted
from flowzoo.adapters.law import Law
from flowzoo.errors import UserError
from flowzoo.flow import Flow

__all__ = ["Adapted", "adapt"]


def adapt(thing: object, dim: int | None = None) -> Flow:
    """Return an object as a flow; a flow is returned as it is.

    Arguments:
        thing: A flow; a torch distribution over vectors or numbers; or an object with
            `log_prob(x) -> (n,)` and `sample(n) -> (n, d)`, where a tuple stands for its first
            entry. With `encode(x) -> (z, ladj)` and `decode(z) -> x` as well it has a latent space,
            z ~ N(0, I). One with a number `context_dim` is conditional, and its methods take
            `context`; methods that have an argument `generator` are given one.
        dim: Dimension d of the data, where the object does not say it by `dim`, `features`,
            `event_shape`, or a sample.

    Raises:
        UserError: The object is no density over vectors, or its dimension is not known.
    """
    if isinstance(thing, Flow):
        return thing
    if isinstance(thing, type):
        raise UserError(f"{thing.__name__} is a class: give an object of it")
    if isinstance(thing, Distribution):
        return Adapted(Law(thing), dim)
    missing = [name for name in ("log_prob", "sample") if not callable(getattr(thing, name, None))]
    if missing:
        raise UserError(
            f"{type(thing).__name__} has no {' and no '.join(missing)}: give a flow, a torch "
            "distribution, or an object with both; of a module that returns a distribution when "
            "called, give the distribution"
        )
    return Adapted(thing, dim)
