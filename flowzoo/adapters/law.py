"""A torch distribution as an object with `log_prob(x)` and `sample(n)`."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from flowzoo.errors import Diverged, UserError


class Law:
    """A torch distribution over vectors, or over numbers, which count as vectors of one entry.

    Arguments:
        law: The distribution.

    Raises:
        UserError: It is several densities, one over arrays, or discrete.
    """

    def __init__(self, law: Distribution) -> None:
        self.law, self.name = law, type(law).__name__
        if law.batch_shape:
            raise UserError(
                f"{self.name} is {law.batch_shape.numel()} densities (batch_shape "
                f"{tuple(law.batch_shape)}), not one: make them one density over a vector by "
                "torch.distributions.Independent"
            )
        if len(law.event_shape) > 1:
            raise UserError(
                f"{self.name} is a density over arrays of shape {tuple(law.event_shape)}: only "
                "densities over vectors or numbers can be judged"
            )
        if _discrete(law):
            raise UserError(f"{self.name} is discrete: its log_prob is no density")
        self.scalar = not law.event_shape
        self.dim = 1 if self.scalar else law.event_shape[0]

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) as (n,) for x (n, d).

        Raises:
            Diverged: The distribution validates its points, and refuses some.
        """
        try:
            return self.law.log_prob(x.squeeze(-1) if self.scalar else x)
        except ValueError as error:
            said = str(error).partition("\n")[0]
            raise Diverged(f"log_prob of {self.name} refuses some points: {said}") from error

    def sample(self, n: int) -> Tensor:
        """Draw (n, d) samples, differentiable where the distribution can."""
        x = self.law.rsample((n,)) if self.law.has_rsample else self.law.sample((n,))
        return x.unsqueeze(-1) if self.scalar else x


def _discrete(law: Distribution) -> bool:
    try:
        return bool(getattr(law.support, "is_discrete", False))
    except NotImplementedError:
        return False
