"""Facts of blocks that are no finite numbers: a block without an inverse, a table of such a one."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_blocks import record, stage
from tiny_flows import QUICK, fitted, points

from flowzoo.bench.blocks import block_tables, brief_table
from flowzoo.errors import Diverged
from flowzoo.settings import Budget
from flowzoo_jko_iflow.growing import Growing
from flowzoo_jko_iflow.objective import JKO
from flowzoo_residual.flow import Residual


def test_a_block_without_an_inverse_is_a_fact_and_no_end_of_the_fit():
    torch.manual_seed(0)
    blocks = [Residual(2, [16], "tanh", lipschitz=None, scale=6.0) for _ in range(2)]
    made = fitted(Growing(blocks), JKO(), Budget(steps=4), QUICK)
    with pytest.raises(Diverged):
        blocks[0].decode(blocks[0].encode(points().x).z)
    assert made.steps == 4
    assert made.stages[0]["round_trip"] == math.inf
    assert all(math.isfinite(row["nll"]) for row in made.stages)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_no_finite_number_is_a_dash_in_the_table_of_blocks(value):
    odd = record([stage("block 1", 1, 2.0, round_trip=value)])
    for table in (brief_table(odd), *block_tables([odd], ["nll", "round_trip"])):
        texts = {
            column.split()[0]: entry.text
            for column, entry in zip(table.columns, table.lines[0].entries, strict=True)
        }
        assert (texts["NLL"], texts["round"]) == ("2", "–")
