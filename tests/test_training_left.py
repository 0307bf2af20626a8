"""What a stage leaves is for the next one alone."""

from __future__ import annotations

from tiny_flows import Loud, Shift, fitted

from flowzoo.objective import Batch, Left, Objective, Stage
from flowzoo.settings import Budget


def test_a_stage_that_leaves_nothing_hands_nothing_on():
    found = []

    class Once(Objective):
        """Of three stages the first leaves points and a fact."""

        def stages(self, flow):
            for k in range(3):
                yield Stage(
                    f"{k}",
                    list(flow.parameters()),
                    lambda batch, g: Loud().loss(flow, batch, g),
                    lambda data, k=k: Batch(data.x + 10 * k),
                    lambda data: found.append(round(data.x.mean().item())),
                    end=None
                    if k
                    else lambda train, held: Left(Batch(train.x - 50), None, {"a": 1}),
                )

    rows = fitted(Shift(), Once(), Budget(steps=6)).stages
    assert found == [5, -45, 25]
    assert [row.get("a") for row in rows] == [1, None, None]
