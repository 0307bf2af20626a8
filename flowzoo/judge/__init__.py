"""The judge: one evaluator for all families, apart from the numerics used in training."""

from flowzoo.judge.evaluate import evaluate
from flowzoo.judge.measure import Better, Measure, Metric, mean
from flowzoo.judge.subject import Subject

__all__ = ["Better", "Measure", "Metric", "Subject", "evaluate", "mean"]
