"""What is imported of zuko, with torch left as it was.

Importing zuko switches the validation of arguments off for every torch distribution of the process
(zuko.distributions). Which components are loaded must not change what other code does, so the
switch is put back; nothing here needs it off.
"""

from __future__ import annotations

from torch.distributions import Distribution

_validates = Distribution._validate_args
try:
    from zuko import flows
    from zuko.distributions import DiagNormal
    from zuko.flows.continuous import FFJTransform
    from zuko.lazy import Flow as LazyFlow
    from zuko.lazy import UnconditionalDistribution
    from zuko.transforms import FreeFormJacobianTransform
finally:
    Distribution._validate_args = _validates

__all__ = [
    "DiagNormal",
    "FFJTransform",
    "FreeFormJacobianTransform",
    "LazyFlow",
    "UnconditionalDistribution",
    "flows",
]
