"""Evaluation: metrics of a split, and of every subset of the modalities."""

from mmjax.evaluation.evaluator import EvaluateConfig, EvaluationHook, Evaluator
from mmjax.evaluation.subsets import subset_name, subsets

__all__ = ["EvaluateConfig", "EvaluationHook", "Evaluator", "subset_name", "subsets"]
