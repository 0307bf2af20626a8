"""Data sets with right rows that say something wrong of their law, one thing each."""

from __future__ import annotations

from dataclasses import replace

import torch
from wrong_data import Right

from flowzoo.data.oracles import MixtureOracle


class Hopeful(Right):
    """An entropy that is 0.2 nats too low."""

    def known(self):
        return {**super().known(), "entropy": self.law().entropy - 0.2}


class Heavy(Right):
    """A density that integrates to exp(0.04), with the entropy that goes with it."""

    def known(self):
        known, law = super().known(), self.law()
        more = {"log_prob": lambda x: law.log_prob(x) + 0.04, "entropy": law.entropy - 0.04}
        return {**known, **more}


class Batched(Right):
    """A density that depends on the rows that it is asked for together."""

    def known(self):
        known, law = super().known(), self.law()
        return {**known, "log_prob": lambda x: law.log_prob(x) + 1e-6 * x.mean()}


class Uphill(Right):
    """A score of the wrong sign."""

    def known(self):
        law = self.law()
        return {**super().known(), "score": lambda x: -law.score(x)}


class Turned(Right):
    """A map to N(0, I) that turns the plane on its way: not the optimal one."""

    def known(self):
        law, known = self.law(), super().known()
        turn = torch.tensor([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]], dtype=torch.float64)
        return {"transport": lambda x: law.transport(x) @ turn.mT, "score": known["score"]}


class Narrow(Right):
    """A map to a Gaussian of variance 0.8."""

    def known(self):
        law = self.law()
        return {"transport": lambda x: law.transport(x) * 0.8**0.5}


class NoReturn(Right):
    """An inverse that is not one."""

    def known(self):
        law = self.law()
        return {**super().known(), "inverse_transport": lambda z: law.inverse_transport(z) - 0.01}


class Frozen(Right):
    """A velocity that is that of t = 0 at all times."""

    def known(self):
        law, known = self.law(), super().known()
        del known["potential"]
        return {**known, "velocity": lambda t, x: law.velocity(0 * torch.as_tensor(t), x)}


class Timeless(Right):
    """A potential without the term that grows in time."""

    def known(self):
        law = self.law()
        growth = 0.5 * law.mean.square().sum()
        return {**super().known(), "potential": lambda t, x: law.potential(t, x) - growth * t}


class Dear(Right):
    """W2^2 instead of W2^2 / 2."""

    def known(self):
        return {**super().known(), "transport_cost": self.law().w2_squared}


class Mismatched(Right):
    """The optimal velocity in the place of the marginal velocity of independent pairs."""

    def known(self):
        return {**super().known(), "matching_velocity": self.law().velocity}


class Lopsided(Right):
    """A mixture that states other weights than it has."""

    def law(self):
        means = torch.eye(self.dim, dtype=torch.float64)[:1].repeat(2, 1) * torch.tensor(
            [[-3], [3]]
        )
        return MixtureOracle(torch.tensor([0.3, 0.7], dtype=torch.float64), means, 0.5)

    def known(self):
        law = self.law()
        stated = replace(law.modes, weights=law.weights.flip(0))
        return {"log_prob": law.log_prob, "modes": stated}
