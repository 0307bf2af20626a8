"""Options of oracles out of their range are refused with a sentence."""

from __future__ import annotations

import math

import pytest

from flowzoo.data.heavy_tailed import StudentT
from flowzoo.data.synthetic import Gaussian, Mixture
from flowzoo.errors import UserError


@pytest.mark.parametrize(
    ("cls", "options", "sentence"),
    [
        (Gaussian, {"dim": 0}, "dim of gaussian is 0"),
        (Gaussian, {"condition": 0.5}, "condition of gaussian is 0.5"),
        (Gaussian, {"dim": 1, "condition": 2.0}, "1 dimension has condition 1"),
        (Gaussian, {"mean": math.nan}, "mean of gaussian is nan"),
        (Mixture, {"components": 0}, "components of mixture is 0"),
        (Mixture, {"scale": 0.0}, "scale of mixture is 0.0"),
        (Mixture, {"radius": -1.0}, "radius of mixture is -1.0"),
        (Mixture, {"val": 0}, "at least 2 rows"),
        (StudentT, {"dim": 0}, "dim of student-t is 0"),
        (StudentT, {"test": 1}, "at least 2 rows"),
        (StudentT, {"df": 0.0}, "df of student-t is 0.0; it must lie between"),
        (StudentT, {"df": 1e6}, "take gaussian"),
        (StudentT, {"df": math.nan}, "df of student-t is nan"),
        (StudentT, {"scale": -1.0}, "scale of student-t is -1.0"),
        (StudentT, {"scale": math.inf}, "scale of student-t is inf"),
    ],
)
def test_oracle_options_out_of_range_are_refused(cls, options, sentence):
    with pytest.raises(UserError, match=sentence):
        cls(**options)
