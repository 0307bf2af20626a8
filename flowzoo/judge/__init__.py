"""The judge: one evaluator for all families, apart from the numerics used in training."""

from flowzoo.judge.measure import Measure, Metric
from flowzoo.judge.subject import Subject, evaluate

__all__ = ["Measure", "Metric", "Subject", "evaluate"]
