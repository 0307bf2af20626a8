"""Inversions that break one promise each."""

from __future__ import annotations

from dataclasses import replace

import torch

from flowzoo.errors import Diverged, UserError
from flowzoo_cp_flow.newton import Newton


class Changed(Newton):
    """Newton's method with a change of its report."""

    def search(self, at, z, context):
        return self.change(super().search(at, z, context), at, z)

    def change(self, found, at, z):
        return found


class Called(Newton):
    """Newton's method with a change of what is differentiable."""

    def __call__(self, at, z, context=None):
        return self.changed(super().__call__(at, z, context), z)

    def changed(self, x, z):
        return x


# --- what it is ----------------------------------------------------------------------------------


class Column(Changed):
    """A residual (n, 1)."""

    def change(self, found, at, z):
        return replace(found, residual=found.residual[:, None])


class Doubled(Changed):
    """Double precision, whatever is asked for."""

    def change(self, found, at, z):
        return replace(found, x=found.x.double())


# --- its solutions -------------------------------------------------------------------------------


class Hasty(Newton):
    """Stops at 1e-4, and says that this is enough."""

    def search(self, at, z, context):
        return Newton(1e-4).search(at, z, context)


class Unmoved(Changed):
    """Takes what is only as close as the first step comes for a solution."""

    def search(self, at, z, context):
        found = Newton(iterations=1).search(at, z, context)
        return replace(found, converged=torch.ones_like(found.converged))


class Endless(Changed):
    """Searches on until the residual is exactly zero, in many dimensions."""

    def change(self, found, at, z):
        while z.shape[1] > 5 and bool((at(found.x, None).gradient != z).any()):
            pass
        return found


class Crossed(Newton):
    """Solves the samples in one another's contexts."""

    def search(self, at, z, context):
        return super().search(at, z, context if context is None else context.flip(0))


class Shrunken(Changed):
    """Reports residuals that are too small."""

    def change(self, found, at, z):
        return replace(found, residual=0.01 * found.residual)


class Boastful(Newton):
    """Claims to be nearer to the solution than it is."""

    def search(self, at, z, context):
        return replace(super().search(at, z, context), floor=1e6)


class Meeting(Changed):
    """Moves a sample towards the others of its batch."""

    def change(self, found, at, z):
        return replace(found, x=found.x + 1e-8 * found.x.mean(0))


# --- what fails ----------------------------------------------------------------------------------


class Silent(Changed):
    """Says that all have converged."""

    def change(self, found, at, z):
        return replace(found, converged=torch.ones_like(found.converged))


class Spoiled(Changed):
    """Gives up on all samples where one fails."""

    def change(self, found, at, z):
        return replace(found, converged=found.converged & found.converged.all())


class Mute(Newton):
    """Refuses without a reason."""

    def __call__(self, at, z, context=None):
        try:
            return super().__call__(at, z, context)
        except Diverged as error:
            raise Diverged("it failed") from error


class Blaming(Newton):
    """Blames the user for what did not converge."""

    def __call__(self, at, z, context=None):
        try:
            return super().__call__(at, z, context)
        except Diverged as error:
            raise UserError("set other options, as these do not lead to a solution") from error


class Lenient(Newton):
    """Raises nothing, whatever is asked for."""

    def __call__(self, at, z, context=None):
        asked, self.failed = self.failed, "nan" if self.failed == "raise" else self.failed
        x = super().__call__(at, z, context)
        self.failed = asked
        return x


# --- its derivatives -----------------------------------------------------------------------------


class Constant(Called):
    """No gradient."""

    def changed(self, x, z):
        return x.detach()


class Halved(Called):
    """Half of its gradient."""

    def changed(self, x, z):
        return 0.5 * (x + x.detach())


class Unconditional(Newton):
    """No gradient in the context."""

    def __call__(self, at, z, context=None):
        return super().__call__(at, z, None if context is None else context.detach())


# --- manners -------------------------------------------------------------------------------------


class Shifting(Newton):
    """Shifts z in place while it solves."""

    def solve(self, at, z, context=None):
        found = super().solve(at, z.detach(), context)
        z.detach().mul_(1 + 1e-15)
        return found


class Guessing(Newton):
    """Moves the solution at random, from the global generator."""

    def search(self, at, z, context):
        found = super().search(at, z, context)
        return replace(found, x=found.x + 1e-13 * torch.randn_like(found.x))


class Recording(Newton):
    """Hands out a graph nobody asked for."""

    def solve(self, at, z, context=None):
        found = super().solve(at, z, context)
        return replace(found, x=found.x.requires_grad_() * 1.0)


class Rough(Changed):
    """Loses digits in single precision, and does not look again."""

    def change(self, found, at, z):
        if z.dtype == torch.float32:
            return replace(found, x=(found.x + 1e4) - 1e4)
        return found
